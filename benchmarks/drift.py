"""How often a watch alarms for nothing, how soon it sees a change, and what it costs: the real MiniLM on public data.

    python benchmarks/drift.py MODEL DATA [--json FILE]

MODEL: a result of `bitwright quantize`. DATA: a folder with stsb/stsb-en-{train,dev,test}.tsv, stsb/stsb-zh-dev.tsv and
medline/corpus.jsonl. The reference is made of some sentences of STS-B; windows are drawn from the others.
"""

import argparse
import json
import random
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

import bitwright
from bitwright.drift.reference import reference_from, unknown_id_of
from bitwright.drift.watch import Watch

WINDOWS, TRIALS, WITHIN = 200, 100, 1500


class Encoded:
    """Texts with their tokens and embeddings."""

    def __init__(self, model: Any, texts: Sequence[str]) -> None:
        self.ids = model.tokenize(list(texts))
        begun = time.process_time()
        self.vectors = model.encode(self.ids)
        self.seconds = time.process_time() - begun


def sentences(file: Path) -> list[str]:
    """The different sentences of a file of pairs."""
    rows = [line.split("\t")[:2] for line in file.read_text(encoding="utf-8").splitlines()[1:]]
    return list(dict.fromkeys(text.strip() for row in rows for text in row if text.strip()))


def typo(word: str, rng: random.Random) -> str:
    """A word with two neighbouring letters exchanged, one left out, or one doubled."""
    if len(word) < 3:
        return word + rng.choice("abcdefgh")
    i = rng.randrange(len(word) - 1)
    ways = (word[:i] + word[i + 1] + word[i] + word[i + 2 :], word[:i] + word[i + 1 :], word[:i] + word[i] + word[i:])
    return rng.choice(ways)


def with_typos(text: str, rng: random.Random) -> str:
    """A text, 20 % of whose words have a typo."""
    return " ".join(typo(word, rng) if rng.random() < 0.2 else word for word in text.split())


def feed(watch: Watch, pool: Encoded, n: int, rng: np.random.Generator) -> float:
    """Let a watch see so many texts of a pool, 32 at a time, and return the seconds of the processor that it took."""
    seconds = 0.0
    while n > 0:
        chosen = rng.choice(len(pool.ids), min(n, watch.reference.window), replace=n > len(pool.ids))
        parts = np.array_split(chosen, max(1, len(chosen) // 32))
        batches = [([pool.ids[i] for i in part], pool.vectors[part]) for part in parts]
        begun = time.process_time()
        for ids, vectors in batches:
            watch.see(ids=ids, embeddings=vectors)
        watch.flush()
        seconds += time.process_time() - begun
        n -= len(chosen)
    return seconds


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--references", type=int, default=5)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 1000, 3000])
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    model: Any = bitwright.load(asked.model)
    rng, words = np.random.default_rng(0), random.Random(0)
    stsb = asked.data / "stsb"
    english = [text for part in ("train", "dev", "test") for text in sentences(stsb / f"stsb-en-{part}.tsv")]
    english = [english[i] for i in rng.permutation(len(english))]
    lines = (asked.data / "medline" / "corpus.jsonl").read_text(encoding="utf-8").splitlines()
    known = Encoded(model, english)
    shifted = {
        "Medline": Encoded(model, [json.loads(line)["text"] for line in lines]),
        "Chinese": Encoded(model, sentences(stsb / "stsb-zh-dev.tsv")),
        "typos in 20 % of words": Encoded(model, [with_typos(text, words) for text in english[:6000]]),
        "doubled length": Encoded(model, [" ".join(pair) for pair in pairwise(english[:6000])]),
    }
    found: dict[str, Any] = {}
    trials = TRIALS // asked.references * asked.references
    for n in asked.sizes:
        alarms, seen, cost = [], dict.fromkeys(shifted, 0), 0.0
        for draw in range(asked.references):
            order = np.random.default_rng(draw).permutation(len(english))
            ids, rest = [known.ids[i] for i in order[:n]], order[n:]
            reference = reference_from(ids, known.vectors[order[:n]], unknown_id_of(model))
            others = object.__new__(Encoded)
            others.ids, others.vectors = [known.ids[i] for i in rest], known.vectors[rest]
            watch = Watch(asked.model, reference=reference)
            cost += feed(watch, others, WINDOWS * reference.window, rng)
            alarms.append(len(watch.alarms))
            for name, pool in shifted.items():
                for _ in range(TRIALS // asked.references):
                    watch = Watch(asked.model, reference=reference)
                    feed(watch, pool, WITHIN, rng)
                    seen[name] += bool(watch.alarms)
        texts = asked.references * WINDOWS * reference.window
        found[str(n)] = {
            "alarms in 200 windows": alarms, "power": {name: f"{hits} of {trials}" for name, hits in seen.items()},
            "thresholds": reference.thresholds, "us per text": 1e6 * cost / texts,
            "share of encoding": cost / texts / (known.seconds / len(english)),
        }  # fmt: skip
        print(n, json.dumps(found[str(n)], indent=1), flush=True)
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()

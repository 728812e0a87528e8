"""Accuracy of a quantized embedding model beside its float original.

    BITWRIGHT_EVAL_DATA=data python benchmarks/accuracy.py QUANTIZED --float ORIGINAL --json accuracy.json

Rows: STS-B test, Spearman × 100 (`stsb/stsb-en-test.tsv`); Medline and Cranfield, nDCG@10 × 100 with linear gains and
"title text" as a document (`medline/`, `cranfield/`: corpus.jsonl, queries.jsonl, qrels.tsv), each with its relative
loss and that one's one-sided 95 % bounds; and the mean and smallest cosine to float on the first 200 sentences of 40
to 200 characters of Python's documentation, in batches of 25. A data set that is not there is named and left out.

The quantized model runs in Bitwright, the float one in sentence-transformers (which pools by the mean where the model
does not say how).
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import bitwright
from bitwright.calibration.data import builtin_texts
from bitwright.evaluate import load_task, metrics, paired_bootstrap
from bitwright.evaluate.kinds import Encode

TASKS = {"STS-B test": "stsb/stsb-en-test.tsv", "Medline": "medline", "Cranfield": "cranfield"}
N_SENTENCES, SENTENCES_PER_BATCH = 200, 25


def main() -> None:
    """Measure, print a table, and write JSON on request."""
    parser = argparse.ArgumentParser(description="Accuracy of a quantized embedding model beside its float original.")
    parser.add_argument("directory", type=Path, help="checkpoint that `bitwright quantize` wrote")
    parser.add_argument("--float", dest="original", help="the float model: a directory or a name on the hub")
    parser.add_argument("--json", type=Path, help="write the rows there")
    options = parser.parse_args()
    data = os.environ.get("BITWRIGHT_EVAL_DATA")
    if data is None:
        sys.exit("BITWRIGHT_EVAL_DATA is not set: the directory that holds stsb/, medline/ and cranfield/")
    quantized = bitwright.load(options.directory)
    rows = []
    for row in measure(
        Path(data),
        lambda texts: quantized.encode(texts, batch_size=SENTENCES_PER_BATCH),
        float_encode(options.original) if options.original else None,
    ):
        rows.append(row)
        cells = (f"{key} {value:.4f}" if isinstance(value, float) else f"{value:<12}" for key, value in row.items())
        print("  ".join(cells), flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def float_encode(model: str) -> Encode:
    """Texts to embeddings, by sentence-transformers in float32 on the CPU."""
    from sentence_transformers import SentenceTransformer

    original = SentenceTransformer(model, device="cpu")
    return lambda texts: np.asarray(original.encode(texts, batch_size=SENTENCES_PER_BATCH, show_progress_bar=False))


def measure(data: Path, quant_encode: Encode, float_encode: Encode | None) -> Iterator[dict[str, Any]]:
    """One row per data set that is there, and one for the cosine; without a float model, the quantized scores alone."""
    for name, place in TASKS.items():
        if not (data / place).exists():
            print(f"{name}: {data / place} is not there, left out", file=sys.stderr)
            continue
        task = load_task(data / place)
        quant_outputs = task.run(quant_encode)
        row = {"data": name, "metric": task.kind.metric, "quantized": 100 * task.score(quant_outputs)}
        if float_encode is not None:
            float_outputs = task.run(float_encode)
            interval = paired_bootstrap(task, float_outputs, quant_outputs)
            row |= {"float": 100 * task.score(float_outputs), "loss_percent": 100 * interval.loss}
            row |= {"lower_percent": 100 * interval.lower, "upper_percent": 100 * interval.upper}
        yield row
    if float_encode is not None:
        sentences = builtin_texts(N_SENTENCES)
        mean, smallest = metrics.cosine(np.asarray(float_encode(sentences)), np.asarray(quant_encode(sentences)))
        yield {"data": f"{N_SENTENCES} sentences", "metric": "cosine", "mean": mean, "smallest": smallest}


if __name__ == "__main__":
    main()

"""What the registry's gate for embedding spaces says of changed encoders, beside what retrieval loses.

    python benchmarks/embedding_space.py MODEL COLLECTION [--result DIR …] [--steps 30]

MODEL: a float BERT encoder, which made the index. COLLECTION: a directory with corpus, queries and qrels, whose
documents are cut at 300 characters. Candidates: results of `quantize`, and copies of MODEL with noise on every linear,
noise on one, one set to zero, another pooling, and trained further, contrastively, on built-in questions and answers.
Printed for each: the agreement of the ten nearest documents and its lower bound on built-in texts, and nDCG@10 of the
collection with the candidate's queries, and in an index half of which the candidate made.
"""

import argparse
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file

import bitwright
from bitwright.calibration.passages import pair_passages
from bitwright.files.opening import open_path
from bitwright.registry.gates import LIMITS
from bitwright.registry.spaces import builtin_search, compare, encoded, search_texts

if TYPE_CHECKING:
    from bitwright.runtime.model import Model

Weights = dict[str, torch.Tensor]
_CUT = 300
_NOISE = (0.02, 0.05, 0.1)


def main() -> None:
    """Make the candidates one by one, and print a row for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("collection")
    parser.add_argument("--result", type=Path, action="append", default=[])
    parser.add_argument("--steps", type=int, nargs="*", default=[10, 30])
    asked = parser.parse_args()
    reference = _opened(asked.model)
    texts, collection = builtin_search(reference), search_texts(asked.collection)
    collection = replace(collection, documents=tuple(document[:_CUT] for document in collection.documents))
    ours, theirs = encoded(reference, texts), encoded(reference, collection)
    print(f"{len(texts.documents)} documents, {len(texts.queries)} queries; at least {LIMITS['agreement']:.0%} pass")
    print("| candidate | queries | mixed | lower bound | nDCG, original | its queries | mixed index |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        for name, path in _candidates(asked.model, asked.result, asked.steps, Path(folder)):
            model = _opened(path)
            found = compare(texts, encoded(model, texts), ours)
            ndcg = compare(collection, encoded(model, collection), theirs).ndcg
            assert ndcg is not None
            cells = (found.queries, found.mixed, found.lower)
            print(f"| {name} | {' | '.join(f'{x:.3f}' for x in cells)} | {' | '.join(f'{x:.4f}' for x in ndcg)} |")


def _opened(path: Path) -> "Model":
    return bitwright.load(path, compute="auto" if open_path(path).is_quantized else "engine")


def _candidates(model: Path, results: list[Path], steps: list[int], folder: Path) -> Iterator[tuple[str, Path]]:
    for result in results:
        yield result.name, result
    for size in _NOISE:
        yield f"noise {size:.0%}", _changed(model, folder / f"noise{size}", partial(_noise, "", size))
    last = max(name for name in load_file(model / "model.safetensors") if name.endswith("output.dense.weight"))
    yield f"noise 30% on {last}", _changed(model, folder / "one", partial(_noise, last, 0.3))
    yield f"{last} = 0", _changed(model, folder / "zero", lambda w: w[last].zero_())
    pooled = _changed(model, folder / "pooling", lambda w: None)
    modes = json.loads((pooled / "1_Pooling" / "config.json").read_text())
    modes |= {"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}
    (pooled / "1_Pooling" / "config.json").write_text(json.dumps(modes))
    yield "another pooling", pooled
    for count in steps:
        yield f"trained {count} steps", _trained(model, folder / f"trained{count}", count)


def _changed(model: Path, path: Path, change: Callable[[Weights], object]) -> Path:
    shutil.copytree(model, path)
    weights = load_file(model / "model.safetensors")
    change(weights)
    save_file(weights, path / "model.safetensors", {"format": "pt"})
    return path


def _noise(only: str, size: float, weights: Weights) -> None:
    """Noise on the linears of the blocks, relative to the spread of each."""
    generator = torch.Generator().manual_seed(0)
    for name, weight in weights.items():
        if weight.ndim == 2 and "layer." in name and only in name:
            weight += size * weight.std() * torch.randn(weight.shape, generator=generator)


def _trained(model: Path, path: Path, steps: int, batch: int = 16) -> Path:
    """Trained with in-batch negatives, at a learning rate of 1e-4."""
    import transformers

    pairs = [passage.text for passage in pair_passages("rerank") if passage.language == "en"][::3]
    torch.manual_seed(0)
    tokenizer, encoder = (kind.from_pretrained(model) for kind in (transformers.AutoTokenizer, transformers.AutoModel))
    optimizer = torch.optim.AdamW(encoder.train().parameters(), lr=1e-4)

    def vectors(texts: list[str]) -> torch.Tensor:
        inputs = tokenizer(texts, padding=True, truncation=True, max_length=48, return_tensors="pt")
        hidden, mask = encoder(**inputs).last_hidden_state, inputs["attention_mask"][..., None]
        return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)

    for step in range(steps):
        some = [pairs[(batch * step + i) % len(pairs)] for i in range(batch)]
        scores = 20 * vectors([pair[0] for pair in some]) @ vectors([pair[1] for pair in some]).T
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(scores, torch.arange(batch)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    shutil.copytree(model, path)
    encoder.eval().save_pretrained(path)
    return path


if __name__ == "__main__":
    main()

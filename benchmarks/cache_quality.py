"""What int8 and int4 caches change of a language model's predictions, against the same engine with a bf16 cache.

    python benchmarks/cache_quality.py DIR TEXT --depths 1024,8192 --tokens 8192 --json out.json

A text is cut into windows of `depth` tokens. Predictions of the second half of each window are compared, as many
windows as give `--tokens` of them, at least one: perplexity, KL(bf16 cache ‖ other) in nats, and how often the
likeliest token is the same. Bytes are those of a text as long as a window. ± is a standard error of the mean over
tokens.
"""

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bitwright.engine.cache_layout import CacheKind
from bitwright.engine.decoders import Arithmetic
from bitwright.files.directory import ModelDirectory
from bitwright.generate.cache import CHUNK
from bitwright.runtime.decoder_model import DecoderModel

KINDS: tuple[CacheKind, ...] = ("int8", "int4")
_ROWS = 128  # of logits, compared at a time


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--depths", default="1024,8192")
    parser.add_argument("--tokens", type=int, default=8192, help="compared at each depth")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    depths = [int(depth) for depth in asked.depths.split(",")]
    models: dict[CacheKind, DecoderModel] = {
        kind: opened(asked.directory, kind, max(depths)) for kind in ("bf16", *KINDS)
    }
    base = models["bf16"]
    assert base._tokenizer is not None
    text = asked.text.read_text(encoding="utf-8", errors="replace")
    ids = base._tokenizer.tokenizer.encode(text, add_special_tokens=False).ids
    rows = []
    print("| depth | cache | bytes of a token | perplexity | change, % | KL | same token, % | tokens |\n|" + "---|" * 8)
    for depth in depths:
        windows = [ids[begin : begin + depth] for begin in range(0, len(ids) - depth + 1, depth)]
        windows = windows[: max(asked.tokens // (depth // 2), 1)]
        for row in compared(models, windows, depth // 2):
            rows.append({"depth": depth} | row)
            print(
                f"| {depth} | {row['cache']} | {row['bytes']} | {row['perplexity']:.3f} | {row['change']:+.2f} ± "
                f"{row['error']:.2f} | {row['kl']:.5f} | {row['same']:.2f} | {row['tokens']} |",
                flush=True,
            )
    if asked.json:
        about = {"model": str(asked.directory), "text": asked.text.name, "backend": base.backend}
        asked.json.write_text(json.dumps(about | {"rows": rows}, indent=1))


def opened(directory: Path, kind: CacheKind, depth: int) -> DecoderModel:
    how = Arithmetic("bf16", "16", kind)  # else all other rounding differs too as soon as a bit of the cache does
    return DecoderModel(ModelDirectory(directory), arithmetic=how, context=depth, cache_tokens=depth)


def compared(
    models: Mapping[CacheKind, DecoderModel], windows: list[list[int]], first: int
) -> Iterator[dict[str, Any]]:
    """A row of each cache, bf16 first. first: the token of a window whose prediction of the next one counts."""
    found: dict[CacheKind, list[np.ndarray]] = {kind: [] for kind in models}
    for window in windows:
        parts = (logits(model, window[:-1], first) for model in models.values())
        expected, begin = window[first + 1 :], 0
        for outs in zip(*parts, strict=True):  # step by step: logits of a whole window are large
            for at in range(0, len(outs[0]), _ROWS):
                logs_KMV = [log_softmax(out[at : at + _ROWS]) for out in outs]
                next_M = np.asarray(expected[begin : begin + len(logs_KMV[0])])
                begin += len(next_M)
                for kind, log_MV in zip(found, logs_KMV, strict=True):
                    found[kind].append(measures(logs_KMV[0], log_MV, next_M))
    base_M = np.concatenate(found["bf16"], axis=1)[0]
    for kind, model in models.items():
        nll_M, kl_M, same_M = np.concatenate(found[kind], axis=1)
        more_M, layout, depth = nll_M - base_M, model.cache.layout, len(windows[0])
        yield {
            "cache": kind, "bytes": layout.blocks_of(depth, 1) * layout.block_bytes // depth,
            "perplexity": float(np.exp(nll_M.mean())),
            "change": float(100 * np.expm1(more_M.mean())), "error": float(100 * more_M.std() / len(more_M) ** 0.5),
            "kl": float(kl_M.mean()), "same": float(100 * same_M.mean()), "tokens": len(nll_M),
        }  # fmt: skip


def logits(model: DecoderModel, ids: list[int], first: int) -> Iterator[np.ndarray]:
    """float32 (tokens, vocabulary) of each step's tokens from `first` on, by chunks of the scheduler's size."""
    held = model.cache.begin([])
    for begin in range(0, len(ids), CHUNK):
        part = ids[begin : begin + CHUNK]
        model.cache.grow(held, len(part))
        out = model.step(model.cache.step([(held, part, min(max(begin + len(part) - first, 0), len(part)))]))
        model.cache.appended(held, ids[: begin + len(part)])
        yield out
    model.cache.end(held)


def log_softmax(x_MV: np.ndarray) -> np.ndarray:
    x_MV = x_MV - x_MV.max(axis=1, keepdims=True)
    out_MV: np.ndarray = x_MV - np.log(np.exp(x_MV).sum(axis=1, keepdims=True))
    return out_MV


def measures(base_MV: np.ndarray, log_MV: np.ndarray, next_M: np.ndarray) -> np.ndarray:
    """(3, M): NLL of the next token, KL(base ‖ other), whether the likeliest token is the same."""
    kl_M = (np.exp(base_MV) * (base_MV - log_MV)).sum(axis=1)
    return np.stack([-log_MV[np.arange(len(next_M)), next_M], kl_M, base_MV.argmax(axis=1) == log_MV.argmax(axis=1)])


if __name__ == "__main__":
    main()

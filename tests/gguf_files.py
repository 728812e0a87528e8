"""GGUF files by an encoder of the tests' own, written from the format's description."""

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers


class Tensor(NamedTuple):
    """type: as numbered in files. shape: innermost first, as files have it. offset: None for where it belongs."""

    name: str
    type: int
    shape: Sequence[int]
    data: bytes
    offset: int | None = None


def text(value: str | bytes) -> bytes:
    encoded = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(encoded)) + encoded


def typed(value: Any) -> bytes:
    """A value behind its type: bool, int (uint32), float (float32), text, or a list of one of them (int32)."""
    if isinstance(value, bytes):  # as it is
        return value
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list):
        kinds = {str: 8, float: 6, int: 5}
        letters = {float: "<f", int: "<i"}
        kind = type(value[0])
        items = [text(one) if kind is str else struct.pack(letters[kind], one) for one in value]
        return struct.pack("<IIQ", 9, kinds[kind], len(value)) + b"".join(items)
    if isinstance(value, str):
        return struct.pack("<I", 8) + text(value)
    if isinstance(value, bool):
        return struct.pack("<IB", 7, value)
    return struct.pack("<If", 6, value) if isinstance(value, float) else struct.pack("<II", 4, value)


def encoded(metadata: Mapping[str, Any], tensors: Sequence[Tensor], *, version: int = 3, alignment: int = 32) -> bytes:
    """The bytes of a file."""
    header = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata))
    header += b"".join(text(key) + typed(value) for key, value in metadata.items())
    data = b""
    for tensor in tensors:
        offset = len(data) if tensor.offset is None else tensor.offset
        header += text(tensor.name) + struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape)
        header += struct.pack("<IQ", tensor.type, offset)
        data += tensor.data + bytes(-len(tensor.data) % alignment)
    return header + bytes(-len(header) % alignment) + data


def floats(name: str, *shape: int, seed: int = 0) -> Tensor:
    """A float32 tensor of a shape as numpy has it."""
    values = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return Tensor(name, 0, shape[::-1], values.tobytes())


LLAMA: dict[str, Any] = {
    "general.architecture": "llama",
    "llama.context_length": 64,
    "llama.embedding_length": 32,
    "llama.block_count": 1,
    "llama.feed_forward_length": 32,
    "llama.attention.head_count": 2,
    "llama.attention.head_count_kv": 1,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
}


def small_llama(kind: int = 2, block: bytes = b"\x00\x38" + bytes(range(16))) -> list[Tensor]:
    """The tensors of a Llama with one block, its linears in blocks of 32 values that are all the same."""
    shapes = {
        "attn_q": (32, 32), "attn_k": (32, 16), "attn_v": (32, 16), "attn_output": (32, 32), "ffn_gate": (32, 32),
        "ffn_up": (32, 32), "ffn_down": (32, 32),
    }  # fmt: skip
    linears = [Tensor(f"blk.0.{name}.weight", kind, (k, n), block * (k // 32 * n)) for name, (k, n) in shapes.items()]
    norms = [floats(f"{name}.weight", 32) for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm")]
    return [floats("token_embd.weight", 40, 32), *norms, *linears]


def write_file(path: Path, metadata: Mapping[str, Any] = LLAMA, tensors: Sequence[Tensor] | None = None) -> Path:
    path.write_bytes(encoded(metadata, small_llama() if tensors is None else tensors))
    return path


def give_tokens(path: Path, texts: list[str]) -> Path:
    """Give a model a tokenizer that GGUF has words for: byte-level BPE in 190 entries, so few that only the bytes of
    these texts are among them.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=190, special_tokens=["<|end|>", "<|begin|>"], show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    for file in path.glob("*token*"):
        file.unlink()
    tokenizer.save(str(path / "tokenizer.json"))
    settings = {"eos_token": "<|end|>", "bos_token": "<|begin|>", "chat_template": "{{ messages[0].content }}"}
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    return path

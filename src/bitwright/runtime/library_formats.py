"""How the libraries open checkpoints that are no directories of transformers' own: GPTQ, AutoAWQ, GGUF. Part of
`library_server.py`: no Bitwright code reads anything here.

Without gptqmodel, transformers refuses GPTQ and AutoAWQ. Then their weights are unpacked here, by the formulas of the
formats, and transformers gets floats: that checks the files, and not gptqmodel's kernels. The name of the library says
which of the two it was.
"""

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import numpy as np

from bitwright.families.tasks import AUTO_CLASSES

_AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # where AutoAWQ's nibbles of a word go


def open_transformers(path: str, task: str, trust: bool) -> tuple[Any, str]:
    """A directory as transformers reads it, in float32; the model and the name of the library."""
    import torch

    model = _class_for(task).from_pretrained(path, dtype=torch.float32, trust_remote_code=trust)
    return model.eval(), _named("transformers")


def open_gguf(path: str, task: str, trust: bool) -> tuple[Any, str]:
    """A file, whose blocks transformers has the `gguf` package turn into float32."""
    import torch
    import transformers

    folder, name = os.path.split(path)
    # Newer releases leave weights in blocks unless they are told otherwise.
    as_floats: Any = getattr(transformers, "GgufConfig", None)
    more = {} if as_floats is None else {"quantization_config": as_floats(dequantize=True)}
    model = _class_for(task).from_pretrained(folder, gguf_file=name, dtype=torch.float32, **more)
    return model.eval(), _named("transformers", "gguf")


def open_codes(path: str, task: str, trust: bool) -> tuple[Any, str]:
    """A directory of GPTQ or AutoAWQ."""
    from safetensors.torch import save_file

    if find_spec("gptqmodel") is not None:
        model, _ = open_transformers(path, task, trust)
        return model, _named("transformers", "gptqmodel")
    with tempfile.TemporaryDirectory(prefix="bitwright-floats-") as folder:
        save_file(floats_of_codes(path), os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})
        config = _config(path)
        del config["quantization_config"]
        with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as file:
            json.dump(config, file)
        model, library = open_transformers(folder, task, trust)
    return model, f"{library}, weights unpacked by the format's formula, without gptqmodel"


def _config(path: str) -> dict[str, Any]:
    with open(os.path.join(path, "config.json"), encoding="utf-8") as file:
        config: dict[str, Any] = json.load(file)
    return config


def floats_of_codes(path: str) -> dict[str, Any]:
    """The tensors of a GPTQ or AutoAWQ directory, its quantized weights as the float32 numbers that they stand for."""
    import torch
    from safetensors.torch import load_file

    tensors: dict[str, Any] = {}
    for name in sorted(os.listdir(path)):
        if name.endswith(".safetensors"):
            tensors |= load_file(os.path.join(path, name))
    said = _config(path)["quantization_config"]
    for module in [name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")]:
        part = {key: tensors.pop(f"{module}.{key}", None) for key in ("qweight", "qzeros", "scales", "g_idx")}
        given = {key: None if tensor is None else tensor.numpy() for key, tensor in part.items()}
        make = _from_awq if said["quant_method"] == "awq" else _from_gptq
        tensors[f"{module}.weight"] = torch.from_numpy(make(given, said))
    return tensors


def _from_gptq(part: dict[str, Any], said: dict[str, Any]) -> np.ndarray:
    bits = int(said["bits"])
    codes_NK = _values(part["qweight"].T, bits)
    zero_GN, scale_GN = _values(part["qzeros"], bits), part["scales"].astype(np.float32)
    if said.get("checkpoint_format") != "gptq_v2":
        zero_GN = (zero_GN + 1) & ((1 << bits) - 1)
    group_K = part["g_idx"]
    if group_K is None:
        group_K = np.arange(codes_NK.shape[1]) * len(scale_GN) // codes_NK.shape[1]
    return _numbers(codes_NK, zero_GN, scale_GN, group_K)


def _from_awq(part: dict[str, Any], said: dict[str, Any]) -> np.ndarray:
    def unpacked(words: np.ndarray) -> np.ndarray:
        values = _values(words, 4)
        return values.reshape(len(values), -1, 8)[:, :, _AWQ_ORDER].reshape(len(values), -1)

    codes_NK, scale_GN = unpacked(part["qweight"]).T, part["scales"].astype(np.float32)
    group_K = np.arange(codes_NK.shape[1]) * len(scale_GN) // codes_NK.shape[1]
    return _numbers(codes_NK, unpacked(part["qzeros"]), scale_GN, group_K)


def _values(words: np.ndarray, bits: int) -> np.ndarray:
    """Values of so many bits, the first of a row in the lowest bits of its first word."""
    stream = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=1, bitorder="little")
    return stream.reshape(len(words), -1, bits) @ (1 << np.arange(bits))


def _numbers(codes_NK: np.ndarray, zero_GN: np.ndarray, scale_GN: np.ndarray, group_K: np.ndarray) -> np.ndarray:
    """(q − z) · s, float32 (N, K)."""
    steps_NK = (codes_NK - zero_GN[group_K].T).astype(np.float32)
    return np.ascontiguousarray(steps_NK * scale_GN[group_K].T)


class LlamaCpp:
    """A GGUF file in llama.cpp, which gets ids of equal length."""

    def __init__(self, path: str, threads: int, tokens: int) -> None:
        import llama_cpp

        self.library = _named("llama_cpp_python")
        self.model: Any = llama_cpp.Llama(
            path, n_ctx=tokens, n_batch=tokens, n_threads=threads, n_threads_batch=threads, logits_all=True,
            verbose=False,
        )  # fmt: skip

    def forward(self, items: list[list[int]]) -> Iterator[np.ndarray]:
        """The logits after the last token."""
        for ids in items:
            self.model.reset()
            self.model.eval(ids)
            yield np.array(self.model.scores[len(ids) - 1], np.float32)


def _class_for(task: str) -> Any:
    import transformers

    return getattr(transformers, AUTO_CLASSES[task])


def _named(*packages: str) -> str:
    return ", ".join(f"{package} {version(package)}" for package in packages)


# What opens a model that is given ids, by the name of the runtime.
OPENERS: dict[str, Callable[[str, str, bool], tuple[Any, str]]] = {
    "transformers": open_transformers, "gptq": open_codes, "awq": open_codes, "bitnet": open_transformers,
    "gguf": open_gguf,
}  # fmt: skip

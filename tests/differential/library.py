"""What the user's own library answers for a directory: sentence-transformers where it is made for the task, else
transformers. One item at a time, so that no answer depends on padding.
"""

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import load_file
from sentence_transformers import CrossEncoder, SentenceTransformer
from torch import nn

from bitwright.checkpoints.formats import read_checkpoint
from bitwright.families.tasks import AUTO_CLASSES
from bitwright.files.directory import ModelDirectory
from bitwright.kernels.reference import quantize_rows
from bitwright.numerics.arrays import as_torch
from bitwright.numerics.linear import QuantizedLinear
from bitwright.numerics.spec import QuantSpec
from tests.differential import vocabulary
from tests.differential.layouts import EMBEDDING, Layout

Item = str | tuple[str, str]
Answer = tuple[list[int], np.ndarray]  # the ids that are fed, and the output
_ASKED = {"prompt_name": "query", "prompt": "hello: ", "normalize_embeddings": True, "truncate_dim": 8}
_FLOAT = {"dtype": torch.float32}  # whatever the file holds, as Bitwright loads float models


@dataclass(frozen=True, slots=True)
class Library:
    """hf: the transformers module inside. ask: the answer for an item. prompted: whether a prompt precedes texts that
    come without one. pads_left: where its tokenizer pads. other: methods that a model of ours may have too, by name."""

    hf: nn.Module
    ask: Callable[[Item], Answer]
    pads_left: bool
    prompted: bool = False
    other: dict[str, Callable[..., np.ndarray]] = field(default_factory=dict)

    def answers(self, items: list[Item]) -> list[Answer | None]:
        """None where the library raises an error: a text that is too long for its positions, one without tokens. Or
        where it raises none only because padding's token is in the text, which takes no position.
        """
        found: list[Answer | None] = []
        most = _positions(self.hf)
        for item in items:
            try:
                with torch.inference_mode():
                    ids, output = self.ask(item)
                found.append((ids, output) if 0 < len(ids) <= most and np.isfinite(output).all() else None)
            except Exception:
                found.append(None)
        return found


def items_of(layout: Layout) -> list[Item]:
    """What is asked: texts or pairs, as the task has it."""
    return list(vocabulary.PAIRS if layout.get("items") == "pairs" else vocabulary.TEXTS)


def asked_of(layout: Layout) -> dict[str, Any]:
    """What `encode` is told beside the texts."""
    asked = layout.get("sentence.asked")
    return {} if asked is None else {asked: _ASKED[asked]}


def open_library(layout: Layout, path: Path) -> Library:
    """Raises whatever the library raises on the directory."""
    if layout["task"] == EMBEDDING:
        return _sentence_transformer(path, asked_of(layout))
    if layout.get("labels") == 1 and layout["items"] == "pairs":
        return _cross_encoder(path)
    return _transformers(path / layout.get("cross.folder", ""), layout["task"], reranks=_is_cross_encoder(layout))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without progress bars, and without what the libraries log, warn of, or print from Rust."""
    transformers.logging.set_verbosity(transformers.logging.CRITICAL)
    transformers.logging.disable_progress_bar()
    level, kept = logging.root.manager.disable, [os.dup(stream) for stream in (1, 2)]
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), open(os.devnull, "w") as nowhere:
            warnings.simplefilter("ignore")
            sys.stdout.flush()
            for stream in (1, 2):
                os.dup2(nowhere.fileno(), stream)
            yield
    finally:
        for stream, copy in zip((1, 2), kept, strict=True):
            os.dup2(copy, stream)
            os.close(copy)
        logging.disable(level)


def _sentence_transformer(path: Path, asked: dict[str, Any]) -> Library:
    model = SentenceTransformer(str(path), device="cpu", local_files_only=True, model_kwargs=dict(_FLOAT))
    named = asked.get("prompt_name", model.default_prompt_name)
    prompt = asked.get("prompt", model.prompts.get(named))

    def ask(item: Item) -> Answer:
        fed = model.preprocess([item], prompt=prompt)
        output = model.encode([item], show_progress_bar=False, **asked)[0]
        return _real(fed), np.asarray(output, np.float64)

    def similarity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return model.similarity(a, b).double().numpy()

    assert model.transformers_model is not None
    return Library(model.transformers_model, ask, _pads_left(model.tokenizer), bool(prompt), {"similarity": similarity})


def _cross_encoder(path: Path) -> Library:
    model = CrossEncoder(str(path), device="cpu", local_files_only=True, model_kwargs=dict(_FLOAT))

    def ask(item: Item) -> Answer:
        score = model.predict([item], activation_fn=nn.Identity(), show_progress_bar=False)
        return _real(model.preprocess([item])), np.asarray(score, np.float64).reshape(-1)

    def predict(pairs: list[Item]) -> np.ndarray:
        return np.asarray([model.predict([pair], show_progress_bar=False)[0] for pair in pairs], np.float64)

    assert model.transformers_model is not None
    return Library(model.transformers_model, ask, _pads_left(model.tokenizer), other={"predict": predict})


def _is_cross_encoder(layout: Layout) -> bool:
    return layout.get("labels") == 1 or layout.get("cross.activation") is not None


def _transformers(path: Path, task: str, *, reranks: bool) -> Library:
    """reranks: whether the model is one that CrossEncoder runs on pairs; its texts are cut where those are."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
    auto = getattr(transformers, AUTO_CLASSES[task])
    model = auto.from_pretrained(path, local_files_only=True, **_FLOAT).eval()

    if reranks:
        tokenizer.model_max_length = min(tokenizer.model_max_length, model.config.max_position_embeddings)

    def ask(item: Item) -> Answer:
        texts = (item,) if isinstance(item, str) else item
        fed = tokenizer(*texts, truncation=True, return_tensors="pt")
        out = model(**fed)
        spans = task == "question-answering"
        found = torch.stack((out.start_logits[0], out.end_logits[0])) if spans else out.logits[0]
        return _real(fed), found.double().numpy()

    return Library(model, ask, _pads_left(tokenizer))


def _pads_left(tokenizer: Any) -> bool:
    return bool(tokenizer.padding_side == "left")


def _real(fed: Any) -> list[int]:
    """The ids of the first row, without padding."""
    mask = fed.get("attention_mask", torch.ones_like(fed["input_ids"]))
    return [int(i) for i, real in zip(fed["input_ids"][0], mask[0], strict=True) if real]


def take_weights(library: Library, result: Path) -> None:
    """Give the library's module the weights of a result, dequantized, and round the inputs of its quantized linears as
    the result says.

    Raises:
        LookupError: a quantized module of the result that the library's does not have.
    """
    directory = ModelDirectory(result)
    checkpoint = read_checkpoint(directory) if directory.is_quantized else None
    parameters = dict(library.hf.named_parameters())
    modules = dict(library.hf.named_modules())
    prefix = f"{getattr(library.hf, 'base_model_prefix', '')}."
    with torch.no_grad():
        for file in directory.weight_files:
            for stored, tensor in load_file(file).items():
                name = _named(stored, parameters, prefix, default="")
                if name and parameters[name].shape == tensor.shape and tensor.is_floating_point():
                    parameters[name].copy_(tensor)
        for stored, pending in ({} if checkpoint is None else checkpoint.linears).items():
            linear = pending.load().torch()
            module = modules[_named(stored, modules, prefix)]
            weight, bias = linear.effective()
            module.weight.copy_(weight)
            if bias is not None:
                module.bias.copy_(bias)
            module.register_forward_pre_hook(_rounding(linear))
        for stored in () if checkpoint is None else checkpoint.tables:
            codes, scale = checkpoint.table(stored)
            modules[_named(stored, modules, prefix)].weight.copy_(as_torch(codes) * as_torch(scale)[:, None])


def compute_in_bf16(library: Library) -> None:
    """From now on, what a module of the library's puts out is rounded to bf16; the linears multiply what they did."""

    def rounded(out: Any) -> Any:
        if isinstance(out, torch.Tensor):
            return out.bfloat16().float() if out.is_floating_point() else out
        return tuple(map(rounded, out)) if type(out) is tuple else out

    for module in library.hf.modules():
        module.register_forward_hook(lambda module, given, out: rounded(out))


def _positions(hf: nn.Module) -> float:
    """The most tokens that a table of positions holds; infinity without one that begins after padding's."""
    tables = (module for name, module in hf.named_modules() if name.endswith("position_embeddings"))
    rows = (table.num_embeddings - table.padding_idx - 1 for table in tables if getattr(table, "padding_idx", None))
    return min(rows, default=float("inf"))


def _named(stored: str, known: Any, prefix: str, default: str | None = None) -> str:
    for name in (stored, prefix + stored, stored.removeprefix(prefix)):
        if name in known:
            return name
    if default is None:
        raise LookupError(f"{stored} of the result is not in the library's module")
    return default


def _rounding(linear: QuantizedLinear) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], tuple[torch.Tensor, ...]]:
    """A hook that rounds inputs as the reference does."""
    spec: QuantSpec | None = linear.input_spec

    def hook(module: nn.Module, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        if spec is None:
            return given
        x = given[0]
        codes, scale, zero = quantize_rows(linear.seen(x.reshape(-1, x.shape[-1]).float()), spec)
        return (((codes.float() - zero) * scale).view_as(x),)

    return hook

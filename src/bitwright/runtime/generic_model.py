"""`GenericModel`: a transformers module, float or with our linears in it."""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from bitwright.errors import InputError, ModelError, foreign
from bitwright.evaluate.logits import token_outputs
from bitwright.families import architecture_of
from bitwright.files.pooling import Pooling, read_pooling
from bitwright.files.tokenizer import refuse_surrogates
from bitwright.kernels import dispatch
from bitwright.models.forward import forward
from bitwright.models.load import LoadedModel
from bitwright.models.pool_tokens import pool_tokens
from bitwright.runtime import encoding
from bitwright.runtime.changes import Changes, apply_changes
from bitwright.runtime.items import Tokens, cut_all
from bitwright.runtime.swap import set_compute

_TOKENS_AT_ONCE = 1024  # of a language model: their logits, float32 times the vocabulary, are in memory together


@dataclass(slots=True)
class GenericModel:
    """A `Model` that has the Hugging Face forward.

    hf: the transformers module, in eval mode; for a quantized checkpoint its linears are ours.
    backend: what runs the linears: "torch" (float) or "kernels:<isa>".
    max_tokens: longer texts are cut there, as the tokenizer and the model say.
    """

    hf: nn.Module
    tokenizer: Any
    task: str
    pooling: Pooling
    max_tokens: int
    backend: str
    path: Path

    encode = encoding.encode
    tokenize = encoding.tokenize

    def __call__(self, **inputs: Any) -> Any:
        """The Hugging Face forward, without gradients."""
        with torch.inference_mode():
            return self.hf(**inputs)

    @property
    def n_types(self) -> int:
        """Token types that the model has; 1 where it knows of none."""
        said = getattr(self.hf.config, "type_vocab_size", 1)  # anything, where the family has no types
        return max(said, 1) if isinstance(said, int) else 1

    @property
    def width(self) -> int | None:
        """Values of an embedding, or logits of a text; None where outputs are as long as the items."""
        config: Any = self.hf.config
        if self.task == "embedding":
            return len(self.pooling.modes) * int(getattr(config, "hidden_size", 0))
        return int(config.num_labels) if self.task == "sequence-classification" else None

    @property
    def tokens_at_once(self) -> int | None:
        """As `Model` says: a language model is not padded."""
        return _TOKENS_AT_ONCE if self.task == "text-generation" else None

    @property
    def generic(self) -> "GenericModel":
        """Itself."""
        return self

    @property
    def folded(self) -> int:
        """None: every linear runs."""
        return 0

    def read(self, first: list[str], second: list[str] | None, *, typed: bool, limit: int | None) -> Tokens:
        """As `Model.read`."""
        return read_texts(self, first, second, typed=typed, limit=limit)

    def run(self, batches: Sequence[Tokens], threads: int | None = None) -> Iterator[Sequence[np.ndarray]]:
        """As `Model.run`."""
        refuse_threads(threads)
        for tokens in batches:
            ids_BT, mask_BT, types_BT = self._padded(tokens)
            if self.task == "text-generation":
                yield next_token_rows(self.logits(ids_BT), ids_BT)
                continue
            types = {} if types_BT is None else {"token_type_ids": types_BT}
            with forward(self.path):
                out = self(input_ids=ids_BT, attention_mask=mask_BT, **types)
            if self.task == "embedding":
                yield list(pool_tokens(out.last_hidden_state.float(), mask_BT, self.pooling).numpy())
            else:
                yield _HEADS[self.task](out, mask_BT.bool())

    def logits(self, ids_BT: Tensor) -> Tensor:
        """As `Model.logits`."""
        with forward(self.path):
            logits: Tensor = self(input_ids=ids_BT, use_cache=False).logits
        return logits

    def changed(self, changes: Changes) -> "GenericModel":
        """A copy of a float model with the changes made, whose linears run as those of a loaded checkpoint do."""
        hf, config = copy.deepcopy(self.hf), cast(Any, self.hf.config)
        apply_changes(hf, architecture_of(config.model_type), changes)
        if not changes.swaps:
            return replace(self, hf=hf)
        set_compute(hf, "auto")
        return replace(self, hf=hf, backend=f"kernels:{dispatch.active_isa()}")

    def _padded(self, tokens: Tokens) -> tuple[Tensor, Tensor, Tensor | None]:
        """Ids, mask and types if there are some, int64 (B, T)."""
        types = tokens.types
        if len({len(ids) for ids in tokens.ids}) == 1:
            ids_BT = torch.tensor(tokens.ids)
            return ids_BT, torch.ones_like(ids_BT), None if types is None else torch.tensor(types)
        if self.tokenizer is None:
            raise ModelError(f"{self.path}: has no tokenizer, whose padding different lengths need; use batch_size=1")
        given = {"input_ids": tokens.ids} | ({} if types is None else {"token_type_ids": types})
        with foreign(f"{self.path}: the tokenizer cannot pad; give batch_size=1", ModelError):
            batch = self.tokenizer.pad(given, return_tensors="pt", return_attention_mask=True)
            return batch["input_ids"], batch["attention_mask"], batch.get("token_type_ids")


def read_texts(model: Any, first: list[str], second: list[str] | None, *, typed: bool, limit: int | None) -> Tokens:
    """`Model.read` with a tokenizer of transformers. Types are those of its file, also where its class hides them."""
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise ModelError(f"{model.path}: has no tokenizer that transformers can build; give token ids instead")
    with foreign(f"{model.path}: the tokenizer fails on these texts", ModelError):
        try:
            found = tokenizer(first, second, return_token_type_ids=typed, verbose=False)
        except TypeError:
            refuse_surrogates(first, second)
            raise
    if found.encodings is not None:
        return cut_all(found.encodings, limit, tokenizer.truncation_side, typed=typed)
    if limit is not None:  # a tokenizer of Python
        found = tokenizer(first, second, return_token_type_ids=typed, truncation=True, max_length=limit)
    return Tokens(found["input_ids"], found["token_type_ids"] if typed else None)


def refuse_threads(threads: int | None) -> None:
    """Raises:
    InputError: threads for a call of a model that runs on torch.
    """
    if threads is not None:
        raise InputError(f"threads = {threads}: this model runs on torch, whose threads torch.set_num_threads sets")


def next_token_rows(logits_BTV: Tensor, ids_BT: Tensor) -> list[np.ndarray]:
    """Per sequence, float32 (2, T − 1): NLL in nats of each token after the first, and the id held most likely."""
    return [token_outputs(logits, ids) for logits, ids in zip(logits_BTV, ids_BT.tolist(), strict=True)]


def _class_rows(out: Any, real_BT: Tensor) -> list[np.ndarray]:
    return list(out.logits.float().numpy())


def _token_rows(out: Any, real_BT: Tensor) -> list[np.ndarray]:
    return [logits[keep].float().numpy() for logits, keep in zip(out.logits, real_BT, strict=True)]


def _span_rows(out: Any, real_BT: Tensor) -> list[np.ndarray]:
    both_B2T = torch.stack((out.start_logits, out.end_logits), dim=1)
    return [logits[:, keep].float().numpy() for logits, keep in zip(both_B2T, real_BT, strict=True)]


# What `encode` gives of a head's outputs for a batch; padding is left out.
_HEADS: dict[str, Callable[[Any, Tensor], list[np.ndarray]]] = {
    "sequence-classification": _class_rows,
    "token-classification": _token_rows,
    "question-answering": _span_rows,
}


def float_model(loaded: LoadedModel) -> GenericModel:
    """A source model, as loaded, ready to run in float."""
    pooling = read_pooling(loaded.directory)
    return GenericModel(loaded.model, loaded.tokenizer, loaded.task, pooling, loaded.max_tokens, "torch", loaded.path)

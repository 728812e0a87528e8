"""`Model`: a float or quantized model that is ready to run."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bitwright.engine.executor import check_count
from bitwright.errors import ModelError, NumericsError
from bitwright.evaluate.logits import token_outputs
from bitwright.files.pooling import Pooling, read_pooling
from bitwright.files.tokenizer import cut, refuse_surrogates
from bitwright.models.load import LoadedModel
from bitwright.models.pool import pool
from bitwright.runtime.items import (
    Items,
    Tokens,
    Track,
    check_ids,
    check_types,
    refuse_long,
    refuse_types,
    texts_of,
)

_TOKENS_AT_ONCE = 1024  # of a language model: their logits, float32 times the vocabulary, are in memory together


@dataclass(slots=True)
class Model:
    """A model with the Hugging Face forward and `encode`.

    hf: the transformers module, in eval mode; for a quantized checkpoint its linears are ours.
    task: what it was trained for; it decides what `encode` returns.
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

    def __call__(self, **inputs: Any) -> Any:
        """The Hugging Face forward, without gradients."""
        with torch.inference_mode():
            return self.hf(**inputs)

    def encode(
        self, items: Items, *, types: Sequence[Sequence[int]] | None = None, batch_size: int = 32,
        truncate: bool = True, track: Track = iter,
    ) -> np.ndarray | list[np.ndarray]:  # fmt: skip
        """What the model makes of each text, each pair (text, text), or each sequence of token ids.

        Embedding models: float32 (n, H), pooled and normalised as the model's own sentence-transformers files say.
        Sequence classifiers: logits, float32 (n, labels). Token classifiers: a list of n arrays (tokens, labels);
        question answering: a list of n arrays (2, tokens), the start and end logits. Language models: a list of n
        arrays (2, tokens − 1): the negative log-likelihood of each token after the first, in nats, and the id of the
        token held most likely in its place.

        Items are batched by length, so that little of the work is padding, and none of a language model's; the order of
        the result is that of `items`. Texts are cut at `max_tokens`, of a pair the longer one first. The tokens of a
        pair have the types that the tokenizer gives them, if the model has more than one.

        Args:
            truncate: cut texts that are too long, instead of refusing them.
            types: of the tokens of each item, where items are ids; by default all of type 0.
            track: wraps the loop over batches, for a progress bar.

        Raises:
            InputError: `items` is a single string, or holds something else than `Items` says, or ids that are more than
                `max_tokens`; a text that is longer, unless it may be cut; types of texts, not one for each id, or that
                the model does not have; batch_size < 1.
            ModelError: the directory has no tokenizer, and texts or different lengths need one.
            NumericsError: the model produced NaN or infinity.
        """
        tokens = self._tokens(items, types, batch_size, truncate)
        order = sorted(range(len(tokens.ids)), key=lambda i: (-len(tokens.ids[i]), i))
        rows: list[np.ndarray] = [np.empty(0, dtype=np.float32)] * len(order)
        for chosen in track(list(self._batches([len(tokens.ids[i]) for i in order], order, batch_size))):
            for i, row in zip(chosen, self.rows(*self._padded(tokens.of(chosen))), strict=True):
                if not np.isfinite(row).all():
                    raise NumericsError(
                        f"{self.path}: the output for text {i} has {int((~np.isfinite(row)).sum())} values of "
                        f"{row.size} that are NaN or infinite"
                    )
                rows[i] = row
        if self.task in ("embedding", "sequence-classification"):
            return np.stack(rows) if rows else np.empty((0, 0), dtype=np.float32)
        return rows

    def tokenize(self, items: Items, *, batch_size: int = 32) -> list[list[int]]:
        """Token ids of each text or pair, special tokens included, cut at `max_tokens`; ids as they are.

        Raises as `encode`.
        """
        return self._tokens(items, None, batch_size, True).ids

    def _tokens(self, items: Items, types: Sequence[Sequence[int]] | None, batch_size: int, truncate: bool) -> Tokens:
        check_count("batch_size", batch_size)
        texts, n_types = texts_of(items), self._n_types
        if texts is None:
            return check_types(types, check_ids(items, self.max_tokens), n_types)
        refuse_types(types)
        if self.tokenizer is None:
            raise ModelError(f"{self.path}: has no tokenizer that transformers can build; give token ids instead")
        # The types that the tokenizer's file gives, also where its class would not hand them out.
        typed = texts[1] is not None and n_types > 1
        try:
            found = self.tokenizer(*texts, return_token_type_ids=typed, verbose=False)
        except TypeError:
            refuse_surrogates(*texts)
            raise
        if truncate and found.encodings is not None:
            side = self.tokenizer.truncation_side
            rows = [cut(encoding, self.max_tokens, side, typed=typed) for encoding in found.encodings]
            return check_types([row or [] for _, row in rows] if typed else None, [row for row, _ in rows], n_types)
        if truncate:  # a tokenizer of Python
            limit = {"truncation": True, "max_length": self.max_tokens}
            found = self.tokenizer(*texts, return_token_type_ids=typed, **limit)
        refuse_long((len(ids) > self.max_tokens for ids in found["input_ids"]), self.max_tokens)
        return check_types(found["token_type_ids"] if typed else None, found["input_ids"], n_types)

    @property
    def _n_types(self) -> int:
        """Token types that the model has; 1 where it knows of none."""
        return max(int(getattr(self.hf.config, "type_vocab_size", 1)), 1)

    def _batches(self, lengths: Sequence[int], order: Sequence[int], batch_size: int) -> Iterable[Sequence[int]]:
        """Cut `order`, with these lengths in tokens, into batches; those of a language model are of one length."""
        start = 0
        while start < len(order):
            end = start + batch_size
            if self.task == "text-generation":
                end = min(end, start + max(_TOKENS_AT_ONCE // lengths[start], 1))
                end = next((i for i in range(start, end) if i == len(order) or lengths[i] != lengths[start]), end)
            yield order[start:end]
            start = end

    def _padded(self, tokens: Tokens) -> tuple[Tensor, Tensor, Tensor | None]:
        """Ids, mask and types if there are some, int64 (B, T)."""
        types = tokens.types
        if len({len(ids) for ids in tokens.ids}) == 1:
            ids_BT = torch.tensor(tokens.ids)
            return ids_BT, torch.ones_like(ids_BT), None if types is None else torch.tensor(types)
        if self.tokenizer is None:
            raise ModelError(f"{self.path}: has no tokenizer, whose padding different lengths need; use batch_size=1")
        given = {"input_ids": tokens.ids} | ({} if types is None else {"token_type_ids": types})
        batch = self.tokenizer.pad(given, return_tensors="pt")
        return batch["input_ids"], batch["attention_mask"], batch.get("token_type_ids")

    def logits(self, ids_BT: Tensor) -> Tensor:
        """The logits of a language model for sequences of equal length, in the dtype that it computes in: (B, T, V)."""
        logits: Tensor = self(input_ids=ids_BT, use_cache=False).logits
        return logits

    def rows(self, ids_BT: Tensor, mask_BT: Tensor, types_BT: Tensor | None = None) -> list[np.ndarray]:
        """What `encode` gives for each sequence of a batch of token ids with its 0/1 mask: float32 arrays.

        types_BT: of tokens; None for all of type 0.
        Sequences of a language model have one length; the mask is not looked at.
        """
        if self.task == "text-generation":
            return next_token_rows(self.logits(ids_BT), ids_BT)
        types = {} if types_BT is None else {"token_type_ids": types_BT}
        out = self(input_ids=ids_BT, attention_mask=mask_BT, **types)
        if self.task == "embedding":
            return list(pool(out.last_hidden_state.float(), mask_BT, self.pooling).numpy())
        if self.task == "sequence-classification":
            return list(out.logits.float().numpy())
        if self.task == "token-classification":
            per_token, real = out.logits, mask_BT.bool()
            return [logits[keep].float().numpy() for logits, keep in zip(per_token, real, strict=True)]
        per_token = torch.stack((out.start_logits, out.end_logits), dim=1)
        return [logits[:, keep].float().numpy() for logits, keep in zip(per_token, mask_BT.bool(), strict=True)]


def next_token_rows(logits_BTV: Tensor, ids_BT: Tensor) -> list[np.ndarray]:
    """Per sequence, float32 (2, T − 1): NLL in nats of each token after the first, and the id held most likely."""
    return [token_outputs(logits, ids) for logits, ids in zip(logits_BTV, ids_BT.tolist(), strict=True)]


def float_model(loaded: LoadedModel) -> Model:
    """A source model, as loaded, ready to run in float."""
    return Model(
        loaded.model,
        loaded.tokenizer,
        loaded.task,
        read_pooling(loaded.directory),
        loaded.max_tokens,
        "torch",
        loaded.path,
    )

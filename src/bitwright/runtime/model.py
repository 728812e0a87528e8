"""`Model`: a float or quantized model that is ready to run."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bitwright.errors import InputError, ModelError, NumericsError
from bitwright.models.load import LoadedModel, max_tokens
from bitwright.models.pooling import Pooling, pool, read_pooling

Track = Callable[[Iterable[Any]], Iterable[Any]]


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
        self, texts: Sequence[str], *, batch_size: int = 32, track: Track = iter
    ) -> np.ndarray | list[np.ndarray]:
        """What the model makes of each text.

        Embedding models: float32 (n, H), pooled and normalised as the model's own sentence-transformers files say.
        Sequence classifiers: logits, float32 (n, labels). Token classifiers: a list of n arrays (tokens, labels);
        question answering: a list of n arrays (2, tokens), the start and end logits.

        Texts are batched by length, so that little of the work is padding; the order of the result is that of `texts`.

        Args:
            track: wraps the loop over batches, for a progress bar.

        Raises:
            InputError: `texts` is a single string, or holds something that is no string; batch_size < 1.
            ModelError: the directory has no tokenizer.
            NumericsError: the model produced NaN or infinity.
        """
        tokens = self.tokenize(texts, batch_size=batch_size)
        order = sorted(range(len(tokens)), key=lambda i: (-len(tokens[i]), i))
        rows: list[np.ndarray] = [np.empty(0, dtype=np.float32)] * len(tokens)
        for start in track(range(0, len(order), batch_size)):
            chosen = order[start : start + batch_size]
            batch = self.tokenizer.pad({"input_ids": [tokens[i] for i in chosen]}, return_tensors="pt")
            for i, row in zip(chosen, self.rows(batch["input_ids"], batch["attention_mask"]), strict=True):
                if not np.isfinite(row).all():
                    raise NumericsError(
                        f"{self.path}: the output for text {i} has {int((~np.isfinite(row)).sum())} values of "
                        f"{row.size} that are NaN or infinite"
                    )
                rows[i] = row
        if self.task in ("embedding", "sequence-classification"):
            return np.stack(rows) if rows else np.empty((0, 0), dtype=np.float32)
        return rows

    def tokenize(self, texts: Sequence[str], *, batch_size: int = 32) -> list[list[int]]:
        """Token ids of each text, special tokens included, cut at `max_tokens`. Raises as `encode`."""
        if isinstance(texts, str):
            raise InputError("encode takes a list of texts, this is one string; pass [text]")
        wrong = next((i for i, text in enumerate(texts) if not isinstance(text, str)), None)
        if wrong is not None:
            raise InputError(f"text {wrong} is {type(texts[wrong]).__name__}, not str")
        if batch_size < 1:
            raise InputError(f"batch_size = {batch_size}: at least 1")
        if self.tokenizer is None:
            raise ModelError(
                f"{self.path}: has no tokenizer that transformers can build; call the model with token ids"
            )
        if not texts:
            return []
        return list(self.tokenizer(list(texts), truncation=True, max_length=self.max_tokens)["input_ids"])

    def rows(self, ids_BT: Tensor, mask_BT: Tensor) -> list[np.ndarray]:
        """What `encode` gives for each sequence of a padded batch of token ids with its 0/1 mask: float32 arrays."""
        out = self(input_ids=ids_BT, attention_mask=mask_BT)
        if self.task == "embedding":
            return list(pool(out.last_hidden_state.float(), mask_BT, self.pooling).numpy())
        if self.task == "sequence-classification":
            return list(out.logits.float().numpy())
        if self.task == "token-classification":
            per_token, real = out.logits, mask_BT.bool()
            return [logits[keep].float().numpy() for logits, keep in zip(per_token, real, strict=True)]
        per_token = torch.stack((out.start_logits, out.end_logits), dim=1)
        return [logits[:, keep].float().numpy() for logits, keep in zip(per_token, mask_BT.bool(), strict=True)]


def float_model(loaded: LoadedModel) -> Model:
    """A source model, as loaded, ready to run in float."""
    return Model(
        loaded.model, loaded.tokenizer, loaded.task, read_pooling(loaded.path), max_tokens(loaded), "torch", loaded.path
    )

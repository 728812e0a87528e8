"""The module behind `integrations.sentence_transformers.load`, and the two models that are made of it."""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.base.modules import InputModule
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from bitwright.errors import InputError
from bitwright.files.opening import open_path
from bitwright.models.build import load_tokenizer
from bitwright.runtime.encoding import check_output, refuse_empty, tokens_of
from bitwright.runtime.items import Tokens

# Output of a task -> the name that sentence-transformers has for it.
_OUTPUTS = {"embedding": "sentence_embedding", "sequence-classification": "scores"}


def sentence_transformer(model: Any) -> SentenceTransformer:
    """An embedding model, of any `Model` that `runtime.load` gives."""
    sentences = model.sentences
    return SentenceTransformer(
        modules=[EngineModule(model)], device="cpu", prompts=dict(sentences.prompts),
        default_prompt_name=sentences.default_prompt, similarity_fn_name=sentences.similarity,
        truncate_dim=sentences.truncate_dim,
    )  # fmt: skip


def cross_encoder(model: Any) -> CrossEncoder:
    """A reranker or a classifier, of any `Model` that `runtime.load` gives."""
    sentences = model.sentences
    activation = None if sentences.activation is None else getattr(nn, sentences.activation)()
    return _CrossEncoder(
        modules=[EngineModule(model)], device="cpu", activation_fn=activation, prompts=dict(sentences.prompts),
        default_prompt_name=sentences.default_prompt,
    )  # fmt: skip


class EngineModule(InputModule):  # type: ignore[misc]
    """Texts in, embeddings or scores out: the first and only module of a pipeline.

    model: what `bitwright.load` gave. max_seq_length: longer texts are cut there; at most what the model takes.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.max_seq_length: int = model.max_tokens
        self._tokenizer: Any = None

    @property
    def tokenizer(self) -> Any:
        """The transformers tokenizer; texts are not read with it."""
        if self._tokenizer is None:
            self._tokenizer, _ = load_tokenizer(open_path(self.model.path), False, self.model.sentences)
        return self._tokenizer

    @property
    def num_labels(self) -> int:
        """Scores for each text or pair."""
        return int(self.model.width)

    def get_embedding_dimension(self) -> int | None:
        """Values of an embedding."""
        width: int | None = self.model.width
        return width

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **more: Any) -> dict[str, Any]:
        """The tokens of texts, or of pairs of texts: int64 (B, T), padded at the right.

        Raises:
            InputError: something else than texts, or settings of another module. And as `bitwright.load(…).encode`.
        """
        if unknown := {name for name, value in more.items() if value is not None} - {"task"}:
            raise InputError(f"{min(unknown)} is not known to a model of Bitwright; leave it out")
        model = self.model
        if self.max_seq_length != model.max_tokens:
            model = copy.copy(model)
            model.max_tokens = min(int(self.max_seq_length), self.model.max_tokens)
        tokens = tokens_of(model, list(inputs), prompt=prompt or "")
        refuse_empty(tokens.ids)
        features: dict[str, Any] = {"input_ids": _padded(tokens.ids)}
        features["attention_mask"] = _padded([[1] * len(ids) for ids in tokens.ids])
        if tokens.types is not None:
            features["token_type_ids"] = _padded(tokens.types)
        if tokens.skip:
            features["prompt_length"] = tokens.skip
        return features

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        """`sentence_embedding` float32 (B, values), or `scores` float32 (B, labels), beside what is given;
        `token_embeddings` float32 (B, T, H) of an embedding model once it is asked for.

        Raises:
            NumericsError: NaN or infinity.
        """
        tokens = _tokens(features)
        (rows,) = self.model.run([tokens])
        for i, row in enumerate(rows):
            check_output(row, i, self.model.path)
        found = _Features(features)
        found[_OUTPUTS[self.model.task]] = torch.from_numpy(np.stack(rows))
        if self.model.task == "embedding":
            found.unpooled = lambda: self.model.token_vectors(tokens)
        return found

    def get_config_dict(self) -> dict[str, Any]:
        """What `print(model)` shows."""
        return {"backend": self.model.backend, "max_seq_length": self.max_seq_length}

    def save(self, output_path: str, *args: Any, **options: Any) -> None:
        """Raises:
        InputError: always.
        """
        raise InputError(
            f"{self.model.path}: a model of Bitwright is not saved from here; copy its directory to {output_path}"
        )


class _CrossEncoder(CrossEncoder):  # type: ignore[misc]
    @property
    def num_labels(self) -> int:
        """Scores for each text or pair."""
        found: int = self[0].num_labels
        return found


class _Features(dict[str, Any]):
    """Outputs, of which `token_embeddings` is computed when it is looked at: few users do, and it takes a second run.

    unpooled: gives the vectors of each text's tokens.
    """

    unpooled: Any = None

    def __missing__(self, key: str) -> Tensor:
        if key != "token_embeddings" or self.unpooled is None:
            raise KeyError(key)
        vectors = [torch.from_numpy(np.ascontiguousarray(row)) for row in self.unpooled()]
        self[key] = found = pad_sequence(vectors, batch_first=True)
        return found

    def items(self) -> Any:
        """All outputs, as `output_value=None` asks for them."""
        if self.unpooled is not None:
            _ = self["token_embeddings"]
        return super().items()


def _tokens(features: dict[str, Any]) -> Tokens:
    """What `preprocess` made a batch of."""
    ids_BT = features["input_ids"]
    lengths = features.get("attention_mask", torch.ones_like(ids_BT)).sum(1).tolist()

    def rows(name: str) -> list[list[int]]:
        return [row[:n] for row, n in zip(features[name].tolist(), lengths, strict=True)]

    types = rows("token_type_ids") if "token_type_ids" in features else None
    return Tokens(rows("input_ids"), types, int(features.get("prompt_length", 0)))


def _padded(rows: list[list[int]]) -> Tensor:
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True)

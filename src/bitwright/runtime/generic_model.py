"""`GenericModel`: a transformers module, float or with our linears in it."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from bitwright.errors import InputError, ModelError, foreign
from bitwright.evaluate.logits import token_outputs
from bitwright.families import architecture_of
from bitwright.files.answers import Answers
from bitwright.files.pooling import pool_rows
from bitwright.files.sentences import Sentences, after_pooling, width_of
from bitwright.files.tokenizer import refuse_surrogates
from bitwright.generate.chat import ChatTemplates
from bitwright.kernels import dispatch
from bitwright.kernels.linear import HalfLinear, QuantEmbedding, QuantLinear
from bitwright.models.forward import forward
from bitwright.models.load import LoadedModel
from bitwright.models.pool_tokens import pool_tokens
from bitwright.runtime import encoding, scoring
from bitwright.runtime.changes import Changes, apply_changes
from bitwright.runtime.items import Tokens, check_range, cut_all
from bitwright.runtime.pickling import LoadedFrom, reduce_model
from bitwright.runtime.swap import set_compute

_TOKENS_AT_ONCE = 1024  # of a language model: their logits, float32 times the vocabulary, are in memory together


@dataclass(slots=True)
class GenericModel:
    """A `Model` that has the Hugging Face forward.

    hf: the transformers module, in eval mode; for a quantized checkpoint its linears are ours.
    backend: what runs the linears: "torch" (float) or "kernels:<isa>".
    max_tokens: longer texts are cut there, as the tokenizer and the model say.
    loaded_from: None for a model that `load` did not give: a variant, or a model in the making.
    templates: as `Model` says.
    """

    hf: nn.Module
    tokenizer: Any
    task: str
    sentences: Sentences
    max_tokens: int
    backend: str
    path: Path
    loaded_from: LoadedFrom | None = None
    templates: ChatTemplates | None = None

    encode = encoding.encode
    encode_query = encoding.encode_query
    encode_document = encoding.encode_document
    tokenize = encoding.tokenize
    similarity = scoring.similarity
    predict = scoring.predict
    rank = scoring.rank
    __reduce__ = reduce_model

    def __copy__(self) -> "GenericModel":
        """A model that shares everything with this one."""
        return replace(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> "GenericModel":
        """A model with its own modules, float parameters and tokenizer. The codes are shared, because nobody writes
        them.
        """
        exact = (
            module for module in self.hf.modules() if isinstance(module, QuantLinear | HalfLinear | QuantEmbedding)
        )
        memo |= {id(buffer): buffer for module in exact for buffer in module.buffers()}
        hf, tokenizer = copy.deepcopy((self.hf, self.tokenizer), memo)
        return replace(self, hf=hf, tokenizer=tokenizer)

    def __call__(self, **inputs: Any) -> Any:
        """The Hugging Face forward, without gradients.

        Raises:
            InputError: ids or types that the model does not have.
        """
        check_inputs(inputs, self.hf.config)
        with torch.inference_mode():
            return self.hf(**inputs)

    @property
    def vocabulary(self) -> int:
        """As `Model` says."""
        return vocabulary_of(self.hf.config)

    @property
    def n_types(self) -> int:
        """Token types that the model has; 1 where it knows of none."""
        return types_of(self.hf.config)

    @property
    def width(self) -> int | None:
        """Values of an embedding, or logits of a text; None where outputs are as long as the items."""
        return output_width(self.hf.config, self.task, self.sentences)

    @property
    def tokens_at_once(self) -> int | None:
        """As `Model` says: a language model is not padded, so that only one token of a text needs logits."""
        return _TOKENS_AT_ONCE if self.task == "text-generation" or self.sentences.answers is not None else None

    @property
    def special_ids(self) -> frozenset[int]:
        """As `Model` says."""
        return frozenset() if self.tokenizer is None else frozenset(self.tokenizer.all_special_ids)

    @property
    def generic(self) -> "GenericModel":
        """Itself."""
        return self

    @property
    def pads(self) -> bool:
        """They are, where they differ."""
        return True

    @property
    def folded(self) -> int:
        """None: every linear runs."""
        return 0

    def read(
        self, first: list[str], second: list[str] | None, *, typed: bool, limit: int | None, special: bool = True
    ) -> Tokens:  # fmt: skip
        """As `Model.read`."""
        return read_texts(self, first, second, typed=typed, limit=limit, special=special)

    def run(self, batches: Sequence[Tokens], threads: int | None = None) -> Iterator[Sequence[np.ndarray]]:
        """As `Model.run`."""
        refuse_threads(threads)
        for tokens in batches:
            if self.task == "text-generation":
                ids_BT = padded(tokens, self.hf.config)["input_ids"]
                yield next_token_rows(self.logits(ids_BT), ids_BT)
                continue
            out, mask_BT = self._forward(tokens)
            yield output_rows(out, mask_BT, self.task, self.sentences, tokens.skip)

    def _forward(self, tokens: Tokens) -> tuple[Any, Tensor]:
        """The outputs for a padded batch, and its mask."""
        inputs = padded(tokens, self.hf.config)
        more: dict[str, Any] = {} if self.sentences.mix is None else {"output_hidden_states": True}
        if self._decodes:
            more["use_cache"] = False
        if self.sentences.answers is not None and bool(inputs["attention_mask"].all()):
            more["logits_to_keep"] = 1
        with forward(self.path):
            return self(**inputs, **more), inputs["attention_mask"]

    def token_vectors(self, tokens: Tokens) -> list[np.ndarray]:
        """What pooling gets of an embedding model: float32 (T, H) of each sequence.

        Raises:
            InputError: as `Model.run`.
        """
        out, mask_BT = self._forward(tokens)
        hidden = zip(_hidden(out, self.sentences), mask_BT.bool(), strict=True)
        return [hidden_TH[real_T].numpy() for hidden_TH, real_T in hidden]

    def logits(self, ids_BT: Tensor) -> Tensor:
        """As `Model.logits`."""
        with forward(self.path):
            logits: Tensor = self(input_ids=ids_BT, use_cache=False).logits
        return logits

    def changed(self, changes: Changes) -> "GenericModel":
        """A copy of a float model with the changes. Its linears run as those of a loaded checkpoint."""
        hf, config = copy.deepcopy(self.hf), cast(Any, self.hf.config)
        apply_changes(hf, architecture_of(config.model_type), changes)
        if not changes.swaps:
            return replace(self, hf=hf, loaded_from=None)
        set_compute(hf, "auto")
        return replace(self, hf=hf, backend=f"kernels:{dispatch.active_isa()}", loaded_from=None)

    @property
    def _decodes(self) -> bool:
        """Whether the module is a language model, which keeps keys and values unless told not to."""
        return architecture_of(cast(Any, self.hf.config).model_type).decodes


def padded(tokens: Tokens, config: Any) -> dict[str, Tensor]:
    """Arguments of a forward: ids, mask, and types if there are some, int64 (B, T), padded at the right, whatever the
    tokenizer's files say: no text's positions then depend on the others of its batch, and no tokenizer is needed.
    """
    pad_id: Any = getattr(config, "pad_token_id", None)
    fill = pad_id if type(pad_id) is int and 0 <= pad_id < vocabulary_of(config) else 0
    inputs = {"input_ids": _rows_of(tokens.ids, fill)}
    inputs["attention_mask"] = _rows_of([[1] * len(ids) for ids in tokens.ids], 0)
    return inputs if tokens.types is None else inputs | {"token_type_ids": _rows_of(tokens.types, 0)}


def output_rows(out: Any, mask_BT: Tensor, task: str, sentences: Sentences, skip: int) -> list[np.ndarray]:
    """The outputs of `encode` from a forward's outputs for a padded batch.

    skip: tokens at the beginning of each text that do not count in its embedding.
    """
    if task == "embedding":
        return list(_vectors(out, mask_BT, sentences, skip))
    if sentences.answers is not None:
        return list(_scores(out.logits.float(), mask_BT, sentences.answers).numpy())
    return _HEADS[task](out, mask_BT.bool())


def _scores(logits_BTV: Tensor, mask_BT: Tensor, answers: Answers) -> Tensor:
    """The scores of texts, (B, 1), from the logits of all their tokens, padded at the right, or of the last alone."""
    last_B = mask_BT.sum(1) - 1 if logits_BTV.shape[1] > 1 else torch.zeros(len(mask_BT), dtype=torch.int64)
    scores: Tensor = answers.score(logits_BTV[torch.arange(len(last_B)), last_B])
    return scores


def _vectors(out: Any, mask_BT: Tensor, sentences: Sentences, skip: int) -> np.ndarray:
    """Embeddings, float32 (B, values)."""
    hidden_BTH, pooling = _hidden(out, sentences), sentences.pooling
    if skip:
        kept = zip(hidden_BTH, mask_BT.bool(), strict=True)
        pooled_BH = np.stack([pool_rows(hidden_TH[real_T].numpy(), pooling, skip) for hidden_TH, real_T in kept])
    else:
        pooled_BH = pool_tokens(hidden_BTH, mask_BT, pooling).numpy()
    return after_pooling(sentences, pooled_BH)


def _hidden(out: Any, sentences: Sentences) -> Tensor:
    """What is pooled, float32 (B, T, H): the last layer's outputs, or a mix of all layers'."""
    mix = sentences.mix
    if mix is None:
        hidden: Tensor = out.last_hidden_state.float()
        return hidden
    layers_LBTH = torch.stack(out.hidden_states[mix.start :]).float()
    weights_L = torch.from_numpy(mix.weights_L / mix.weights_L.sum())
    return torch.einsum("l,lbth->bth", weights_L, layers_LBTH)


def _rows_of(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
    """An int64 tensor (B, T), with shorter rows padded at the right."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[fill] * (longest - len(row))] for row in rows])


def read_texts(
    model: Any, first: list[str], second: list[str] | None, *, typed: bool, limit: int | None, special: bool = True
) -> Tokens:  # fmt: skip
    """`Model.read` with a transformers tokenizer, which may or may not give token types.

    model: whatever has a `tokenizer` and a `path`.
    """
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise ModelError(
            f"{model.path}: transformers cannot build a tokenizer from these files; give token ids instead of texts"
        )
    typed = typed and "token_type_ids" in tokenizer.model_input_names
    with foreign(f"{model.path}: the tokenizer failed on these texts", ModelError):
        try:
            found = tokenizer(
                first, second, return_token_type_ids=typed, add_special_tokens=special, verbose=False
            )  # fmt: skip
        except TypeError:
            refuse_surrogates(first, second)
            raise
    if found.encodings is not None:
        tokens = cut_all(found.encodings, limit, tokenizer.truncation_side, typed=typed)
        plain = second is None and not any(map(any, tokens.types or ()))
        return tokens._replace(types=None) if plain else tokens
    if limit is not None:  # a tokenizer of Python
        found = tokenizer(
            first, second, return_token_type_ids=typed, add_special_tokens=special, truncation=True, max_length=limit
        )  # fmt: skip
    return Tokens(found["input_ids"], found["token_type_ids"] if typed else None)


def vocabulary_of(config: Any) -> int:
    """The number of rows of a model's word table."""
    return int(config.get_text_config().vocab_size)


def types_of(config: Any) -> int:
    """The number of a model's token types; 1 if it has none."""
    said = getattr(config, "type_vocab_size", 1)  # anything, where the family has no types
    return max(said, 1) if isinstance(said, int) else 1


def output_width(config: Any, task: str, sentences: Sentences) -> int | None:
    """Values of an embedding, or logits of a text; None where outputs are as long as the items."""
    if task == "embedding":
        return width_of(sentences, int(getattr(config, "hidden_size", 0)))
    return int(config.num_labels) if task == "sequence-classification" else None


def check_inputs(inputs: Mapping[str, Any], config: Any) -> None:
    """Raises:
    InputError: ids or types that the model does not have.
    """
    check_ids_in(inputs.get("input_ids"), vocabulary_of(config), "token id")
    if getattr(config, "type_vocab_size", 0):  # without any, types are not looked at
        check_ids_in(inputs.get("token_type_ids"), types_of(config), "token type")


def check_ids_in(ids_BT: object, end: int, what: str) -> None:
    """`items.check_range` for a tensor; anything else passes.

    Raises:
        InputError: a number that is negative, or not below `end`.
    """
    if isinstance(ids_BT, Tensor) and ids_BT.numel() and not 0 <= int(ids_BT.min()) <= int(ids_BT.max()) < end:
        check_range(ids_BT.reshape(-1, ids_BT.shape[-1]).tolist(), end, what)


def refuse_threads(threads: int | None) -> None:
    """Raises:
    InputError: threads for a call of a model that runs on torch.
    """
    if threads is not None:
        raise InputError(
            f"threads = {threads}: this model runs on torch; leave threads out, and call torch.set_num_threads"
        )


def next_token_rows(logits_BTV: Tensor, ids_BT: Tensor) -> list[np.ndarray]:
    """For each sequence, float32 (2, T − 1): NLL in nats of each token after the first, and the most likely id."""
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
    templates = ChatTemplates(loaded.directory) if loaded.sentences.chat is not None else None
    return GenericModel(
        loaded.model, loaded.tokenizer, loaded.task, loaded.sentences, loaded.max_tokens, "torch", loaded.path,
        templates=templates,
    )  # fmt: skip

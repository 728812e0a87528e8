"""`encode` and `tokenize`, for every `Model`: items in, arrays or ids out. Imports no torch."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from bitwright.engine.executor import check_count
from bitwright.errors import InputError, NotFiniteError
from bitwright.progress import Track
from bitwright.runtime.items import Items, Tokens, check_ids, check_types, refuse_long, refuse_types, texts_of

if TYPE_CHECKING:
    from bitwright.runtime.model import Model


def encode(
    model: "Model", items: Items, *, types: Sequence[Sequence[int]] | None = None, batch_size: int = 32,
    threads: int | None = None, truncate: bool = True, track: Track = iter,
) -> np.ndarray | list[np.ndarray]:  # fmt: skip
    """What the model makes of each text, each pair (text, text), or each sequence of token ids.

    Embedding models: float32 (n, H), pooled and normalised as the model's own sentence-transformers files say.
    Sequence classifiers: logits, float32 (n, labels). Token classifiers: a list of n arrays (tokens, labels);
    question answering: a list of n arrays (2, tokens), the start and end logits. Language models: a list of n
    arrays (2, tokens − 1): the negative log-likelihood of each token after the first, in nats, and the id of the
    token held most likely in its place.

    Items are taken `batch_size` at a time, those of like length together, so that little or none of the work is
    padding; the result is in the order of `items`. Texts are cut at `max_tokens`, of a pair the longer one first. The
    tokens of a pair have the types that the tokenizer gives them, if the model has more than one.

    Args:
        types: of the tokens of each item, where items are ids; by default all of type 0.
        threads: of the CPU, for a model on the engine; by default the model's. Other models use torch's setting.
        truncate: cut texts that are too long, instead of refusing them.
        track: wraps the loop over batches, for a progress bar.

    Raises:
        InputError: `items` is a single string, or holds a text without tokens or what `Items` does not say, or ids or
            types that the model does not have, or more of them than `max_tokens`; a text that is longer, unless it may
            be cut; types of texts, or not one for each id; batch_size or threads < 1, or threads for a model that uses
            torch's.
        ModelError: the directory has no tokenizer, and texts or different lengths need one.
        NumericsError: the model produced NaN or infinity.
    """
    tokens = _tokens(model, items, types, batch_size, truncate)
    if [] in tokens.ids:
        raise InputError(f"text {tokens.ids.index([])} has no tokens, and this model's tokenizer adds none")
    batches = batches_of([len(ids) for ids in tokens.ids], batch_size, model.tokens_at_once)
    rows: list[np.ndarray] = [np.empty(0, np.float32)] * len(tokens.ids)
    made = model.run([tokens.of(chosen) for chosen in batches], threads)
    for chosen, found in zip(track(batches), made, strict=True):
        for i, row in zip(chosen, found, strict=True):
            if not np.isfinite(row).all():
                raise NotFiniteError(
                    f"{model.path}: the output for text {i} has {int((~np.isfinite(row)).sum())} values of {row.size} "
                    "that are NaN or infinite"
                )
            rows[i] = row
    if model.width is None:
        return rows
    return np.stack(rows) if rows else np.empty((0, model.width), np.float32)


def tokenize(model: "Model", items: Items, *, batch_size: int = 32) -> list[list[int]]:
    """Token ids of each text or pair, special tokens included, cut at `max_tokens`; ids as they are.

    Raises as `encode`.
    """
    return _tokens(model, items, None, batch_size, True).ids


def _tokens(
    model: "Model", items: Items, types: Sequence[Sequence[int]] | None, batch_size: int, truncate: bool
) -> Tokens:
    check_count("batch_size", batch_size)
    texts, n_types = texts_of(items), model.n_types
    if texts is None:
        return check_types(types, check_ids(items, model.max_tokens), n_types)
    refuse_types(types)
    typed = texts[1] is not None and n_types > 1
    tokens = model.read(*texts, typed=typed, limit=model.max_tokens if truncate else None)
    if not truncate:
        refuse_long((len(ids) > model.max_tokens for ids in tokens.ids), model.max_tokens)
    return check_types(tokens.types, tokens.ids, n_types)


def batches_of(lengths: Sequence[int], batch_size: int, tokens_at_once: int | None) -> list[list[int]]:
    """Indices of sequences with these lengths in tokens, longest first, in batches of at most `batch_size`.

    tokens_at_once: if given, the sequences of a batch have one length, and no more tokens together; but one sequence at
    least is in each.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    batches, begin = [], 0
    while begin < len(order):
        end = min(begin + batch_size, len(order))
        if tokens_at_once is not None:
            length = lengths[order[begin]]
            end = min(end, begin + max(tokens_at_once // length, 1))
            end = next((i for i in range(begin, end) if lengths[order[i]] != length), end)
        batches.append(order[begin:end])
        begin = end
    return batches

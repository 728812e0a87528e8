"""`similarity` of embeddings; `predict` and `rank` of classifiers and rerankers, as sentence-transformers has them.

Imports no torch.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bitwright.errors import InputError
from bitwright.files.pooling import unit
from bitwright.runtime.encoding import encode

if TYPE_CHECKING:
    from bitwright.runtime.model import Model


def similarity(model: "Model", first: Any, second: Any) -> np.ndarray:
    """How alike the vectors of two sets are, float32 (n, m), by the model's own measure: the cosine, unless
    config_sentence_transformers.json says "dot", "euclidean" or "manhattan"; a distance counts as its negative.

    first, second: embeddings (n, H) and (m, H); a single vector is a set of one.
    """
    a_NH, b_MH = (np.atleast_2d(np.asarray(vectors, np.float32)) for vectors in (first, second))
    if a_NH.shape[1] != b_MH.shape[1]:
        raise InputError(
            f"vectors with {a_NH.shape[1]} and {b_MH.shape[1]} values cannot be compared; give vectors of the same "
            "model"
        )
    return np.asarray(_SIMILARITIES[model.sentences.similarity](a_NH, b_MH), np.float32)


def predict(
    model: "Model", items: Any, *, activation_fn: Callable[[Any], Any] | None = None, apply_softmax: bool = False,
    convert_to_tensor: bool = False, **options: Any,
) -> Any:  # fmt: skip
    """The scores of a sequence classifier for each pair (text, text), or each text: float32 (n,) if it has one label,
    else (n, labels). Of a single pair, its score.

    Args:
        items: pairs of texts, or texts; or a single one.
        activation_fn: applied to the logits, an array (n, labels), or a torch module, which gets a tensor. By default
            what the model's files say; else the sigmoid if there is one label, and nothing if there are several.
        apply_softmax: turn the scores of several labels into shares of 1.
        convert_to_tensor: give a torch tensor instead of a numpy array.
        options: as `encode` takes them.

    Raises:
        InputError: a model for another task; as `encode`. TypeError: as `encode`.
    """
    if model.task != "sequence-classification":
        raise InputError(
            f"predict is only for classifiers and rerankers, and this model's task is {model.task}; use encode"
        )
    single = isinstance(items, str) or _is_one_pair(items)
    logits = encode(model, [items] if single else items, **options)
    if len(logits) == 0:
        scores = np.empty((0,) if model.width == 1 else (0, model.width or 0), np.float32)
    else:
        scores = np.asarray(_activated(model, np.asarray(logits, np.float32), activation_fn), np.float32)
        scores = scores[:, 0] if scores.ndim == 2 and scores.shape[1] == 1 else scores
    if apply_softmax and scores.ndim > 1:
        shares = np.exp(scores - scores.max(axis=1, keepdims=True))
        scores = shares / shares.sum(axis=1, keepdims=True)
    scores = scores[0] if single else scores
    if not convert_to_tensor:
        return scores
    import torch

    return torch.as_tensor(scores)


def rank(
    model: "Model", query: str, documents: Sequence[str], *, top_k: int | None = None, return_documents: bool = False,
    **options: Any,
) -> list[dict[str, Any]]:  # fmt: skip
    """The documents in the order in which a reranker holds them to answer the query, best first.

    Returns:
        {"corpus_id": place among `documents`, "score"} each, with the "text" if `return_documents`.

    Raises:
        InputError: a model of several labels; as `predict`.
    """
    if model.task != "sequence-classification" or model.width != 1:
        raise InputError("rank is only for rerankers, which give one score per pair; use predict for this model")
    texts = list(documents)
    scores = predict(model, [(query, text) for text in texts], **options)
    order = sorted(range(len(texts)), key=lambda i: -float(scores[i]))[:top_k]
    shown = [{"text": text} if return_documents else {} for text in texts]
    return [{"corpus_id": i, "score": float(scores[i])} | shown[i] for i in order]


def _is_one_pair(items: Any) -> bool:
    return isinstance(items, list | tuple) and len(items) == 2 and all(isinstance(item, str) for item in items)


def _activated(model: "Model", logits_NL: np.ndarray, given: Callable[[Any], Any] | None) -> Any:
    if given is None:
        from bitwright.files.after_pooling import ACTIVATIONS

        default = "Sigmoid" if logits_NL.shape[1] == 1 else "Identity"
        return ACTIVATIONS[model.sentences.activation or default](logits_NL)
    if hasattr(given, "forward"):  # a torch module
        import torch

        return torch.as_tensor(given(torch.from_numpy(logits_NL))).detach().numpy()
    return given(logits_NL)


def _euclidean(a_NH: np.ndarray, b_MH: np.ndarray) -> np.ndarray:
    squares_NM = np.square(a_NH).sum(1)[:, None] + np.square(b_MH).sum(1) - 2 * a_NH @ b_MH.T
    distance: np.ndarray = -np.sqrt(np.maximum(squares_NM, 0))
    return distance


_SIMILARITIES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "cosine": lambda a_NH, b_MH: unit(a_NH) @ unit(b_MH).T,
    "dot": lambda a_NH, b_MH: a_NH @ b_MH.T,
    "euclidean": _euclidean,
    "manhattan": lambda a_NH, b_MH: -np.stack([np.abs(a_NH - b_H).sum(1) for b_H in b_MH], axis=1),
}

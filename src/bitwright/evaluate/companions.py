"""Companions: other distances between the two models' outputs, shown beside the loss."""

import numpy as np

from bitwright.evaluate import metrics
from bitwright.evaluate.agreement import LABELS, SCORES
from bitwright.evaluate.kinds import Kind, Outputs, Pairs, Ranking, pair_cosines, scores, spread_pairs
from bitwright.evaluate.statistic import FloatArray

_MAX_TEXTS = 1000


def companions(kind: Kind, float_outputs: Outputs, quant_outputs: Outputs) -> dict[str, float]:
    """The distances by name; none for a custom metric. With more than a thousand texts, a thousand evenly spread ones
    count.

    Pairs with two labels add how well the cosine, or the score, of either model tells these apart: `roc_auc` and
    `best_accuracy`. Scored pairs that share queries add `ndcg_at_10` of the ranking within each query.
    Language models: `next_token_agreement`, the share of the tokens after which both expect the same one, and
    `mean_nll_difference`, how much more surprised the quantized one is, in nats per token.
    """
    if kind.outputs == "tokens":
        return _token_companions(float_outputs, quant_outputs)
    kept = np.unique(np.linspace(0, len(float_outputs) - 1, _MAX_TEXTS).astype(int))
    left, right = (
        [np.asarray(outputs[i], dtype=np.float64) for i in kept] for outputs in (float_outputs, quant_outputs)
    )
    if kind.outputs == "embeddings":
        told_apart = {}
        if isinstance(kind, Pairs):
            told_apart = _label_companions(kind.gold_P, kind.cosines(float_outputs), kind.cosines(quant_outputs))
        return told_apart | _embedding_companions(np.stack(left), np.stack(right))
    if kind.outputs == "logits":
        told_apart = {}
        if isinstance(kind, Ranking):
            said = scores(float_outputs), scores(quant_outputs)
            told_apart = _label_companions(kind.gold_U, *said) | _query_companions(kind, *said)
        return told_apart | _logit_companions(left, right, kind)
    return {}


def _label_companions(gold_P: FloatArray, float_P: FloatArray, quant_P: FloatArray) -> dict[str, float]:
    """Distances for pairs with two labels; none for others. float_P, quant_P: each model's score for each pair."""
    labels = np.unique(gold_P)
    if len(labels) != 2:
        return {}
    positive_P = gold_P == labels[1]
    found = {}
    for model, said_P in (("float", float_P), ("quantized", quant_P)):
        found[f"roc_auc_{model}"] = metrics.roc_auc(positive_P, said_P)
        found[f"best_accuracy_{model}"] = metrics.best_accuracy(positive_P, said_P)
    return found


def _query_companions(kind: Ranking, float_P: FloatArray, quant_P: FloatArray) -> dict[str, float]:
    """The mean nDCG@10 over queries that have several pairs with one relevant; nothing if there are no such queries."""
    _, start_Q, size_Q = np.unique(kind.query_U, return_index=True, return_counts=True)
    queries = [np.flatnonzero(kind.query_U == kind.query_U[i]) for i in start_Q[size_Q > 1]]
    queries = [rows for rows in queries if kind.gold_U[rows].max() > 0]
    if not queries or kind.gold_U.min() < 0:
        return {}
    return {
        f"ndcg_at_10_{model}": float(
            np.mean([metrics.ndcg_at_k(said_P[None, rows], kind.gold_U[None, rows])[0] for rows in queries])
        )
        for model, said_P in (("float", float_P), ("quantized", quant_P))
    }


def _token_companions(float_outputs: Outputs, quant_outputs: Outputs) -> dict[str, float]:
    left, right = (np.concatenate(list(outputs), axis=1) for outputs in (float_outputs, quant_outputs))
    return {
        "next_token_agreement": float((left[1] == right[1]).mean()),
        "mean_nll_difference": float((right[0].astype(np.float64) - left[0]).mean()),
    }


def _embedding_companions(left: FloatArray, right: FloatArray) -> dict[str, float]:
    pairs_P2 = spread_pairs(len(left))
    x_P, y_P = pair_cosines(left, pairs_P2), pair_cosines(right, pairs_P2)
    mean, smallest = metrics.cosine(left, right)
    return {
        "cosine_mean": mean,
        "cosine_min": smallest,
        "spearman": metrics.spearman(x_P, y_P),
        "kendall": metrics.kendall(x_P, y_P),
        "rank_flips": metrics.rank_flips(x_P, y_P),
        "top1_neighbour_agreement": metrics.neighbour_agreement(left, right),
        "emd": metrics.emd(left, right),
        "sqnr_db": metrics.sqnr_db(left, right),
    }


def _logit_companions(left: list[FloatArray], right: list[FloatArray], kind: Kind) -> dict[str, float]:
    """Distances of logits. If a text has several rows, distances that need rows of one length are averaged per text."""
    rows = [(np.atleast_2d(u), np.atleast_2d(v)) for u, v in zip(left, right, strict=True)]
    flat = np.concatenate([u.ravel() for u in left]), np.concatenate([v.ravel() for v in right])
    distances = {
        "emd": metrics.emd(left, right), "max_abs": metrics.max_abs(*flat), "sqnr_db": metrics.sqnr_db(*flat)
    }  # fmt: skip
    if kind == SCORES or isinstance(kind, Ranking):
        return {"kendall": metrics.kendall(*flat), "rank_flips": metrics.rank_flips(*flat)} | distances
    if kind == LABELS:  # its logits are no distribution over classes
        return {"label_agreement": float(metrics.label_agreement(np.stack(left), np.stack(right)).mean())} | distances
    return {
        "top1_agreement": float(np.mean([metrics.top1_agreement(u, v) for u, v in rows])),
        "kl": float(np.mean([metrics.kl(u, v) for u, v in rows])),
    } | distances

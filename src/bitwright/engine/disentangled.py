"""Disentangled attention (He et al. 2021, 2006.03654): DeBERTa's relative positions as constants of a program.

A score is (q_i · k_j + q_i · K[δ(i − j)] + k_j · Q[δ(i − j)]) / √(d · terms), over keys K and queries Q that a layer
projects from one table of relative embeddings. They are the same for every text, so a program holds them projected, a
row for each bucket δ of distance that a text can have, in the order of key − query.
"""

from typing import NamedTuple

import numpy as np

from bitwright.engine.linears import Linear, operator_of
from bitwright.engine.weights import Weights, short
from bitwright.errors import CheckpointError, EngineError
from bitwright.numerics.linear import FloatLinear

_FURTHEST = 1 << 24  # distances below it are exact in float32


class Positions(NamedTuple):
    """What the layers of a model share.

    rows_PH: relative embeddings, float32, a row for each bucket that occurs, in the order of key − query. row_R: int32,
    the bucket's row by key − query from −(T − 1) to T − 1. kinds: "c2p" (q · K), "p2c" (k · Q), or both.
    """

    rows_PH: np.ndarray
    row_R: np.ndarray
    kinds: tuple[str, ...]


class Tables(NamedTuple):
    """One layer's constants: keys_PN for c2p and queries_PN for p2c, float32 (P, heads · head size), or None; row_R as
    in `Positions`. folded: linears of the model with int8 inputs that would have run once more to make them."""

    keys_PN: np.ndarray | None
    queries_PN: np.ndarray | None
    row_R: np.ndarray
    folded: int


def attention_kinds(weights: Weights) -> tuple[str, ...]:
    """pos_att_type of config.json, a list or "p2c|c2p"; each adds a term to the scale, also of a model without
    relative positions.

    Raises:
        EngineError: it holds something else.
    """
    value = weights.config.get("pos_att_type") or []
    parts = value.lower().split("|") if isinstance(value, str) else value
    kinds = tuple(dict.fromkeys(str(part).strip() for part in parts)) if isinstance(parts, list) else ("",)
    if not set(kinds) <= {"c2p", "p2c"}:
        raise EngineError(f"the engine does not support pos_att_type = {value!r}; it supports c2p and p2c")
    return kinds


def positions_of(weights: Weights, encoder: str, limit: int, eps: float) -> Positions | None:
    """The relative positions of texts of up to `limit` tokens; None of a model that has none.

    Raises:
        EngineError, CheckpointError: settings that make no buckets, or a table that does not fit them.
    """
    config, kinds = weights.config, attention_kinds(weights)
    if not config.get("relative_attention", False):
        return None
    if not kinds:
        raise EngineError("the engine does not support relative_attention without a pos_att_type")
    buckets = config.get("position_buckets", -1)
    furthest = config.get("max_relative_positions", -1)
    if not all(type(value) is int and value < _FURTHEST for value in (buckets, furthest)):
        found = f"position_buckets = {short(buckets)}, max_relative_positions = {short(furthest)}"
        raise CheckpointError(f"{found}: both must be numbers below {_FURTHEST}")
    furthest = furthest if furthest >= 1 else weights.number("max_position_embeddings", limit)
    span = buckets if buckets > 0 else furthest
    table_PH = weights.rows(f"{encoder}.rel_embeddings.weight", weights.number("hidden_size"))
    if len(table_PH) != 2 * span:
        raise CheckpointError(
            f"{encoder}.rel_embeddings has {len(table_PH)} rows, but {span} rows for each side are expected"
        )
    if "layer_norm" in (part.strip() for part in str(config.get("norm_rel_ebd", "none")).lower().split("|")):
        table_PH = _layer_norm(weights, f"{encoder}.LayerNorm", table_PH, eps)
    distance_R = np.arange(limit - 1, -limit, -1)  # query − key
    bucket_R = distance_R if buckets <= 0 else log_buckets(distance_R, buckets, furthest)
    at_R = np.clip(bucket_R + span, 0, 2 * span - 1)
    rows_PH = np.ascontiguousarray(table_PH[at_R[-1] : at_R[0] + 1][::-1])
    return Positions(rows_PH, (at_R[0] - at_R).astype(np.int32), kinds)


def log_buckets(distance_R: np.ndarray, buckets: int, furthest: int) -> np.ndarray:
    """Buckets of distance: single ones up to half of `buckets`, then as the logarithm, up to `furthest`; of its sign.

    In float32, as the models were trained: where a bucket ends depends on it.

    Raises:
        EngineError: no distance is left for the logarithm.
    """
    middle = buckets // 2
    if middle < 1 or furthest - 1 <= middle:
        raise EngineError(
            f"position_buckets = {buckets} with up to {furthest} positions are not supported by the engine"
        )
    far_R = np.append(np.maximum(np.abs(distance_R), middle), furthest - 1).astype(np.float32)
    growth_R = np.log(far_R / np.float32(middle))
    steps_R = np.ceil(growth_R[:-1] / growth_R[-1] * np.float32(middle - 1)).astype(np.int64)
    return np.where(np.abs(distance_R) <= middle, distance_R, (steps_R + middle) * np.sign(distance_R))


def tables_of(weights: Weights, attention: str, positions: Positions) -> Tables:
    """The constants of one layer's attention, whose linears are below this path."""
    shared = bool(weights.config.get("share_att_key", False))
    names = {"c2p": "key_proj" if shared else "pos_key_proj", "p2c": "query_proj" if shared else "pos_query_proj"}
    # What the model runs: both of the content's, whether one or two kinds use them.
    run = names if shared else positions.kinds
    linears = {kind: weights.linear(f"{attention}.{names[kind]}") for kind in run}
    made = {kind: _project(linears[kind], positions.rows_PH) for kind in positions.kinds}
    folded = sum(operator_of(linear) == "linear_w8a8" for linear in linears.values())
    return Tables(made.get("c2p"), made.get("p2c"), positions.row_R, folded)


def _project(linear: Linear, x_PH: np.ndarray) -> np.ndarray:
    """A linear in float32, its weight as its codes say, its input not rounded: (P, N)."""
    if linear.shape[1] != x_PH.shape[1]:
        raise CheckpointError(
            f"a linear with {linear.shape[1]} inputs reads relative embeddings with {x_PH.shape[1]} values; both "
            "must be equal"
        )
    weight_NK = linear.widened() if isinstance(linear, FloatLinear) else linear.weight.dequantize()
    seen_PH = x_PH if isinstance(linear, FloatLinear) else linear.seen(x_PH)
    y_PN: np.ndarray = seen_PH @ weight_NK.T
    return y_PN if linear.bias_N is None else y_PN + linear.bias_N


def _layer_norm(weights: Weights, name: str, x_PH: np.ndarray, eps: float) -> np.ndarray:
    width = x_PH.shape[1]
    centred_PH = x_PH - x_PH.mean(axis=1, keepdims=True)
    normed_PH = centred_PH / np.sqrt((centred_PH**2).mean(axis=1, keepdims=True) + np.float32(eps))
    y_PH: np.ndarray = normed_PH * weights.vector(f"{name}.weight", width) + weights.vector(f"{name}.bias", width)
    return y_PH

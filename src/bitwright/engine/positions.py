"""A program's constants for positions: rotary angles, and attention biases by distance."""

import numpy as np

from bitwright.engine.weights import Weights, short
from bitwright.errors import CheckpointError, EngineError
from bitwright.files.directory import CONFIG_FILE

_KINDS = ("full_attention", "sliding_attention")
_MOST_ANGLES = 1 << 23  # positions times head size, for one kind of attention: 32 MiB of cosines and sines


def kinds_of_layers(weights: Weights, layers: int) -> list[str]:
    """How each block of a ModernBERT sees: "full_attention" or "sliding_attention".

    Raises:
        EngineError: another kind, or not one for each block. CheckpointError: no list.
    """
    if weights.config.get("sliding_window") is not None:
        raise EngineError("the engine does not support sliding_window together with local_attention")
    given = weights.config.get("layer_types")
    if given is None:
        every = weights.number("global_attn_every_n_layers", 3)
        return [_KINDS[layer % every > 0] for layer in range(layers)]
    if not isinstance(given, list):
        where = f"{weights.directory / CONFIG_FILE}: layer_types"
        raise CheckpointError(f"{where} is {short(given)}, but must be a list with a name for each block")
    if len(given) != layers or not all(kind in _KINDS for kind in given):
        raise EngineError(
            f"the engine does not support layer_types {sorted(set(map(str, given)))} for {len(given)} blocks"
        )
    return given


def rotary_angles(weights: Weights, kind: str, limit: int, head_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines of the rotary angles: float32 (limit, head_size / 2) each.

    Raises:
        EngineError: settings that scale the angles, or as many of them as no program holds.
    """
    config, local = weights.config, kind == "sliding_attention"
    found = {key: config[key] for key in ("rope_parameters", "rope_scaling") if config.get(key) is not None}
    parameters = found.get("rope_parameters", {})
    rope = parameters.get(kind, {}) if isinstance(parameters, dict) and parameters.keys() <= set(_KINDS) else None
    plain = isinstance(rope, dict) and rope.keys() <= {"rope_type", "rope_theta"}
    if rope is None or not plain or rope.get("rope_type", "default") != "default" or "rope_scaling" in found:
        wrong = short(found.get("rope_scaling", parameters))
        raise EngineError(
            f"the engine does not support a rope of {wrong}; it supports type 'default', by kind of attention"
        )
    older = weights.real("local_rope_theta" if local else "global_rope_theta", 10_000.0 if local else 160_000.0)
    theta = weights.check_real("rope_theta", rope.get("rope_theta", older))
    if limit * head_size > _MOST_ANGLES:
        raise EngineError(f"max_position_embeddings = {limit} with heads of {head_size} values: too many rotary angles")
    angles_TF = np.arange(limit)[:, None] * theta ** (-np.arange(0, head_size, 2) / head_size)
    return np.cos(angles_TF).astype(np.float32), np.sin(angles_TF).astype(np.float32)


def distance_bias(table_BH: np.ndarray, limit: int) -> np.ndarray:
    """T5's buckets of distance, spelled out: float32 (heads, 2 · limit − 1), by key − query from −(limit − 1) on.

    Half of the buckets are for keys behind the query, half for those before it. In each, half are single distances, the
    other half grow as the logarithm, up to 128 (Raffel et al. 2020, 1910.10683, section 2.1).
    """
    half = len(table_BH) // 2
    if half < 4 or limit < 1:
        raise EngineError(f"{len(table_BH)} buckets of distance for {limit} tokens are not supported by the engine")
    distance = np.arange(-(limit - 1), limit)
    near, far = half // 2, np.abs(distance)
    growth = np.log(np.maximum(far, 1).astype(np.float32) / np.float32(near)) / np.log(np.float32(128 / near))
    bucket = np.where(far < near, far, np.minimum(near + (growth * (half - near)).astype(np.int64), half - 1))
    return np.ascontiguousarray(table_BH[bucket + half * (distance > 0)].T)

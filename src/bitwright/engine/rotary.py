"""Rotary positions (Su et al. 2021, 2104.09864) of decoders, as config.json describes them: cosines and sines."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from bitwright.engine.weights import Weights, short
from bitwright.errors import EngineError
from bitwright.files.directory import CONFIG_FILE

_KINDS = ("full_attention", "sliding_attention")
# Of a rope. max_position_embeddings repeats what is said beside it.
_KEYS = {"rope_type", "type", "rope_theta", "partial_rotary_factor", "factor", "original_max_position_embeddings",
         "low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow", "attention_factor", "mscale",
         "mscale_all_dim", "truncate", "llama_4_scaling_beta", "max_position_embeddings"}  # fmt: skip
SCALED = 16  # values of queries that are multiplied at once; it divides every size of heads
_MOST_ANGLES = 1 << 26  # positions times angles, for one kind of attention: 512 MiB of cosines and sines


class Rotary(NamedTuple):
    """cos_TF, sin_TF: float32, a row for each position. of_queries: what multiplies a query there, as a rotation by no
    angle of `SCALED` values at once; None if nothing does."""

    cos_TF: np.ndarray
    sin_TF: np.ndarray
    of_queries: "Rotary | None" = None


class _Angles(NamedTuple):
    """What a rope type makes of the plain frequencies base ** (-i / F): frequency_F, float32, and a factor of cosines
    and sines."""

    frequency_F: np.ndarray
    factor: float = 1.0


def rotary(
    weights: Weights,
    kind: str,
    head_size: int,
    positions: int,
    *,
    share: float = 1.0,
    window_theta: float | None = None,
) -> Rotary:
    """Cosines and sines for positions 0 to `positions` - 1.

    kind: of attention, where config.json has angles for each: "full_attention" or "sliding_attention".
    share, window_theta: what the family takes where it says nothing, see `Decoding`.

    Raises:
        EngineError: a rope type that the engine does not know, or as many angles as no program holds.
        CheckpointError: numbers of config.json that are none.
    """
    rope = _settings(weights.config, kind, window_theta)
    if unknown := sorted(rope.keys() - _KEYS):
        raise EngineError(f"the engine does not know the rope's keys {', '.join(map(short, unknown))}")
    size = int(head_size * weights.check_real("partial_rotary_factor", rope.get("partial_rotary_factor", share)))
    if size % 2 or not 2 <= size <= head_size:
        raise EngineError(f"{size} of {head_size} values of a head rotate; the engine rotates an even number of them")
    if positions * (size // 2) > _MOST_ANGLES:
        raise EngineError(f"{positions} positions with {size // 2} angles each: ask for a shorter context")
    name = rope.get("rope_type", rope.get("type", "default"))
    if not isinstance(name, str) or name not in _TYPES:
        raise EngineError(f"the engine does not support rope_type {short(name)}; it supports {', '.join(_TYPES)}")
    base = weights.check_real("rope_theta", rope.get("rope_theta", 10_000.0))
    plain_F = np.float32(1) / np.float32(base) ** (np.arange(0, size, 2, dtype=np.float32) / np.float32(size))

    given = rope.get("original_max_position_embeddings") or weights.config.get("max_position_embeddings")
    trained = weights.check_real("original_max_position_embeddings", given)
    found = _TYPES[name](_Rope(weights, name, rope, plain_F, base, trained))
    angles_TF = np.arange(positions, dtype=np.float32)[:, None] * found.frequency_F
    factor, beta = np.float32(found.factor), rope.get("llama_4_scaling_beta")
    grown = 0.0 if beta is None else weights.check_real("llama_4_scaling_beta", beta)
    return Rotary(np.cos(angles_TF) * factor, np.sin(angles_TF) * factor, _of_queries(grown, trained, positions))


def _of_queries(beta: float, trained: float, positions: int) -> Rotary | None:
    """What queries are multiplied by: 1 within the trained length, beyond it by the logarithm of how often it fits;
    None if that is 1 at all positions."""
    times_T = np.floor(np.arange(positions) / trained)
    if not beta or not times_T.any():
        return None
    factor_T = (1 + beta * np.log1p(times_T)).astype(np.float32)
    cos_TF = np.repeat(factor_T[:, None], SCALED // 2, axis=1)
    return Rotary(cos_TF, np.zeros_like(cos_TF))


def _settings(config: Mapping[str, Any], kind: str, window_theta: float | None) -> dict[str, Any]:
    """What config.json says of one kind of attention, in the words of transformers 5."""
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    by_kind = isinstance(given, dict) and bool(given) and given.keys() <= set(_KINDS)
    rope = given.get(kind) if by_kind else given
    if not isinstance(rope, dict):
        raise EngineError(f"the engine does not support a rope of {short(given)}")
    older = {key: config[key] for key in ("rope_theta", "partial_rotary_factor") if config.get(key) is not None}
    if not by_kind and kind == "sliding_attention" and config.get("rope_local_base_freq") is not None:
        return {"rope_theta": config["rope_local_base_freq"]}  # gemma3 before transformers 5: local angles are plain
    if not by_kind and window_theta is not None:  # olmo3 before transformers 5: so are its
        if given and (config.get("rope_parameters") or "rope_type" not in given):
            raise EngineError(f"the engine does not support a rope of {short(given)} in this family")
        if kind == "sliding_attention":
            if older.get("rope_theta", window_theta) != window_theta:  # versions of transformers read it differently
                raise EngineError(
                    f"the engine does not support rope_theta = {short(older['rope_theta'])} where config.json has not "
                    "rope_parameters for each kind of attention"
                )
            return {"rope_theta": window_theta}
    return older | {key: value for key, value in rope.items() if value is not None}


class _Rope(NamedTuple):
    """What a rope type reads. settings: of config.json. frequency_F: plain. trained: positions, before any scaling."""

    weights: Weights
    name: str
    settings: Mapping[str, Any]
    frequency_F: np.ndarray
    base: float
    trained: float

    def number(self, key: str, default: float | None = None) -> float:
        """Raises:
        EngineError: there is none. CheckpointError: it is no positive number.
        """
        if default is None and key not in self.settings:
            where = self.weights.directory / CONFIG_FILE
            raise EngineError(f"{where}: the rope of type {self.name!r} lacks {key}")
        return self.weights.check_real(key, self.settings.get(key, default))


def _default(rope: _Rope) -> _Angles:
    return _Angles(rope.frequency_F)


def _linear(rope: _Rope) -> _Angles:
    return _Angles(rope.frequency_F / np.float32(rope.number("factor")))


def _llama3(rope: _Rope) -> _Angles:
    """Frequencies of long waves are divided by the factor, those of short ones stay, and between them it is mixed."""
    factor, low, high = rope.number("factor"), rope.number("low_freq_factor"), rope.number("high_freq_factor")
    waves_F = 2 * math.pi / rope.frequency_F
    share_F = np.clip((rope.number("original_max_position_embeddings") / waves_F - low) / (high - low), 0, 1)
    mixed_F = (1 - share_F) * rope.frequency_F / factor + share_F * rope.frequency_F
    return _Angles(mixed_F.astype(np.float32))


def _yarn(rope: _Rope) -> _Angles:
    """Peng et al. 2023, 2309.00071, section 3.4: the same by the number of turns that a frequency makes in the trained
    length, and cosines and sines times 0.1 · ln(factor) + 1."""
    factor, angles = rope.number("factor"), len(rope.frequency_F)
    ends = [angles * math.log(rope.trained / (rope.number(key, turns) * 2 * math.pi)) / math.log(rope.base)
            for key, turns in (("beta_fast", 32.0), ("beta_slow", 1.0))]  # fmt: skip
    if rope.settings.get("truncate", True):
        ends = [math.floor(ends[0]), math.ceil(ends[1])]
    first, last = max(ends[0], 0), min(ends[1], 2 * angles - 1)
    share_F = np.clip((np.arange(angles) - first) / max(last - first, 0.001), 0, 1)
    mixed_F = rope.frequency_F / factor * share_F + rope.frequency_F * (1 - share_F)

    def length(mscale: float) -> float:
        return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0

    usual = length(1.0)
    if rope.settings.get("mscale") and rope.settings.get("mscale_all_dim"):  # DeepSeek's way, of which both are needed
        usual = length(rope.number("mscale")) / length(rope.number("mscale_all_dim"))
    return _Angles(mixed_F.astype(np.float32), rope.number("attention_factor", usual))


_TYPES: dict[str, Callable[[_Rope], _Angles]] = {
    "default": _default, "linear": _linear, "llama3": _llama3, "yarn": _yarn,
}  # fmt: skip

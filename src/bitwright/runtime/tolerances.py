"""Tolerances for the outputs of a checked runtime, each derived from its arithmetic."""

import math

import numpy as np

# Of the largest output. The same kernels on the same bytes: no bit may differ.
SAME_BITS = 0.0
# Of the largest output. Plain readers run the dequantized weights in float32, as the parent does, and only order their
# sums differently: 2^-24 for a sum, some 1e-6 after a model's layers. The smallest fault, a tensor rounded to bf16 that
# should not be, is 2^-9.
FLOAT_SUMS = 1e-4
# Of a fault that is none: 3 in ten million.
_SIGMAS = 5.0
# Of a vector in 8 bits, relative to its length: errors of 1/√12 of a step, of which 127 make the largest value, 3 to 4
# times a usual one.
_CODE_NOISE = 2**-7


def engine_distances(engine_BV: np.ndarray, generic: list[np.ndarray], plain_BV: np.ndarray) -> dict[str, float]:
    """The engine's distances from two other computations of the same checkpoint, and the largest distance allowed for
    each.

    Engine and generic path compute the float model of the dequantized weights, and round on the way: inputs of linears
    to codes, values between the linears to bf16. Which way a value falls depends on the last bits of the one before, so
    after a few layers the two have rounded independently. Neither is right, and this holds:

    1. the engine lies no farther from the float model than the generic path does (D);
    2. they lie no farther apart than two independent roundings: √2 · D.

    A distance is √(Σ |a − b|² / Σ |plain|²) over texts. Of n texts whose squared distances have a mean and a variance,
    D² has ν = 2 n mean² / variance degrees of freedom (Satterthwaite 1946), and the logarithm of the ratio of two such
    D a standard deviation of 1/√ν. So both limits are multiplied by exp(5 / √ν). They come from the generic path alone:
    a faulty engine does not widen them.

    Args:
        engine_BV: float32 (B, values), a row for each text.
        generic: of the generic path (B, values): as it runs, first, and with bf16 between the linears. The engine
            rounds there on every CPU; the larger D of these counts.
        plain_BV: of the float model with the dequantized weights.

    Returns:
        The Record's checks: `engine_distance` (from the generic path), `engine_float_distance`, and both `_allowed`.
        What is not finite is infinitely far.
    """
    total = float(np.square(plain_BV, dtype=np.float64).sum())
    squares = max((_squares(rounded_BV, plain_BV) for rounded_BV in generic), key=np.sum)
    freedom = min(_degrees_of_freedom(squares), plain_BV.size)
    limit = math.sqrt(squares.sum() / total) * math.exp(_SIGMAS / math.sqrt(freedom))
    return {
        "engine_distance": math.sqrt(_squares(engine_BV, generic[0]).sum() / total),
        "engine_distance_allowed": math.sqrt(2) * limit,
        "engine_float_distance": math.sqrt(_squares(engine_BV, plain_BV).sum() / total),
        "engine_float_distance_allowed": limit,
    }


def attention_distances(
    engine_BV: np.ndarray, float_attention_BV: np.ndarray, original_BV: np.ndarray, n_int8: int
) -> dict[str, float]:
    """The distance of the engine from the float model, and the largest that int8 attention may make of it: attention is
    never the larger part of what quantization costs.

    The engine with float attention lies D from the float model: that is all else that is quantized. Rounding q, k, v
    and probabilities adds noise of its own, and independent noise adds in squares: D² + A², with A no larger than D.
    Only where next to nothing else is quantized may A be what 8 bits cost in themselves, `_CODE_NOISE` in each layer.
    (The distance between the two engines says less: a little noise early on makes all later roundings independent
    ones.) The limit is multiplied by exp(5 / √ν), as in `engine_distances`.

    Args:
        engine_BV: float32 (B, values), a row for each text, as the checkpoint says. float_attention_BV: of the same
            engine and checkpoint with float attention. original_BV: of the float model, nothing quantized.
        n_int8: layers with int8 attention.

    Returns:
        The Record's checks: `attention_distance` and `attention_distance_allowed`.
    """
    total = float(np.square(original_BV, dtype=np.float64).sum())
    squares = _squares(float_attention_BV, original_BV)
    rest = float(squares.sum()) / total
    freedom = min(_degrees_of_freedom(squares), original_BV.size)
    limit = math.sqrt(rest + max(rest, n_int8 * _CODE_NOISE**2)) * math.exp(_SIGMAS / math.sqrt(freedom))
    return {
        "attention_distance": math.sqrt(_squares(engine_BV, original_BV).sum() / total),
        "attention_distance_allowed": limit,
    }


def largest_difference(found: np.ndarray, expected: np.ndarray) -> float:
    """max |found − expected| / max |expected|; NaN if any of them is."""
    return float(np.abs(expected - found).max() / np.abs(expected).max())


def _squares(a_BV: np.ndarray, b_BV: np.ndarray) -> np.ndarray:
    """|a − b|² by text, float64 (B,)."""
    squares: np.ndarray = np.square(a_BV.astype(np.float64) - b_BV).sum(axis=1)
    return squares


def _degrees_of_freedom(squares_B: np.ndarray) -> float:
    """ν of the sum of these. Few texts may be alike by chance: there counts one more, of four values (a relative
    variance of 2/4)."""
    n, mean = len(squares_B), float(squares_B.mean())
    if mean == 0.0:  # nothing is rounded
        return math.inf
    spread = float(np.square(squares_B / mean - 1.0).sum()) + 0.5
    return 2 * n**2 / spread

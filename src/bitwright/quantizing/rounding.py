"""Rounds the linears that read one input, with the statistics of that input."""

from collections.abc import Sequence

import torch

from bitwright.errors import NumericsError, named
from bitwright.evaluate.output_errors import output_errors
from bitwright.methods import METHODS, Rounded, rounding_of
from bitwright.methods.rows import round_together
from bitwright.methods.rtn import rtn
from bitwright.methods.scaling import input_error
from bitwright.models.parameters import weight_of
from bitwright.models.rescale import SharedInput
from bitwright.numerics import RANGES, WEIGHT_RANGES
from bitwright.numerics.grids import scale_and_zero_point
from bitwright.numerics.linear import StaticGrid
from bitwright.quantizing.observing import see_histograms
from bitwright.quantizing.placing import put_in_place
from bitwright.quantizing.work import EXACT_RANGES, Work


def round_linears(work: Work, shared: SharedInput) -> None:
    """Round the linears that read one input; those with the same statistics and scheme as one matrix. Mutates `work`
    and its model.

    Raises:
        NumericsError: NaN or infinity in a weight, or a static input that too few tokens reached.
    """
    names = work.chosen(shared)
    see_histograms(work, names)
    for alike in work.stats.sharing(names):
        together: dict[tuple[str, str], list[str]] = {}
        for name in alike:
            row = work.plan.rows[name]
            together.setdefault((row.scheme, row.method), []).append(name)
        for group in together.values():
            for name, rounded in zip(group, _rounded(work, group), strict=True):
                _note_errors(work, name, rounded)
                put_in_place(work, name, rounded, _static_grid(work, name))


def error_by_rtn(work: Work, name: str) -> float | None:
    """The relative output error that rounding to nearest would leave.

    Raises:
        NumericsError: NaN or infinity in the weight.
    """
    spec, weight = work.scheme(name).weight, weight_of(work.linear(name)).float()
    assert spec is not None
    with named(name):
        rounded = rtn(weight, None, spec, RANGES["min_max"]).qtensor.dequantize()
    return float(output_errors(weight, rounded, work.stats.get(name))["error"])


def _rounded(work: Work, names: Sequence[str]) -> list[Rounded]:
    """The rounded weights of linears that share statistics, scheme and method."""
    row, recipe = work.plan.rows[names[0]], work.plan.recipe
    spec, stats = work.scheme(names[0]).weight, work.stats.get(names[0])
    assert spec is not None
    range_ = recipe.weight_range or METHODS[row.method].range
    if stats is None and range_ in WEIGHT_RANGES:
        range_ = "mse"
    has_bias = all(work.linear(name).bias is not None for name in names)
    options = recipe.options

    def together(names: Sequence[str]) -> list[Rounded]:
        rounding = rtn if stats is None else rounding_of(
            row.method, act_order=options.act_order, damping=options.damping,
            bias_correction=options.bias_correction and has_bias, mismatch=options.mismatch,
            weighted=work.weighted.get(names[0], ()),
        )  # fmt: skip
        weights = [weight_of(work.linear(name)).float() for name in names]
        with named(", ".join(names)):
            return round_together(rounding, weights, stats, spec, options.range(range_))

    if any(name in work.weighted for name in names):  # each has Gram matrices of its own
        return [rounded for name in names for rounded in together([name])]
    return together(names)


def _note_errors(work: Work, name: str, rounded: Rounded) -> None:
    """Note the rounding's remarks and its errors, for the Record."""
    weight, stats, input_spec = weight_of(work.linear(name)), work.stats.get(name), work.scheme(name).input
    work.notes[name] |= rounded.notes
    work.notes[name] |= output_errors(weight, rounded.qtensor.dequantize(), stats)
    if input_spec is not None and stats is not None:
        work.notes[name] |= {"error_input": input_error(weight, stats, input_spec)}


def _static_grid(work: Work, name: str) -> StaticGrid | None:
    """The grid of a static input; None where there is none."""
    spec = work.scheme(name).input
    if spec is None or spec.dynamic:
        return None
    stats = work.stats.get(name)
    if stats is None:
        seen = work.notes[name]["n_tokens"]
        raise NumericsError(
            f"{name}: only {seen} calibration tokens reached this linear, which is too few for a static range; "
            "calibrate on more text, or use a dynamic scheme"
        )
    range_ = work.input_range(name)
    if range_ in EXACT_RANGES:
        lo, hi = stats.min_K.min().reshape(1, 1), stats.max_K.max().reshape(1, 1)
        reach = torch.maximum(-lo, hi)
        scale, zero = scale_and_zero_point(*((-reach, reach) if range_ == "absmax" else (lo, hi)), spec)
    else:
        histogram = work.histograms.get(name, stats.histogram)
        assert histogram is not None
        scale, zero = work.plan.recipe.options.range(range_)(histogram, spec)
    return StaticGrid(float(scale.float()), 0 if zero is None else int(zero))

"""Figures: the numbers that they draw."""

import math
from dataclasses import replace

import pytest

from bitwright.record import FrontRow, HeldOut, Histogram, StepRow, record_of
from bitwright.report import plots, search_plots
from bitwright.report.account import ErrorPoint, error_points
from bitwright.report.tables import HeatCell, ranked


def test_histogram_columns_keep_every_share_and_lift_empty_bins_to_the_floor():
    columns = plots.histogram_columns(Histogram((0, 1, 2, 3), (0.5, 0.0, 0.5), (0.25, 0.75, 0.0)))
    floor = columns["floor"][0]
    assert 0 < floor <= 0.25
    assert columns["before"] == [0.5, floor, 0.5]
    assert columns["after"] == [0.25, 0.75, floor]
    assert (columns["left"], columns["right"], columns["middle"]) == ([0, 1, 2], [1, 2, 3], [0.5, 1.5, 2.5])


def test_no_distribution_has_empty_columns():
    assert set(map(len, plots.histogram_columns(None).values())) == {0}


@pytest.mark.parametrize("emds", [[0.0], [0.1, 0.1], [0.0, math.inf], [math.nan, 1e-9, 1e3]])
def test_heat_map_takes_any_distance(emds):
    picture = plots.heat_map([HeatCell(str(i), "ffn", emd, "w") for i, emd in enumerate(emds)])
    data = picture.model.renderers[0].data_source.data
    for emd, color, text in zip(emds, data["color"], data["text"], strict=True):
        assert (color == plots.INFINITE) == (not math.isfinite(emd))
        assert (text == "∞") == (not math.isfinite(emd))
    assert bool(picture.legend) == any(not math.isfinite(emd) for emd in emds)


def test_darker_is_more_sensitive():
    cells = [HeatCell(str(i), "ffn", 10.0**-i, "w") for i in range(4)]
    colors = plots.heat_map(cells).model.renderers[0].data_source.data["color"]
    luminance = [sum(int(color[i : i + 2], 16) for i in (1, 3, 5)) for color in colors]
    assert luminance == sorted(luminance)


def test_points_are_the_layers_with_finite_numbers(not_met):
    rows = ranked(record_of(not_met).sensitivity.rows)
    drawn = sum(len(r.data_source.data["emd"]) for r in plots.emd_against_loss(rows).model.renderers)
    assert drawn == len(rows) - 1


def test_steps_with_an_unbounded_loss_keep_the_axis_finite():
    steps = [StepRow(n_fallback=0, bytes=10, loss=0.01, loss_upper=math.inf)]
    y_range = search_plots.loss_against_size(steps, 0, None).model.y_range
    assert math.isfinite(y_range.start)
    assert math.isfinite(y_range.end)


def test_every_runtime_has_its_own_color(record):
    legend = plots.speed_bars(record_of(record).speed.rows).legend
    assert [key.label for key in legend][:-1] == ["torch fp32", "torch bf16", "bitwright", "onnxruntime int8"]
    assert len({key.color for key in legend}) == len(legend)


def test_errors_are_drawn_for_every_role_and_plain_rounding_where_it_differs(experts):
    points = error_points(record_of(experts).layers)
    picture = plots.layer_errors(points)
    drawn = [r.data_source.data for r in picture.model.renderers if r.glyph.__class__.__name__ == "Scatter"]
    assert sum(len(data["block"]) for data in drawn) == len(points)
    assert [key.label for key in picture.legend] == [
        "query, key, value",
        "attention output",
        "expert",
        "rounded to nearest",
    ]
    same = [replace(point, error_rtn=point.error) for point in points]
    assert "rounded to nearest" not in [key.label for key in plots.layer_errors(same).legend]


@pytest.mark.parametrize("error", [0.0, 1e-9, 5.0])
def test_any_error_can_be_drawn(error):
    picture = plots.layer_errors([ErrorPoint(0, "ffn", error, None, "w")])
    assert picture.legend


@pytest.mark.parametrize("high", [1.2, 4.0, 30.0, 1e3, 1e9])
def test_logarithmic_axes_have_ticks_inside(high):
    ticks = [tick for tick in plots._log_ticks(1.0, high) if 1.0 <= tick <= high]
    assert 1 <= len(ticks) <= 12


def test_steps_are_drawn_by_size_whatever_their_order():
    sizes = {10: 0.3, 40: 0.1, 20: 0.2}
    steps = [StepRow(n_fallback=0, bytes=size, loss=loss, loss_upper=loss) for size, loss in sizes.items()]
    renderers = search_plots.loss_against_size(steps, 2, None).model.renderers
    assert renderers[0].data_source.data["step"] == ["0", "2", "1"]
    assert renderers[-1].data_source.data["x"] == [20 / 1e6]


def test_a_front_without_bounds_has_finite_axes():
    row = FrontRow(0, (), 2.0, 0.01, math.inf, HeldOut(0.01), bytes=1, on_front=True, chosen=True)
    rows = [row, replace(row, speedup=3.0, loss=math.inf)]
    plot = search_plots.loss_against_speed(rows, 1.3, 0.01).model
    assert all(math.isfinite(end) for axis in (plot.x_range, plot.y_range) for end in (axis.start, axis.end))
    assert plot.x_range.end < 3.0

"""The report's figures, as Bokeh models. No toolbar and no widgets: hovering is the only interaction, so pages scroll.

Legends are left to the page, where they wrap on a phone: each figure comes with the marks that it uses.

Every figure stretches to its container and stands on white, so that it reads the same on a light and a dark page. The
colours are Okabe and Ito's, which colour-blind readers can tell apart; so is the heat map's cividis.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from bokeh.core.properties import value
from bokeh.models import (
    BasicTicker,
    BasicTickFormatter,
    ColorBar,
    ColumnDataSource,
    FactorRange,
    FixedTicker,
    HoverTool,
    Span,
)
from bokeh.models.mappers import LogColorMapper
from bokeh.palettes import Cividis256
from bokeh.plotting import figure
from bokeh.transform import dodge

from bitwright.record import Histogram, SpeedRow
from bitwright.report.account import ErrorPoint
from bitwright.report.tables import HEAT_COLUMNS, HeatCell, RankedRow
from bitwright.report.wording import is_finite, milliseconds, number, percent, ratio, words

BLUE, VERMILION, GREEN, ORANGE, GREY = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#767676"
SERIES = (BLUE, ORANGE, GREEN, "#CC79A7", "#56B4E9", VERMILION)
INFINITE = "#B00058"  # far from every cividis colour
_INK, _FAINT = "#33373c", "#e6e8eb"
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'Liberation Sans', sans-serif"


@dataclass(frozen=True, slots=True)
class Key:
    """One entry of a legend: what a mark means, and how it looks."""

    label: str
    color: str
    mark: Literal["bar", "dot", "line", "ring", "dash"]


@dataclass(frozen=True, slots=True)
class Picture:
    """A figure and its legend."""

    model: figure
    legend: tuple[Key, ...] = ()


def heat_map(cells: list[HeatCell]) -> Picture:
    """Blocks as rows, groups as columns, EMD as colour (logarithmic) and text. Infinity has its own colour."""
    columns = [role for role in HEAT_COLUMNS if any(cell.role == role for cell in cells)]
    rows = list(dict.fromkeys(cell.block for cell in cells))
    finite = [cell.emd for cell in cells if math.isfinite(cell.emd) and cell.emd > 0]
    low, high = (min(finite), max(finite)) if finite else (1e-9, 1.0)
    high = max(high, low * 1.001)
    mapper = LogColorMapper(palette=_PALETTE, low=low, high=high, low_color=_PALETTE[0], high_color=INFINITE)
    colors = [_heat_color(cell.emd, low, high) for cell in cells]
    source = ColumnDataSource(
        {
            "column": [words(cell.role) for cell in cells],
            "row": [cell.block for cell in cells],
            "color": colors,
            "ink": ["#ffffff" if _luminance(color) < 0.18 else "#14171a" for color in colors],
            "text": [_short(cell.emd) for cell in cells],
            "emd": [number(cell.emd) for cell in cells],
            "what": [cell.what for cell in cells],
        }
    )
    plot = blank(
        height=90 + 30 * len(rows),
        x_range=FactorRange(*map(words, columns)),
        y_range=FactorRange(*reversed(rows)),
        x_axis_location="above",
        y_axis_label="block",
    )
    cell = plot.rect("column", "row", 0.97, 0.94, source=source, fill_color="color", line_color=None)
    plot.text("column", "row", "text", source=source, text_color="ink", **_CENTERED)
    plot.add_tools(hover([("group", "@column"), ("block", "@row"), ("EMD", "@emd"), ("quantized", "@what")], cell))
    plot.grid.visible = False
    ticks = _log_ticks(low, high)
    plot.add_layout(
        ColorBar(
            color_mapper=mapper,
            ticker=FixedTicker(ticks=list(ticks)),
            major_label_overrides=ticks,
            title="EMD (no unit; logarithmic)",
            title_text_font=_FONT,
            title_text_font_style="normal",
            title_text_color=_INK,
            major_label_text_font=_FONT,
            height=10,
            padding=6,
            border_line_color=None,
        ),
        "below",
    )
    broken = any(not math.isfinite(cell.emd) for cell in cells)
    return Picture(plot, (Key("∞: the output broke", INFINITE, "bar"),) if broken else ())


def emd_against_loss(rows: Sequence[RankedRow]) -> Picture:
    """One point per layer: does a large EMD mean a large loss of the metric? Infinite ones have no place."""
    points = comparable(rows)
    plot = blank(height=300, x_axis_type="log", x_axis_label="EMD (no unit)", y_axis_label="loss of the metric, %")
    emds = [emd for emd, _, _ in points]
    ticks = _log_ticks(min(emds), max(emds))
    plot.xaxis.ticker = FixedTicker(ticks=list(ticks))
    plot.xaxis.major_label_overrides = ticks
    legend = []
    for role, color in zip(HEAT_COLUMNS, SERIES, strict=False):
        chosen = [point for point in points if point[2].role == role]
        if chosen:
            source = ColumnDataSource(
                {
                    "emd": [emd for emd, _, _ in chosen],
                    "loss": [100 * loss for _, loss, _ in chosen],
                    "name": [row.name for _, _, row in chosen],
                    "emd_text": [number(emd) for emd, _, _ in chosen],
                    "loss_text": [percent(loss) for _, loss, _ in chosen],
                }
            )
            dots = plot.scatter("emd", "loss", size=9, source=source, color=color, alpha=0.8)
            plot.add_tools(hover([("layer", "@name"), ("EMD", "@emd_text"), ("loss", "@loss_text")], dots))
            legend.append(Key(words(role), color, "dot"))
    return Picture(plot, tuple(legend))


def comparable(rows: Sequence[RankedRow]) -> list[tuple[float, float, RankedRow]]:
    """(EMD, metric loss, row) of the rows with a finite EMD above zero and a finite metric loss."""
    return [
        (row.emd, row.metric_loss, row)
        for row in rows
        if is_finite(row.emd) and row.emd > 0 and is_finite(row.metric_loss)
    ]


def layer_errors(points: list[ErrorPoint]) -> Picture:
    """Relative output error by block, one line per role; dashed, where it differs, what rounding to nearest leaves."""
    plot = blank(height=300, y_axis_type="log", x_axis_label="block", y_axis_label="relative error")
    plot.xaxis.ticker = BasicTicker(desired_num_ticks=8, min_interval=1)
    roles = list(dict.fromkeys(point.role for point in points))
    values = [error for point in points for error in (point.error, point.error_rtn) if error and is_finite(error)]
    if values:
        ticks = _log_ticks(min(values), max(max(values), min(values) * 1.5))
        plot.yaxis.ticker = FixedTicker(ticks=list(ticks))
        plot.yaxis.major_label_overrides = ticks
    differs = any(point.error_rtn is not None and point.error_rtn != point.error for point in points)
    legend = []
    for role, color in zip(roles, SERIES * len(roles), strict=False):
        chosen = [point for point in points if point.role == role]
        source = ColumnDataSource(
            {
                "block": [point.block for point in chosen],
                "error": [point.error or math.nan for point in chosen],
                "rtn": [point.error_rtn or math.nan for point in chosen],
                "name": [point.name for point in chosen],
                "error_text": [percent(point.error) for point in chosen],
                "rtn_text": [percent(point.error_rtn) for point in chosen],
            }
        )
        if differs:
            plot.line("block", "rtn", source=source, color=color, line_width=1.5, line_dash="3 4", line_alpha=0.8)
        plot.line("block", "error", source=source, color=color, line_width=2)
        dots = plot.scatter("block", "error", source=source, color=color, size=7)
        tips = [("block", "@block"), ("worst", "@name"), ("error", "@error_text"), ("rounded to nearest", "@rtn_text")]
        plot.add_tools(hover(tips, dots))
        legend.append(Key(words(role), color, "dot"))
    return Picture(plot, (*legend, *([Key("rounded to nearest", GREY, "dash")] if differs else ())))


def speed_bars(rows: Sequence[SpeedRow]) -> Picture:
    """Speed relative to fp32 by input shape and runtime; the line at 1 is the original."""
    rows = [row for row in rows if is_finite(row.ratio_to_fp32)]
    shapes = list(dict.fromkeys(_shape(row) for row in rows))
    runtimes = list(dict.fromkeys(row.runtime for row in rows))
    colors = _runtime_colors(runtimes)
    plot = blank(
        height=70 + len(shapes) * (14 + 16 * len(runtimes)),
        y_range=FactorRange(*reversed(shapes)),
        x_axis_label="speed relative to fp32 (higher is faster)",
        y_axis_label="batch × tokens",
    )
    thickness = 0.8 / len(runtimes)
    for i, runtime in enumerate(runtimes):
        chosen = [row for row in rows if row.runtime == runtime]
        source = ColumnDataSource(
            {
                "shape": [_shape(row) for row in chosen],
                "ratio": [row.ratio_to_fp32 for row in chosen],
                "ratio_text": [ratio(row.ratio_to_fp32) for row in chosen],
                "runtime": [runtime] * len(chosen),
                "median": [milliseconds(row.median_ms) for row in chosen],
                "min": [milliseconds(row.min_ms) for row in chosen],
            }
        )
        place = dodge("shape", 0.4 - thickness * (i + 0.5), range=plot.y_range)
        bars = plot.hbar(place, right="ratio", height=thickness * 0.86, source=source, color=colors[runtime])
        tips = [("runtime", "@runtime"), ("batch × tokens", "@shape"), ("relative speed", "@ratio_text")]
        plot.add_tools(hover([*tips, ("median", "@median ms"), ("fastest", "@min ms")], bars))
    plot.add_layout(Span(location=1, dimension="height", line_color=_INK, line_width=1.5, line_dash="4 3"))
    plot.x_range.start = 0
    plot.ygrid.visible = False
    return Picture(plot, (*(Key(name, colors[name], "bar") for name in runtimes), Key("as fast as fp32", _INK, "dash")))


def histogram(kind: str, columns: dict[str, list[float]]) -> Picture:
    """One layer's values before (bars) and after (line) quantization; the axis is logarithmic to show outliers.

    kind: "weight" or "activation"; names the data source, which the page replaces when another layer is chosen.
    columns: as `histogram_columns` returns them.
    """
    source = ColumnDataSource(columns, name=f"{kind}-values")
    plot = blank(
        height=270, y_axis_type="log", x_axis_label=f"{kind} value (no unit)", y_axis_label="share of the values"
    )
    bars = plot.quad("left", "right", "before", "floor", source=source, color=BLUE, alpha=0.35, line_color=None)
    plot.step("middle", "after", source=source, mode="center", color=VERMILION, line_width=1.5)
    tips = [("values", "@left{0.0000} to @right{0.0000}"), ("before", "@before{0.0000%}"), ("after", "@after{0.0000%}")]
    plot.add_tools(hover(tips, bars))
    return Picture(plot, (Key("before", "#a6cfe6", "bar"), Key("after", VERMILION, "line")))


def histogram_columns(values: Histogram | None) -> dict[str, list[float]]:
    """Of n bins -> the columns of `histogram`. Empty bins sit on the floor of the axis."""
    if values is None:
        return {name: [] for name in ("left", "right", "middle", "before", "after", "floor")}
    shares = (*values.before, *values.after)
    floor = 10.0 ** math.floor(math.log10(min((share for share in shares if share > 0), default=1.0)))
    pairs = list(pairwise(values.edges))
    return {
        "left": [_rounded(left) for left, _ in pairs],
        "right": [_rounded(right) for _, right in pairs],
        "middle": [_rounded((left + right) / 2) for left, right in pairs],
        "before": [_rounded(max(value, floor)) for value in values.before],
        "after": [_rounded(max(value, floor)) for value in values.after],
        "floor": [floor] * len(pairs),
    }


_PALETTE: list[str] = list(reversed(Cividis256))[
    24:-16
]  # light is harmless, dark is sensitive; the extremes drown the text
_CENTERED: dict[str, Any] = {
    "text_align": "center",
    "text_baseline": "middle",
    "text_font": value(_FONT),
    "text_font_size": "12px",
}


# Decades that a logarithmic axis spans, at most -> the ticks of each.
_TICKS = ((0.7, (1, 1.5, 2, 3, 5, 7)), (1.7, (1, 2, 5)), (3, (1, 3)), (math.inf, (1,)))


def blank(*, height: int, **options: Any) -> figure:
    plot = figure(
        height=height,
        sizing_mode="stretch_width",
        toolbar_location=None,
        tools="",
        background_fill_color="#ffffff",
        border_fill_color="#ffffff",
        outline_line_color=None,
        min_border_right=14,
        **options,
    )
    plot.axis.axis_label_text_font = plot.axis.major_label_text_font = _FONT
    plot.axis.axis_label_text_font_style = "normal"
    plot.axis.axis_label_text_font_size = plot.axis.major_label_text_font_size = "12px"
    plot.axis.axis_label_text_color = plot.axis.major_label_text_color = _INK
    plot.axis.axis_line_color = plot.axis.major_tick_line_color = "#b5bac0"
    plot.axis.minor_tick_line_color = None
    plot.grid.grid_line_color = _FAINT
    for axis in plot.axis:
        if isinstance(axis.formatter, BasicTickFormatter):
            axis.ticker = BasicTicker(desired_num_ticks=5)
    return plot


def hover(tips: list[tuple[str, str]], renderer: Any) -> HoverTool:
    return HoverTool(tooltips=tips, renderers=[renderer])


def _log_ticks(low: float, high: float) -> dict[float, str]:
    """Ticks of a logarithmic axis and their labels: few enough for a phone."""
    decades = math.log10(high / low)
    steps = next(steps for most, steps in _TICKS if decades <= most)
    stride = max(1, round(decades / 6))
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [float(f"{step}e{power}") for power in powers if power % stride == 0 for step in steps]
    return {tick: number(tick) for tick in ticks}


def _runtime_colors(runtimes: list[str]) -> dict[str, str]:
    """Bitwright in blue, the original's precisions in greys, others in the order of the palette."""
    fixed = {"bitwright": BLUE, "torch fp32": GREY, "torch bf16": "#b3b8bd"}
    others = iter(SERIES[1:] * len(runtimes))
    return {name: fixed.get(name) or next(others) for name in runtimes}


def _heat_color(emd: float, low: float, high: float) -> str:
    if not math.isfinite(emd):
        return INFINITE
    if emd <= low:
        return _PALETTE[0]
    position = math.log(emd / low) / math.log(high / low)
    return _PALETTE[min(int(position * len(_PALETTE)), len(_PALETTE) - 1)]


def _luminance(color: str) -> float:
    """Relative luminance of "#rrggbb" (WCAG 2.2): white text on less than 0.18 has the better contrast."""
    channels = (int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _short(emd: float) -> str:
    """Two significant digits, to fit a cell of a phone."""
    return f"{emd:.2g}".replace("e-0", "e-") if math.isfinite(emd) else "∞"


def _shape(row: SpeedRow) -> str:
    return f"{number(row.batch)} × {number(row.tokens)}"


def _rounded(value: float) -> float:
    """Four significant digits: enough for a screen, and it keeps the page small."""
    return float(f"{value:.4g}")

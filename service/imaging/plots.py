"""Line charts on white, side by side, each with its legend, by matplotlib. This module does not know what the numbers mean."""

from __future__ import annotations

import functools
import threading
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator, StrMethodFormatter
from matplotlib.transforms import ScaledTranslation
from numpy.typing import NDArray

Color = tuple[int, int, int]
LineStyle = Literal["solid", "dashed", "dashdot", "dotted"]

# Okabe and Ito's colours, which colour-blind readers can distinguish, without black and without yellow, which is pale on white.
OKABE_ITO: Final[tuple[Color, ...]] = (
    (0, 114, 178),
    (213, 94, 0),
    (0, 158, 115),
    (204, 121, 167),
    (230, 159, 0),
    (86, 180, 233),
)
GREY: Final[Color] = (110, 110, 110)

# The font comes with matplotlib, so that an image is the same on every machine.
_FONT: Final = "DejaVu Sans"

# Lengths are in inches, font sizes in points.
_DPI: Final = 150
_MARGIN, _LEFT, _RIGHT, _GAP = 0.3, 0.62, 0.12, 0.35
_WIDTH, _HEIGHT = 4.6, 3.1  # of the area between the axes
_HEAD, _ABOVE, _BELOW = 0.66, 0.36, 0.66  # heights: figure heading; chart title; tick labels and label of the x axis
_LEGEND_ROW, _LEGEND_LINE = 0.21, 0.45  # height of a row, width of its line sample
_HEADING_SIZE, _TITLE_SIZE, _SIZE = 15, 11.5, 9.5
_TEXT, _PALE_TEXT, _GRID = "#1a1a1a", "#5c5c5c", "#e2e2e2"
_MAX_CHARACTERS: Final = 500  # of a text; further ones are dropped first, for no text is that wide
_MAX_MARKS: Final = 2  # combining marks of one character; more would overlap other lines

# matplotlib is not thread-safe: its parameters, its list of fonts and its caches of text layouts are process-wide. Several
# codec threads may call `plot_curves` at once.
_DRAW_LOCK: Final = threading.Lock()


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One line of a chart.

    Attributes:
        label: the text in the legend, truncated where it is too long.
        note: a few numbers in brackets behind the label, never truncated.
        values: at least two finite numbers, at equal distances from x = 0 to x = 1.
        color: (red, green, blue), 0..255.
        line_style: matplotlib's name of the line style.
    """

    label: str
    note: str
    values: tuple[float, ...]
    color: Color
    line_style: LineStyle = "solid"


@dataclass(frozen=True, slots=True, kw_only=True)
class CurveChart:
    """Curves over one pair of axes; at least one curve. The first curve is drawn on top of the others."""

    title: str
    x_label: str
    y_label: str
    curves: tuple[Curve, ...]


def plot_curves(charts: Sequence[CurveChart], *, title: str, note: str) -> NDArray[np.uint8]:
    """Draws charts side by side, with one scale of values for all of them.

    Texts may contain any character: one that DejaVu Sans does not have becomes U+FFFD, one that is not printable a space. A
    text that is too long is truncated. Equal arguments give equal pixels. Several threads may call this function; one draws at
    a time, for about 0.1 s.

    Args:
        charts: at least one.
        title: the large first line above the charts.
        note: the small second line.

    Returns:
        uint8 ``[H, W, 3]`` RGB.
    """
    # A matplotlibrc of the machine is ignored, and a `$` in a label is a dollar sign, not the start of a formula.
    defaults = mpl.rc_context(mpl.rcParamsDefault)
    style = mpl.rc_context({"font.family": _FONT, "font.size": _SIZE, "text.color": _TEXT, "text.parse_math": False})
    with _DRAW_LOCK, defaults, style:
        legend = max(len(chart.curves) for chart in charts) * _LEGEND_ROW
        column = _LEFT + _WIDTH + _RIGHT
        width = 2 * _MARGIN + len(charts) * column + (len(charts) - 1) * _GAP
        height = 2 * _MARGIN + _HEAD + _ABOVE + _HEIGHT + _BELOW + legend
        figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white")
        for text, size, color, top in ((title, _HEADING_SIZE, _TEXT, 0.0), (note, _SIZE, _PALE_TEXT, 0.34)):
            position = (_MARGIN / width, 1 - (_MARGIN + top) / height)
            figure.text(*position, _truncate(figure, text, size, width - 2 * _MARGIN), size=size, color=color, va="top")
        values = [value for chart in charts for curve in chart.curves for value in curve.values]
        for index, chart in enumerate(charts):
            left, bottom = _MARGIN + index * (column + _GAP) + _LEFT, _MARGIN + legend + _BELOW
            axes = figure.add_axes((left / width, bottom / height, _WIDTH / width, _HEIGHT / height))
            _set_scale(axes, min(0.0, *values), max(0.0, *values))
            _draw_chart(figure, axes, chart)
        canvas: Any = FigureCanvasAgg(figure)  # its methods have no types
        canvas.draw()
        return np.array(canvas.buffer_rgba(), np.uint8)[..., :3].copy()


def _set_scale(axes: Axes, low: float, high: float) -> None:
    """Sets limits, ticks and a grid: x from 0 to 1, y from the lowest value to a little above the highest."""
    axes.set_xlim(0, 1)
    axes.set_ylim(low, high + 0.04 * (high - low) if high > low else low + 1)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        axis.set_major_formatter(StrMethodFormatter("{x:.3g}"))
    axes.tick_params(length=0, labelcolor=_PALE_TEXT, pad=6)
    axes.grid(color=_GRID, linewidth=0.96)  # two whole pixels
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_PALE_TEXT)


def _draw_chart(figure: Figure, axes: Axes, chart: CurveChart) -> None:
    """Draws the lines of one chart, its title, its labels and its legend."""
    lines = []
    for index, curve in enumerate(chart.curves):
        lines += axes.plot(
            np.linspace(0, 1, len(curve.values)),
            curve.values,
            color="#{:02x}{:02x}{:02x}".format(*curve.color),
            linestyle=curve.line_style,
            linewidth=2,
            zorder=3 + len(chart.curves) - index,
            clip_on=False,  # clipping would remove half of the width of a line along an edge
        )
    axes.set_title(_truncate(figure, chart.title, _TITLE_SIZE, _WIDTH), size=_TITLE_SIZE, loc="left", pad=10)
    axes.set_xlabel(_truncate(figure, chart.x_label, _SIZE, _WIDTH), color=_PALE_TEXT, labelpad=6)
    axes.set_ylabel(_truncate(figure, chart.y_label, _SIZE, _HEIGHT), color=_PALE_TEXT, labelpad=6)
    legend = axes.legend(
        lines,
        [""] * len(lines),
        loc="upper left",
        bbox_to_anchor=(0, 0),
        bbox_transform=axes.transAxes + ScaledTranslation(0, -_BELOW, figure.dpi_scale_trans),
        frameon=False,
        borderpad=0,
        borderaxespad=0,
        handlelength=2.4,
    )
    # The texts are set afterwards, because matplotlib leaves labels that begin with an underscore out of the legend.
    for text, curve in zip(legend.get_texts(), chart.curves, strict=True):
        note = f" ({curve.note})" if curve.note else ""
        text.set_text(_truncate(figure, curve.label, _SIZE, _WIDTH - _LEGEND_LINE, note))


def _truncate(figure: Figure, text: str, size: float, max_width: float, note: str = "") -> str:
    """A text, truncated so that text and note together are at most `max_width` inches wide, and the note behind it."""
    text, note = _make_printable(text[:_MAX_CHARACTERS]), _make_printable(note)
    artist = Text(figure=figure, size=size)

    def fits(candidate: str) -> bool:
        artist.set_text(candidate)
        return artist.get_window_extent().width <= max_width * _DPI

    if fits(text + note):
        return text + note
    low, high = 0, len(text)
    while high - low > 1:
        middle = (low + high) // 2
        if fits(text[:middle].rstrip() + "…" + note):
            low = middle
        else:
            high = middle
    return text[:low].rstrip() + "…" + note


def _make_printable(text: str) -> str:
    """The text in one line, with characters of the font alone, for others would raise a warning, and few marks on each."""
    code_points = _font_code_points()
    characters = []
    marks = 0
    for character in text:
        marks = marks + 1 if unicodedata.combining(character) else 0
        if not character.isprintable():
            characters.append(" ")
        elif marks <= _MAX_MARKS:
            characters.append(character if ord(character) in code_points else "\ufffd")
    return "".join(characters)


@functools.cache
def _font_code_points() -> frozenset[int]:
    """Every code point for which the font has a glyph."""
    return frozenset(FT2Font(findfont(_FONT)).get_charmap())

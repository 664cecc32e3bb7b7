"""Line plots on white: axes side by side, labelled, with a legend. Knows numbers only, not what they mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from service.imaging.sheet import GREY, INK, LINE, SheetWriter

# Okabe and Ito's colours, which colour-blind readers can tell apart; then again, in the same order.
INKS: Final = ((0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (230, 159, 0), (86, 180, 233))

_MARGIN, _TITLE_HEIGHT, _GAP = 28, 62, 46
_WIDTH, _HEIGHT = 430, 300  # of the field between the axes
_LEFT, _ABOVE, _BELOW = 44, 32, 50  # of each field, for its numbers and names
_LEGEND_LINE: Final = 22
_TITLE_SIZE, _SIZE = 21, 14
_TICKS: Final = 5
_FRACTION: Final = 4  # bits that OpenCV takes for parts of a pixel


@dataclass(frozen=True, slots=True)
class Line:
    """Values at equal distances from 0 to 1, and what the legend says of them."""

    label: str
    values: tuple[float, ...]
    ink: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Axes:
    """One field: its heading, the name below it, and its lines; values from 0 up."""

    title: str
    below: str
    lines: tuple[Line, ...]


def plot(axes: Sequence[Axes], *, title: str, note: str) -> NDArray[np.uint8]:
    """Draw the axes side by side.

    Args:
        axes: at least one.
        title: stands above, large.
        note: stands below it, small.

    Returns:
        uint8 ``[H, W, 3]``.
    """
    legend = max(len(one.lines) for one in axes) * _LEGEND_LINE
    field = _LEFT + _WIDTH
    width = 2 * _MARGIN + len(axes) * field + (len(axes) - 1) * _GAP
    height = 2 * _MARGIN + _TITLE_HEIGHT + _ABOVE + _HEIGHT + _BELOW + legend
    corners = [(_MARGIN + place * (field + _GAP) + _LEFT, _MARGIN + _TITLE_HEIGHT + _ABOVE) for place in range(len(axes))]
    tops = [_ceiling(max(max(line.values) for line in one.lines)) for one in axes]
    canvas = np.full((height, width, 3), 255, np.uint8)
    for one, corner, top in zip(axes, corners, tops, strict=True):
        _field(canvas, one, corner, top)
    sheet = Image.fromarray(canvas)
    pen = SheetWriter(ImageDraw.Draw(sheet), 1)
    pen.write(_MARGIN, _MARGIN, title, _TITLE_SIZE, INK, width - 2 * _MARGIN)
    pen.write(_MARGIN, _MARGIN + 30, note, _SIZE, GREY, width - 2 * _MARGIN)
    for one, corner, top in zip(axes, corners, tops, strict=True):
        _words(pen, one, corner, top)
    return np.array(sheet)


def _ceiling(value: float) -> float:
    """The next of 1, 2, 5 times a power of ten that is not below the value."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= value * (1 - 1e-9))


def _field(canvas: NDArray[np.uint8], axes: Axes, corner: tuple[int, int], top: float) -> None:
    left, above = corner
    for tick in range(_TICKS + 1):
        row, column = above + _HEIGHT * tick // _TICKS, left + _WIDTH * tick // _TICKS
        cv2.line(canvas, (left, row), (left + _WIDTH, row), LINE, 1)
        cv2.line(canvas, (column, above), (column, above + _HEIGHT), LINE, 1)
    for line in reversed(axes.lines):  # the first named lies on top
        columns = left + _WIDTH * np.linspace(0, 1, len(line.values))
        rows = above + _HEIGHT * (1 - np.clip(np.array(line.values) / top, 0, 1))
        points = np.rint(np.stack([columns, rows], axis=1) * (1 << _FRACTION)).astype(int).tolist()
        for start, end in pairwise(points):
            cv2.line(canvas, start, end, line.ink, 2, cv2.LINE_AA, _FRACTION)
    base = above + _HEIGHT
    for place, line in enumerate(axes.lines):
        row = base + _BELOW + 12 + place * _LEGEND_LINE
        cv2.line(canvas, (left, row), (left + 22, row), line.ink, 3, cv2.LINE_AA)
    for end in ((left, above), (left + _WIDTH, base)):
        cv2.line(canvas, (left, base), end, GREY, 1)


def _words(pen: SheetWriter, axes: Axes, corner: tuple[int, int], top: float) -> None:
    left, above = corner
    pen.write(left, above - 26, axes.title, _SIZE, INK, _WIDTH)
    for tick in range(_TICKS + 1):
        pen.write(
            left - 8, above + _HEIGHT * (1 - tick / _TICKS) - 8, f"{top * tick / _TICKS:.3g}", _SIZE, GREY, _LEFT, right=True
        )
        pen.write(left + _WIDTH * tick / _TICKS + 12, above + _HEIGHT + 8, f"{tick / _TICKS:g}", _SIZE, GREY, _LEFT, right=True)
    pen.write(left, above + _HEIGHT + 28, axes.below, _SIZE, GREY, _WIDTH)
    for place, line in enumerate(axes.lines):
        row = above + _HEIGHT + _BELOW + 4 + place * _LEGEND_LINE
        pen.write(left + 34, row, line.label, _SIZE, INK, _WIDTH - 34)

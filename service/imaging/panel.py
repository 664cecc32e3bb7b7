"""A contact sheet for reports: one row per class, with image, heatmap and overlay side by side, from arrays and texts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from service.imaging.sheet import GREY, MAX_PIXELS, MAX_SIDE, TEXT_COLOR, SheetWriter, paste

_CELL_WIDTHS: Final = (240, 800)  # the smallest and the largest width of a cell
_MAX_ASPECT: Final = 1.5  # of a cell: its height over its width
_HEADINGS: Final = ("Image", "Heatmap", "Overlay")

# Lengths are in pixels before the sheet is scaled to its maximum size.
_MARGIN, _GAP, _BETWEEN_ROWS = 28, 14, 26
_HEADING_SIZE, _CAPTION_SIZE, _NOTE_SIZE = 14, 21, 14
_HEADING_HEIGHT, _CAPTION_HEIGHT, _FOOT_HEIGHT, _BAR_HEIGHT = 38, 56, 44, 10


@dataclass(frozen=True, slots=True, kw_only=True)
class PanelRow:
    """One class: three uint8 ``[H, W, 3]`` images of one size, a caption and a small grey second line."""

    rgb: NDArray[np.uint8]
    heat_rgb: NDArray[np.uint8]
    overlay_rgb: NDArray[np.uint8]
    caption: str
    note: str


def contact_sheet(
    rows: Sequence[PanelRow], *, bar: NDArray[np.uint8] | None = None, bar_ends: tuple[str, str] = ("low", "high")
) -> NDArray[np.uint8]:
    """Draws the rows on white.

    Args:
        rows: at least one.
        bar: uint8 ``[256, 3]`` RGB, the colours of the heatmaps (`overlay.lut`), for a colour bar; None for no colour bar.
        bar_ends: the labels of the two ends of the bar.

    Returns:
        uint8 ``[H, W, 3]``; at most 16 megapixels for any number of rows.
    """
    width = float(np.clip(max(row.rgb.shape[1] for row in rows), *_CELL_WIDTHS))
    heights = [min(width * row.rgb.shape[0] / row.rgb.shape[1], width * _MAX_ASPECT) for row in rows]
    full_width = 2 * _MARGIN + 2 * _GAP + 3 * width
    full_height = 2 * _MARGIN + _HEADING_HEIGHT + _FOOT_HEIGHT + sum(heights) + len(rows) * (_CAPTION_HEIGHT + _BETWEEN_ROWS)
    scale = min(1.0, math.sqrt(MAX_PIXELS / (full_width * full_height)), MAX_SIDE / full_height)
    # Sides are rounded down to whole pixels, so that the sheet does not exceed its maximum size.
    sheet = Image.new("RGB", (int(full_width * scale), int(full_height * scale)), "white")
    writer = SheetWriter(ImageDraw.Draw(sheet), scale)
    columns = [_MARGIN + index * (width + _GAP) for index in range(3)]
    for left, heading in zip(columns, _HEADINGS, strict=True):
        writer.write(left, _MARGIN, heading, _HEADING_SIZE, GREY, width)

    top = float(_MARGIN + _HEADING_HEIGHT)
    for row, height in zip(rows, heights, strict=True):
        writer.write(_MARGIN, top, row.caption, _CAPTION_SIZE, TEXT_COLOR, full_width - 2 * _MARGIN)
        writer.write(_MARGIN, top + 29, row.note, _NOTE_SIZE, GREY, full_width - 2 * _MARGIN)
        top += _CAPTION_HEIGHT
        for left, image in zip(columns, (row.rgb, row.heat_rgb, row.overlay_rgb), strict=True):
            paste(sheet, image, left * scale, top * scale, width * scale, height * scale)
        top += height + _BETWEEN_ROWS
    if bar is not None:
        paste(
            sheet,
            np.repeat(bar[None], 8, axis=0),
            columns[1] * scale,
            top * scale,
            width * scale,
            _BAR_HEIGHT * scale,
            fill=True,
        )
        low, high = bar_ends
        writer.write(columns[1], top + _BAR_HEIGHT + 6, low, _NOTE_SIZE, GREY, width / 2)
        writer.write(columns[1] + width, top + _BAR_HEIGHT + 6, high, _NOTE_SIZE, GREY, width / 2, right=True)
    return np.array(sheet)

"""A contact sheet of many small images: sections with a title, each a grid of captioned tiles, from arrays and texts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from service.imaging.sheet import GREY, MAX_PIXELS, MAX_SIDE, TEXT_COLOR, SheetWriter, paste

# Lengths are in pixels before the sheet is scaled to its maximum size.
_MARGIN, _GAP, _BETWEEN_SECTIONS = 28, 12, 18
_TITLE_SIZE, _CAPTION_SIZE, _NOTE_SIZE = 19, 13, 13
_TITLE_HEIGHT, _CAPTION_HEIGHT = 52, 24


@dataclass(frozen=True, slots=True)
class Tile:
    """An image, uint8 ``[H, W, 3]``, and one line of text below it."""

    rgb: NDArray[np.uint8]
    caption: str


@dataclass(frozen=True, slots=True)
class Section:
    """A title, a small grey second line, and tiles."""

    title: str
    note: str
    tiles: tuple[Tile, ...]


def tile_sheet(sections: Sequence[Section], *, columns: int, width: int = 180) -> NDArray[np.uint8]:
    """Draws the sections on white, one below the other.

    Args:
        sections: at least one, each with at least one tile.
        columns: number of tiles side by side.
        width: width of a tile in pixels; smaller images are enlarged by a whole factor, so that single cells are visible.

    Returns:
        uint8 ``[H, W, 3]``; at most 16 megapixels.
    """
    heights = [max(width * tile.rgb.shape[0] / tile.rgb.shape[1] for tile in section.tiles) for section in sections]
    row_counts = [math.ceil(len(section.tiles) / columns) for section in sections]
    full_width = 2 * _MARGIN + columns * (width + _GAP) - _GAP
    full_height = 2 * _MARGIN + sum(
        _TITLE_HEIGHT + count * (height + _CAPTION_HEIGHT) + _BETWEEN_SECTIONS
        for height, count in zip(heights, row_counts, strict=True)
    )
    scale = min(1.0, math.sqrt(MAX_PIXELS / (full_width * full_height)), MAX_SIDE / full_height)
    sheet = Image.new("RGB", (int(full_width * scale), int(full_height * scale)), "white")
    writer = SheetWriter(ImageDraw.Draw(sheet), scale)
    top = float(_MARGIN)
    for section, height, count in zip(sections, heights, row_counts, strict=True):
        writer.write(_MARGIN, top, section.title, _TITLE_SIZE, TEXT_COLOR, full_width - 2 * _MARGIN)
        writer.write(_MARGIN, top + 26, section.note, _NOTE_SIZE, GREY, full_width - 2 * _MARGIN)
        top += _TITLE_HEIGHT
        for index, tile in enumerate(section.tiles):
            row, column = divmod(index, columns)
            tile_left, tile_top = _MARGIN + column * (width + _GAP), top + row * (height + _CAPTION_HEIGHT)
            paste(sheet, _enlarge(tile.rgb, width), tile_left * scale, tile_top * scale, width * scale, height * scale)
            writer.write(tile_left, tile_top + height + 5, tile.caption, _CAPTION_SIZE, TEXT_COLOR, width)
        top += count * (height + _CAPTION_HEIGHT) + _BETWEEN_SECTIONS
    return np.array(sheet)


def _enlarge(rgb: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    """Enlarges an image that is narrower than `width` to at least that width, by a whole factor and without smoothing."""
    if rgb.shape[1] >= width:
        return rgb
    factor = math.ceil(width / rgb.shape[1])
    size = (rgb.shape[1] * factor, rgb.shape[0] * factor)
    return np.asarray(cv2.resize(rgb, size, interpolation=cv2.INTER_NEAREST), np.uint8)

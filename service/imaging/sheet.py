"""The drawing operations of contact sheets: lines of text, and images in cells. This module knows the layout of no sheet."""

from __future__ import annotations

from bisect import bisect_right
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

# Bounds of a sheet, in pixels.
MAX_PIXELS: Final = 16_000_000
MAX_SIDE: Final = 16_000
TEXT_COLOR: Final = (26, 26, 26)
GREY: Final = (118, 118, 118)
LINE: Final = (222, 222, 222)


class SheetWriter:
    """Writes single lines of text on a sheet, truncated where they would be too long.

    Args:
        draw: Pillow's drawing context of the sheet.
        scale: pixels of the sheet per unit of the layout.
    """

    def __init__(self, draw: ImageDraw.ImageDraw, scale: float) -> None:
        self._draw, self._scale = draw, scale
        self._fonts: dict[int, ImageFont.ImageFont | ImageFont.FreeTypeFont] = {}

    def write(
        self, x: float, top: float, text: str, size: int, color: tuple[int, int, int], max_width: float, *, right: bool = False
    ) -> None:
        """Writes one line of text; lengths are in units of the layout.

        Args:
            x: the left end of the line, or its right end where `right`.
            top: its upper edge.
            text: any text; characters that are not printable become spaces.
            size: font size.
            color: (red, green, blue), 0..255.
            max_width: the width beyond which the text is truncated.
            right: whether the text is right-aligned.
        """
        font = self._fonts.setdefault(size, ImageFont.load_default(max(5.0, size * self._scale)))
        text = "".join(character if character.isprintable() else " " for character in text)
        if self._draw.textlength(text, font) > max_width * self._scale:
            # The largest number of characters that fit with the ellipsis behind them.
            ends = range(1, len(text))
            count = bisect_right(ends, max_width * self._scale, key=lambda end: self._draw.textlength(text[:end] + "…", font))
            text = text[:count].rstrip() + "…"
        self._draw.text((x * self._scale, top * self._scale), text, color, font, anchor="ra" if right else "la")


def paste(
    sheet: Image.Image, image: NDArray[np.uint8], left: float, top: float, width: float, height: float, *, fill: bool = False
) -> None:
    """Draws an image, uint8 ``[h, w, 3]``, in the centre of its cell, with a frame around it.

    Args:
        sheet: the sheet to draw on.
        image: the image, which is resized to the cell and keeps its aspect ratio.
        left: left edge of the cell, in pixels of the sheet.
        top: top edge of the cell.
        width: width of the cell.
        height: height of the cell.
        fill: whether the image fills the cell, without regard to its aspect ratio.
    """
    rows, columns = image.shape[:2]
    ratio = min(width / columns, height / rows)
    size = (max(1, int(width if fill else columns * ratio)), max(1, int(height if fill else rows * ratio)))
    if size != (columns, rows):
        is_smaller = size[0] < columns
        image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA if is_smaller else cv2.INTER_CUBIC), np.uint8)
    corner = (int(left + (width - size[0]) / 2), int(top + (height - size[1]) / 2))
    sheet.paste(Image.fromarray(image), corner)
    frame = (corner[0] - 1, corner[1] - 1, corner[0] + size[0], corner[1] + size[1])
    ImageDraw.Draw(sheet).rectangle(frame, outline=LINE)

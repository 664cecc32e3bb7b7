"""What every sheet is made with: a pen for single lines and a way to lay an image into its cell. Knows no sheet's layout."""

from __future__ import annotations

from bisect import bisect_right
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

INK: Final = (26, 26, 26)
GREY: Final = (118, 118, 118)
LINE: Final = (222, 222, 222)


class SheetWriter:
    """Writes single lines, cut short where they would leave their place."""

    def __init__(self, draw: ImageDraw.ImageDraw, scale: float) -> None:
        self._draw, self._scale = draw, scale
        self._fonts: dict[int, ImageFont.ImageFont | ImageFont.FreeTypeFont] = {}

    def write(
        self, left: float, top: float, text: str, size: int, ink: tuple[int, int, int], room: float, *, right: bool = False
    ) -> None:
        """Writes at the upper left corner, or upper `right`, in the sheet's own lengths; no longer than `room`."""
        font = self._fonts.setdefault(size, ImageFont.load_default(max(5.0, size * self._scale)))
        text = "".join(letter if letter.isprintable() else " " for letter in text)
        if self._draw.textlength(text, font) > room * self._scale:
            # As many letters as fit with the dots behind them.
            lengths = range(1, len(text))
            count = bisect_right(lengths, room * self._scale, key=lambda end: self._draw.textlength(text[:end] + "…", font))
            text = text[:count].rstrip() + "…"
        self._draw.text((left * self._scale, top * self._scale), text, ink, font, anchor="ra" if right else "la")


def paste(
    sheet: Image.Image, image: NDArray[np.uint8], left: float, top: float, width: float, height: float, *, fill: bool = False
) -> None:
    """Fit an image into its cell, centred, with a hairline around it; `fill` stretches it."""
    rows, columns = image.shape[:2]
    ratio = min(width / columns, height / rows)
    size = (max(1, int(width if fill else columns * ratio)), max(1, int(height if fill else rows * ratio)))
    if size != (columns, rows):
        shrinks = size[0] < columns
        image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC), np.uint8)
    corner = (int(left + (width - size[0]) / 2), int(top + (height - size[1]) / 2))
    sheet.paste(Image.fromarray(image), corner)
    frame = (corner[0] - 1, corner[1] - 1, corner[0] + size[0], corner[1] + size[1])
    ImageDraw.Draw(sheet).rectangle(frame, outline=LINE)

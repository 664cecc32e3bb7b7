"""How an image meets a network's input, and the way back. Knows boxes and pixels; knows no file, network or colour map.

Boxes are (left, top, right, bottom). Sizes are (width, height), but `input_size` is (height, width), as arrays have it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.vocabulary import Box, Fit, Interpolation, Preprocessing

_RESAMPLING: Final[dict[Interpolation, Image.Resampling]] = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_REDUCING_GAP: Final = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Which part of an image lies where in the input.

    Attributes:
        input_size: (height, width) of the input in pixels.
        source: box in the upright original that is resampled; not on whole pixels.
        window: box in the input where it lies; the whole input but for padding.
        region: box in the upright original that the network saw, on whole pixels.
        original: (width, height) of the upright original.
    """

    input_size: tuple[int, int]
    source: tuple[float, float, float, float]
    window: Box
    region: Box
    original: tuple[int, int]

    @property
    def reduction(self) -> float:
        """How many pixels of the original become one of the input, across or down, whichever are fewer."""
        left, top, right, bottom = self.source
        columns, rows = self.window[2] - self.window[0], self.window[3] - self.window[1]
        return min((right - left) / columns, (bottom - top) / rows)


def place(width: int, height: int, preprocessing: Preprocessing, fit: Fit) -> Placement:
    """Decide how an image of `width` by `height` pixels is laid into the input.

    `crop` is torchvision's ``Resize(short side)`` and ``CenterCrop``, to the pixel. `squash` stretches the whole image, `pad`
    keeps its shape and leaves margins, `native` takes it as it is.
    """
    if fit == "native":
        return _placement((height, width), (0, 0, width, height), (0, 0, width, height), (width, height))
    input_size = (preprocessing.height, preprocessing.width)
    if fit == "squash":
        return _placement(input_size, (0, 0, width, height), (0, 0, preprocessing.width, preprocessing.height), (width, height))
    if fit == "pad":
        scale = min(preprocessing.width / width, preprocessing.height / height)
        columns, rows = max(1, round(width * scale)), max(1, round(height * scale))
        left, top = (preprocessing.width - columns) // 2, (preprocessing.height - rows) // 2
        return _placement(input_size, (0, 0, width, height), (left, top, left + columns, top + rows), (width, height))

    columns, rows = _resized(width, height, preprocessing)
    left, crop_left, crop_width = _centre(columns, preprocessing.width)
    top, crop_top, crop_height = _centre(rows, preprocessing.height)
    across, down = width / columns, height / rows
    source = (crop_left * across, crop_top * down, (crop_left + crop_width) * across, (crop_top + crop_height) * down)
    return _placement(input_size, source, (left, top, left + crop_width, top + crop_height), (width, height))


def mean_color(preprocessing: Preprocessing) -> tuple[int, int, int]:
    """The RGB colour, 0..255, that is 0 once it is normalised: that of the margins of a padded image."""
    red, *others = (round(255 * mean) for mean in preprocessing.mean)
    green, blue = others or (red, red)
    return red, green, blue


def resample(
    rgb: NDArray[np.uint8],
    placement: Placement,
    interpolation: Interpolation,
    fill: tuple[int, int, int],
    reduction: int = 1,
) -> NDArray[np.uint8]:
    """Resample an image to the network's input.

    One resize makes the crop alone. Pillow's filter looks beyond the box that it is given, so that the result is that of a
    resize of the whole image and a crop after it. An image more than six times too large is first reduced to at least three
    times the size by averaging whole pixels, which Pillow's documentation calls hardly to be told from the filter alone.

    Args:
        rgb: uint8 ``[H, W, 3]``, the upright original.
        placement: from `place`, for the original's size.
        interpolation: Pillow's filter.
        fill: RGB of the margins of a padded image.
        reduction: how many pixels of the original, across and down, one of `rgb` stands for.

    Returns:
        uint8 ``[h, w, 3]``, contiguous.
    """
    left, top, right, bottom = placement.window
    size = (right - left, bottom - top)
    if size == placement.original and placement.region == (0, 0, *size):
        part = rgb
    else:
        image, how = Image.fromarray(rgb), _RESAMPLING[interpolation]
        box = (
            placement.source[0] / reduction,
            placement.source[1] / reduction,
            placement.source[2] / reduction,
            placement.source[3] / reduction,
        )
        part = np.asarray(image.resize(size, how, box, _REDUCING_GAP), np.uint8)
    if part.shape[:2] == placement.input_size:
        return np.ascontiguousarray(part)
    canvas = np.empty((*placement.input_size, 3), np.uint8)
    canvas[:] = fill
    canvas[top:bottom, left:right] = part
    return canvas


def fit_size(width: int, height: int, longest: int) -> tuple[int, int]:
    """(width, height) at the scale that makes the longest side `longest` pixels."""
    scale = longest / max(height, width)
    return max(1, round(width * scale)), max(1, round(height * scale))


def resize_image(rgb: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """An image, uint8 ``[H, W, 3]``, at another size of the same shape, but for rounding."""
    if rgb.shape[:2] == (height, width):
        return rgb
    how = cv2.INTER_AREA if width < rgb.shape[1] else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(rgb, (width, height), interpolation=how), np.uint8)


def resize_region(placement: Placement, width: int, height: int) -> Box:
    """`placement.region` in pixels of the original scaled to `width` by `height`; never empty."""
    across, down = width / placement.original[0], height / placement.original[1]
    left, top, right, bottom = placement.region
    return _whole((left * across, top * down, right * across, bottom * down), width, height)


def place_map(values: NDArray[np.float32], placement: Placement, width: int, height: int) -> NDArray[np.float32]:
    """Draw a map of the network's input on an image of the original.

    Args:
        values: float32 ``[h, w]`` at the input's size.
        placement: how the original was laid into the input.
        width: of the image, the original at any scale.
        height: of the image.

    Returns:
        float32 ``[height, width]``: the map where the network looked, 0 elsewhere.
    """
    left, top, right, bottom = placement.window
    seen = np.ascontiguousarray(values[top:bottom, left:right])
    left, top, right, bottom = resize_region(placement, width, height)
    if seen.shape != (bottom - top, right - left):
        seen = np.asarray(cv2.resize(seen, (right - left, bottom - top), interpolation=cv2.INTER_LINEAR), np.float32)
    if seen.shape == (height, width):
        return seen
    canvas = np.zeros((height, width), np.float32)
    canvas[top:bottom, left:right] = seen
    return canvas


def _placement(
    input_size: tuple[int, int], source: tuple[float, float, float, float], window: Box, original: tuple[int, int]
) -> Placement:
    return Placement(input_size=input_size, source=source, window=window, region=_whole(source, *original), original=original)


def _resized(width: int, height: int, preprocessing: Preprocessing) -> tuple[int, int]:
    """The size before the crop; the long side is cut to a whole number as torchvision does, not rounded."""
    if preprocessing.resize is None:
        scale = max(preprocessing.width / width, preprocessing.height / height)
        return max(preprocessing.width, round(width * scale)), max(preprocessing.height, round(height * scale))
    if width <= height:
        return preprocessing.resize, int(preprocessing.resize * height / width)
    return int(preprocessing.resize * width / height), preprocessing.resize


def _centre(length: int, wanted: int) -> tuple[int, int, int]:
    """Centre `wanted` pixels on a side of `length`: (where they start in the input, where in the side, how many there are)."""
    if length < wanted:
        return (wanted - length) // 2, 0, length
    return 0, round((length - wanted) / 2), wanted


def _whole(box: tuple[float, float, float, float], width: int, height: int) -> Box:
    """The nearest box on whole pixels that lies in the image and holds at least one of them."""
    left, top = min(round(box[0]), width - 1), min(round(box[1]), height - 1)
    return left, top, min(max(round(box[2]), left + 1), width), min(max(round(box[3]), top + 1), height)

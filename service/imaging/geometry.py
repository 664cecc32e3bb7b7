"""The placement of an image in a network's input: resampling of the image to the input, and of a map back to the image.

This module knows no file, network or colour map. Boxes are (left, top, right, bottom). Sizes are (width, height), except
`input_size`, which is (height, width), as in the shape of an array.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.vocabulary import Box, Fit, Interpolation, MapInterpolation, Preprocessing

_RESAMPLING: Final[dict[Interpolation, Image.Resampling]] = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_MAP_RESAMPLING: Final[dict[MapInterpolation, int]] = {
    "bilinear": cv2.INTER_LINEAR,
    "nearest": cv2.INTER_NEAREST_EXACT,
    "bicubic": cv2.INTER_CUBIC,
}
_REDUCING_GAP: Final = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """The part of an image that is resampled, and its place in the input.

    Attributes:
        input_size: (height, width) of the input in pixels.
        source: box in the upright original that is resampled, in fractions of pixels.
        window: box in the input to which `source` is resampled; the whole input without the padding.
        region: `source` rounded to whole pixels: the box in the upright original that is the network's input.
        original: (width, height) of the upright original.
    """

    input_size: tuple[int, int]
    source: tuple[float, float, float, float]
    window: Box
    region: Box
    original: tuple[int, int]

    @property
    def reduction(self) -> float:
        """The width or height of a pixel of the input, in pixels of the original, whichever is smaller."""
        left, top, right, bottom = self.source
        columns, rows = self.window[2] - self.window[0], self.window[3] - self.window[1]
        return min((right - left) / columns, (bottom - top) / rows)


def place(width: int, height: int, preprocessing: Preprocessing, fit: Fit) -> Placement:
    """The placement of an image of `width` by `height` pixels in the input.

    `crop` is torchvision's ``Resize(short side)`` and ``CenterCrop``, to the pixel. `squash` resizes the whole image to the
    input, or to a little more and crops it where the preprocessing says so; `pad` keeps its aspect ratio and pads it, `native`
    uses the image itself as the input.
    """
    if fit == "native":
        return _make_placement((height, width), (0, 0, width, height), (0, 0, width, height), (width, height))
    input_size = (preprocessing.height, preprocessing.width)
    if fit == "pad":
        scale = min(preprocessing.width / width, preprocessing.height / height)
        columns, rows = max(1, round(width * scale)), max(1, round(height * scale))
        left, top = (preprocessing.width - columns) // 2, (preprocessing.height - rows) // 2
        return _make_placement(input_size, (0, 0, width, height), (left, top, left + columns, top + rows), (width, height))

    if fit == "squash":
        columns, rows = (int(side / preprocessing.squash_crop) for side in (preprocessing.width, preprocessing.height))
    else:
        columns, rows = _size_before_crop(width, height, preprocessing)
    left, crop_left, crop_width = _center_crop(columns, preprocessing.width)
    top, crop_top, crop_height = _center_crop(rows, preprocessing.height)
    scale_x, scale_y = width / columns, height / rows
    source = (crop_left * scale_x, crop_top * scale_y, (crop_left + crop_width) * scale_x, (crop_top + crop_height) * scale_y)
    return _make_placement(input_size, source, (left, top, left + crop_width, top + crop_height), (width, height))


def mean_color(preprocessing: Preprocessing) -> tuple[int, int, int]:
    """The RGB colour, 0..255, whose normalised value is 0: the colour of padding."""
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
    """Resamples an image to the network's input.

    A single resize computes the crop. Pillow's filter reads pixels beyond its box, so the result is equal to a resize of the
    whole image followed by a crop. An image more than six times too large is first reduced to at least three times the size by
    averaging whole pixels; according to Pillow's documentation the difference to the filter alone is barely noticeable.

    Args:
        rgb: uint8 ``[H, W, 3]``, the upright original.
        placement: from `place`, for the original's size.
        interpolation: Pillow's filter.
        fill: RGB colour of the padding.
        reduction: width and height, in pixels of the original, of one pixel of `rgb`.

    Returns:
        uint8 ``[h, w, 3]``, contiguous.
    """
    left, top, right, bottom = placement.window
    size = (right - left, bottom - top)
    if size == placement.original and placement.region == (0, 0, *size):
        content = rgb
    else:
        image, resampling = Image.fromarray(rgb), _RESAMPLING[interpolation]
        box = (
            placement.source[0] / reduction,
            placement.source[1] / reduction,
            placement.source[2] / reduction,
            placement.source[3] / reduction,
        )
        content = np.asarray(image.resize(size, resampling, box, _REDUCING_GAP), np.uint8)
    if content.shape[:2] == placement.input_size:
        return np.ascontiguousarray(content)
    canvas = np.empty((*placement.input_size, 3), np.uint8)
    canvas[:] = fill
    canvas[top:bottom, left:right] = content
    return canvas


def fit_size(width: int, height: int, longest: int) -> tuple[int, int]:
    """(width, height) at the scale at which the longest side has `longest` pixels."""
    scale = longest / max(height, width)
    return max(1, round(width * scale)), max(1, round(height * scale))


def resize_image(rgb: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """Resizes an image, uint8 ``[H, W, 3]``, to a size of the same aspect ratio, up to rounding."""
    if rgb.shape[:2] == (height, width):
        return rgb
    interpolation = cv2.INTER_AREA if width < rgb.shape[1] else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(rgb, (width, height), interpolation=interpolation), np.uint8)


def resize_region(placement: Placement, width: int, height: int) -> Box:
    """`placement.region` in pixels of the original scaled to `width` by `height`; never empty."""
    scale_x, scale_y = width / placement.original[0], height / placement.original[1]
    left, top, right, bottom = placement.region
    return _round_box((left * scale_x, top * scale_y, right * scale_x, bottom * scale_y), width, height)


def resize_map(values: NDArray[np.float32], width: int, height: int, interpolation: MapInterpolation) -> NDArray[np.float32]:
    """Spreads a map over `width` by `height` pixels, cells with their centres between the pixels that they cover.

    Args:
        values: float32 ``[h, w]``.
        width: of the result.
        height: of the result.
        interpolation: `bilinear` is OpenCV's, as in pytorch-grad-cam; `nearest` shows the cells as they are; `bicubic` is
            smooth, and clipped to the lowest and the highest of `values`, which it would overshoot.

    Returns:
        float32 ``[height, width]``, of no value beyond those of `values`.
    """
    resized = np.asarray(cv2.resize(values, (width, height), interpolation=_MAP_RESAMPLING[interpolation]), np.float32)
    return np.clip(resized, values.min(), values.max()) if interpolation == "bicubic" else resized


def place_map(
    values: NDArray[np.float32],
    placement: Placement,
    width: int,
    height: int,
    interpolation: MapInterpolation = "bilinear",
) -> NDArray[np.float32]:
    """Resamples a map of the network's input to the original image.

    Args:
        values: float32 ``[h, w]`` at the input's size.
        placement: the placement of the original in the input.
        width: width of the result, the original at any scale.
        height: height of the result.
        interpolation: as in `resize_map`.

    Returns:
        float32 ``[height, width]``: the map in the placement's region, 0 elsewhere.
    """
    left, top, right, bottom = placement.window
    region_map = np.ascontiguousarray(values[top:bottom, left:right])
    left, top, right, bottom = resize_region(placement, width, height)
    if region_map.shape != (bottom - top, right - left):
        region_map = resize_map(region_map, right - left, bottom - top, interpolation)
    if region_map.shape == (height, width):
        return region_map
    canvas = np.zeros((height, width), np.float32)
    canvas[top:bottom, left:right] = region_map
    return canvas


def crop_cells(cells: NDArray[np.float32], placement: Placement) -> NDArray[np.float32]:
    """The cells of a grid over the network's input whose centres lie in the image, not in its padding; at least one.

    Args:
        cells: float32 ``[rows, columns]``.
        placement: the placement of the original in the input.

    Returns:
        float32 ``[r, c]``, contiguous.
    """
    left, top, right, bottom = placement.window
    (height, width), (rows, columns) = placement.input_size, cells.shape
    vertical, horizontal = _cells_between(top, bottom, height, rows), _cells_between(left, right, width, columns)
    return np.ascontiguousarray(cells[vertical, horizontal])


def _cells_between(start: int, stop: int, length: int, cells: int) -> slice:
    """The cells of a side of `length` pixels whose centres lie from `start` to `stop`; the cell in their middle if none."""
    inside = [cell for cell in range(cells) if start <= (cell + 0.5) * length / cells < stop]
    middle = int((start + stop) / 2 * cells / length)
    return slice(inside[0], inside[-1] + 1) if inside else slice(middle, middle + 1)


def _make_placement(
    input_size: tuple[int, int], source: tuple[float, float, float, float], window: Box, original: tuple[int, int]
) -> Placement:
    region = _round_box(source, *original)
    return Placement(input_size=input_size, source=source, window=window, region=region, original=original)


def _size_before_crop(width: int, height: int, preprocessing: Preprocessing) -> tuple[int, int]:
    """(width, height) of the resized image before the crop; the long side is truncated as in torchvision, not rounded."""
    if preprocessing.resize is None:
        scale = max(preprocessing.width / width, preprocessing.height / height)
        return max(preprocessing.width, round(width * scale)), max(preprocessing.height, round(height * scale))
    if width <= height:
        return preprocessing.resize, int(preprocessing.resize * height / width)
    return int(preprocessing.resize * width / height), preprocessing.resize


def _center_crop(length: int, crop: int) -> tuple[int, int, int]:
    """A crop of `crop` pixels in the centre of a side: (start in the input, start in the side, number of pixels)."""
    if length < crop:
        return (crop - length) // 2, 0, length
    return 0, round((length - crop) / 2), crop


def _round_box(box: tuple[float, float, float, float], width: int, height: int) -> Box:
    """The nearest box on whole pixels that is inside the image and contains at least one pixel."""
    left, top = min(round(box[0]), width - 1), min(round(box[1]), height - 1)
    return left, top, min(max(round(box[2]), left + 1), width), min(max(round(box[3]), top + 1), height)

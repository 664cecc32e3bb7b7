"""Renders a heatmap in colour, alone or over an image. It blends arrays in 8-bit arithmetic and rescales no brightness.

Colour maps have 256 colours each: those of OpenCV by OpenCV's names, and a diverging one for signed maps.
"""

from __future__ import annotations

from functools import cache
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from service.vocabulary import Box, HeatmapOverlay

_OPENCV: Final = (
    "autumn", "bone", "jet", "winter", "rainbow", "ocean", "summer", "spring", "cool", "hsv", "pink", "hot", "parula", "magma",
    "inferno", "plasma", "viridis", "cividis", "twilight", "twilight_shifted", "turbo", "deepgreen",
)  # fmt: skip
NAMES: Final = ("none", *_OPENCV, "diverging")

# ColorBrewer's RdBu with five classes, blue for "against" and red for "for".
_DIVERGING: Final = ((0x05, 0x71, 0xB0), (0x92, 0xC5, 0xDE), (0xF7, 0xF7, 0xF7), (0xF4, 0xA5, 0x82), (0xCA, 0x00, 0x20))
_MIDDLE: Final = 128
_DIM: Final = 0.4  # brightness factor of the image outside the region


def compose(
    rgb: NDArray[np.uint8],
    shades: NDArray[np.float32],
    *,
    region: Box,
    color_map: str | None,
    alpha: float,
    overlay_type: HeatmapOverlay,
    signed: bool,
) -> NDArray[np.uint8]:
    """Renders a heatmap over an image.

    Args:
        rgb: uint8 ``[H, W, 3]``.
        shades: float32 ``[H, W]``, 0..1, or -1..1 where `signed`.
        region: (left, top, right, bottom) of the network's input, in pixels of `rgb`; the map is rendered only there.
        color_map: one of `NAMES`, or None for the default: jet, or blue-white-red where `signed`.
        alpha: weight of the heatmap, 0..1; ignored by `mask_black` and `none`.
        overlay_type: `original` and `grayscale` blend ``(1 - alpha) * image + alpha * heatmap``, with the rest of the image
            dimmed; `fade` does so with alpha times the shade's magnitude in place of alpha, so that the image is untouched
            where the map is 0; `mask_black` multiplies the image by its shade's magnitude; `none` is the heatmap alone. The
            last two are black outside the region.
        signed: whether shades are signed.

    Returns:
        uint8 ``[H, W, 3]``, contiguous.
    """
    left, top, right, bottom = region
    inside = np.s_[top:bottom, left:right]
    image, region_shades = rgb[inside], shades[inside]
    if overlay_type == "mask_black":
        weight = cv2.convertScaleAbs(np.clip(region_shades, -1, 1), alpha=255)
        foreground = cv2.multiply(image, cv2.cvtColor(weight, cv2.COLOR_GRAY2RGB), scale=1 / 255)
        return _paste_into_frame(np.asarray(foreground, np.uint8), inside, np.zeros_like(rgb))

    heatmap = colorize(region_shades, color_map or default_color_map(signed=signed), signed=signed)
    if overlay_type == "none":
        return _paste_into_frame(heatmap, inside, np.zeros_like(rgb))
    covers_image = image.shape == rgb.shape
    if overlay_type == "grayscale":
        rgb = np.asarray(cv2.cvtColor(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB), np.uint8)
    if overlay_type == "fade":
        weight = np.minimum(np.abs(region_shades), 1) * np.float32(alpha)
        foreground = cv2.blendLinear(image, heatmap, 1 - weight, weight)
    else:
        foreground = cv2.addWeighted(rgb[inside], 1 - alpha, heatmap, alpha, 0)
    background = rgb if covers_image else np.asarray(cv2.convertScaleAbs(rgb, alpha=_DIM), np.uint8)
    return _paste_into_frame(np.asarray(foreground, np.uint8), inside, background)


def _paste_into_frame(
    foreground: NDArray[np.uint8], inside: tuple[slice, slice], background: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """Pastes the region into the background, which it overwrites; a region that covers the whole image is returned itself."""
    if foreground.shape == background.shape:
        return foreground
    background[inside] = foreground
    return background


def default_color_map(*, signed: bool) -> str:
    """The name of the default colour map."""
    return "diverging" if signed else "jet"


def default_overlay_type(*, signed: bool) -> HeatmapOverlay:
    """The default kind of overlay: the middle of the colours of a signed map is white, which would wash the image out."""
    return "fade" if signed else "original"


@cache
def lut(name: str) -> NDArray[np.uint8]:
    """The colours of a map, uint8 ``[256, 3]`` RGB, read-only.

    Raises:
        KeyError: there is no such map; see `NAMES`.
    """
    if name not in NAMES:
        raise KeyError(name)
    ramp = np.arange(256, dtype=np.uint8)
    if name == "none":
        colors = np.repeat(ramp[:, None], 3, axis=1)
    elif name == "diverging":
        colors = _diverging()
    else:
        code: int = getattr(cv2, f"COLORMAP_{name.upper()}")
        colors = np.ascontiguousarray(np.asarray(cv2.applyColorMap(ramp[:, None], code), np.uint8)[:, 0, ::-1])
    colors.setflags(write=False)
    return colors


def colorize(shades: NDArray[np.float32], name: str, *, signed: bool) -> NDArray[np.uint8]:
    """Maps shades to colours.

    Args:
        shades: float32 ``[H, W]``, 0..1, or -1..1 where `signed`; 0 is then the middle of the map. Values beyond are clipped.
        name: one of `NAMES`.
        signed: whether shades are signed.

    Returns:
        uint8 ``[H, W, 3]`` RGB.
    """
    scale, offset = (127.5, _MIDDLE) if signed else (255.0, 0)
    index = cv2.convertScaleAbs(np.clip(shades, -1 if signed else 0, 1), alpha=scale, beta=offset)
    return np.asarray(cv2.applyColorMap(index, lut(name).reshape(256, 1, 3)), np.uint8)


def _diverging() -> NDArray[np.uint8]:
    """Blue, white, red, interpolated linearly in CIELAB between the anchors, so that the map is perceptually uniform."""
    anchors = np.array(_DIVERGING, np.float32)[None] / 255
    lab = np.asarray(cv2.cvtColor(anchors, cv2.COLOR_RGB2Lab), np.float32)[0]
    stops = (0, _MIDDLE // 2, _MIDDLE, (_MIDDLE + 255) / 2, 255)
    smooth = np.stack([np.interp(np.arange(256), stops, channel) for channel in lab.T], axis=1).astype(np.float32)
    rgb = np.asarray(cv2.cvtColor(smooth[None], cv2.COLOR_Lab2RGB), np.float32)[0]
    return np.asarray(np.clip(rgb * 255, 0, 255).round(), np.uint8)

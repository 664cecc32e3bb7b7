"""A heatmap over an image. Knows arrays only; the blend is 8-bit arithmetic, no brightness is rescaled."""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from service.imaging import color_maps
from service.vocabulary import Box, HeatmapOverlay

_DIM: Final = 0.4  # brightness of what the network did not see


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
    """Draw a heatmap over an image.

    Args:
        rgb: uint8 ``[H, W, 3]``.
        shades: float32 ``[H, W]``, 0..1, or -1..1 where `signed`.
        region: (left, top, right, bottom) of what the network saw, in pixels of `rgb`; only there is the map drawn.
        color_map: one of `color_maps.NAMES`, or None for jet, and blue-white-red where `signed`.
        alpha: weight of the heatmap, 0..1; `mask_black` has no use for it.
        overlay_type: `original` and `grayscale` blend ``(1 - alpha) * image + alpha * heatmap``, with the rest of the image
            dimmed; `mask_black` multiplies the image by its shade's magnitude; `none` is the heatmap alone. The last two are
            black beyond the region.
        signed: whether negative shades mean something.

    Returns:
        uint8 ``[H, W, 3]``, contiguous.
    """
    left, top, right, bottom = region
    inside = np.s_[top:bottom, left:right]
    image, shown = rgb[inside], shades[inside]
    if overlay_type == "mask_black":
        weight = cv2.convertScaleAbs(np.clip(shown, -1, 1), alpha=255)
        drawn = cv2.multiply(image, cv2.cvtColor(weight, cv2.COLOR_GRAY2RGB), scale=1 / 255)
        return _framed(np.asarray(drawn, np.uint8), inside, np.zeros_like(rgb))

    heat = color_maps.colorize(shown, color_map or color_maps.default(signed=signed), signed=signed)
    if overlay_type == "none":
        return _framed(heat, inside, np.zeros_like(rgb))
    whole = image.shape == rgb.shape
    if overlay_type == "grayscale":
        rgb = np.asarray(cv2.cvtColor(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB), np.uint8)
    drawn = cv2.addWeighted(rgb[inside], 1 - alpha, heat, alpha, 0)
    ground = rgb if whole else np.asarray(cv2.convertScaleAbs(rgb, alpha=_DIM), np.uint8)
    return _framed(np.asarray(drawn, np.uint8), inside, ground)


def _framed(drawn: NDArray[np.uint8], inside: tuple[slice, slice], ground: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if drawn.shape == ground.shape:
        return drawn
    ground[inside] = drawn
    return ground

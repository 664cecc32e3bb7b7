"""Colour maps: 256 colours each, and shades drawn with them. OpenCV's under its own names, one of ours for signed maps."""

from __future__ import annotations

from functools import cache
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

_OPENCV: Final = (
    "autumn", "bone", "jet", "winter", "rainbow", "ocean", "summer", "spring", "cool", "hsv", "pink", "hot", "parula", "magma",
    "inferno", "plasma", "viridis", "cividis", "twilight", "twilight_shifted", "turbo", "deepgreen",
)  # fmt: skip
NAMES: Final = ("none", *_OPENCV, "diverging")

# ColorBrewer's RdBu with five classes, blue for "against" and red for "for".
_DIVERGING: Final = ((0x05, 0x71, 0xB0), (0x92, 0xC5, 0xDE), (0xF7, 0xF7, 0xF7), (0xF4, 0xA5, 0x82), (0xCA, 0x00, 0x20))
_MIDDLE: Final = 128


def default(*, signed: bool) -> str:
    """The map used where none is asked for."""
    return "diverging" if signed else "jet"


@cache
def lut(name: str) -> NDArray[np.uint8]:
    """Return the colours of a map, uint8 ``[256, 3]`` RGB, read-only.

    Raises:
        KeyError: no such map; see `NAMES`.
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
    """Draw shades in colour.

    Args:
        shades: float32 ``[H, W]``, 0..1, or -1..1 where `signed`; 0 is then the middle of the map. Beyond is cut.
        name: one of `NAMES`.
        signed: whether negative shades mean something.

    Returns:
        uint8 ``[H, W, 3]`` RGB.
    """
    scale, offset = (127.5, _MIDDLE) if signed else (255.0, 0)
    index = cv2.convertScaleAbs(np.clip(shades, -1 if signed else 0, 1), alpha=scale, beta=offset)
    return np.asarray(cv2.applyColorMap(index, lut(name).reshape(256, 1, 3)), np.uint8)


def _diverging() -> NDArray[np.uint8]:
    """Blue, white, red; straight lines in CIELAB between the anchors, so that equal steps look equal."""
    anchors = np.array(_DIVERGING, np.float32)[None] / 255
    lab = np.asarray(cv2.cvtColor(anchors, cv2.COLOR_RGB2Lab), np.float32)[0]
    stops = (0, _MIDDLE // 2, _MIDDLE, (_MIDDLE + 255) / 2, 255)
    smooth = np.stack([np.interp(np.arange(256), stops, channel) for channel in lab.T], axis=1).astype(np.float32)
    rgb = np.asarray(cv2.cvtColor(smooth[None], cv2.COLOR_Lab2RGB), np.float32)[0]
    return np.asarray(np.clip(rgb * 255, 0, 255).round(), np.uint8)

"""From bytes to what the network and the pen need of an image. Runs in a codec thread; knows no HTTP and no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.errors import ParameterInvalid
from service.explain.answer import Delivery, ImageInfo
from service.explain.model import Model, Wanted
from service.explain.options import Fit, Options
from service.imaging.decode import Picture, decode
from service.imaging.geometry import Box, Placement, place, prepare, scaled, scaled_region, spread
from service.imaging.headers import Limits

MAX_NATIVE_PIXELS = 1024 * 1024  # of a network's input: what a network does to a picture grows with its pixels
MAX_LISTED_VALUES = 1_000_000  # of one answer: a number in a list costs 50 times what it costs in an array
MAX_ENLARGED_PIXELS = 16_000_000  # of one picture: a small file must not ask for a giant
MAX_DRAWN_PIXELS = 256_000_000  # of one answer, over all its images and classes

Pixels = NDArray[np.uint8]
Map = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Seen:
    """One image, decoded, and as the network will see it: `pixels` uint8 ``[h, w, 3]``."""

    picture: Picture
    sha256: str
    placement: Placement
    pixels: Pixels

    @property
    def info(self) -> ImageInfo:
        """What the answer says of the image."""
        height, width, _ = self.picture.rgb.shape
        return ImageInfo(width, height, self.picture.format, self.sha256)


@dataclass(frozen=True, slots=True)
class Canvas:
    """What the maps of one image are drawn on: uint8 ``[H, W, 3]``, and the box in it that the network saw."""

    rgb: Pixels
    region: Box
    placement: Placement
    as_input: bool

    @classmethod
    def of(cls, seen: Seen, size: str | int) -> Canvas:
        """The picture at the size asked for: the original, the network's input, or scaled to a longest side."""
        if size == "input":
            return cls(seen.pixels, seen.placement.window, seen.placement, as_input=True)
        rgb = scaled(seen.picture.rgb, size) if isinstance(size, int) else seen.picture.rgb
        height, width, _ = rgb.shape
        return cls(rgb, scaled_region(seen.placement, width, height), seen.placement, as_input=False)

    def spread(self, values: Map) -> Map:
        """A map of the network's input, float32 ``[h, w]``, on the canvas, ``[H, W]``; 0 where the network did not look."""
        height, width, _ = self.rgb.shape
        if not self.as_input:
            return spread(values, self.placement, width, height)
        left, top, right, bottom = self.region
        laid = np.zeros_like(values)
        laid[top:bottom, left:right] = values[top:bottom, left:right]
        return laid


def see(data: bytes, limits: Limits, model: Model, fit: Fit | None) -> Seen:
    """Decodes an image and prepares the network's input.

    Raises:
        ImageError: the bytes are not a picture that can be used.
        ParameterInvalid: too large a picture for `fit=native`.
    """
    picture = decode(data, limits)
    height, width, _ = picture.rgb.shape
    fit = fit or model.fit
    if fit == "native" and height * width > MAX_NATIVE_PIXELS:
        raise ParameterInvalid(
            f"fit: native takes pictures of at most {MAX_NATIVE_PIXELS} pixels; this one has {height * width}."
        )
    placement = place(width, height, model.spec, fit)
    pixels = prepare(picture.rgb, placement, model.spec, model.fill)
    return Seen(picture, hashlib.sha256(data).hexdigest(), placement, pixels)


def check_effort(seen: Sequence[Seen], wanted: Sequence[Wanted], options: Options, delivery: Delivery) -> None:
    """Refuses an answer that would be too large to draw or to send, before the network is asked.

    Raises:
        ParameterInvalid: too many pixels or listed values in all.
    """
    total = 0
    for image, asked in zip(seen, wanted, strict=True):
        height, width, _ = image.picture.rgb.shape
        side = max(height, width)
        one = height * width
        if options.size == "input":
            one = image.pixels.shape[0] * image.pixels.shape[1]
        elif isinstance(options.size, int):
            one = round(one * (options.size / side) ** 2)
            if options.size > side and one > MAX_ENLARGED_PIXELS:
                raise ParameterInvalid(
                    f"size: pictures are enlarged to at most {MAX_ENLARGED_PIXELS} pixels; ask for a smaller size."
                )
        total += one * (len(asked.classes) or asked.best)
    limit = MAX_LISTED_VALUES if delivery == "json" and options.heatmap == "list" else MAX_DRAWN_PIXELS
    if total > limit:
        instead = ", or heatmap=npy." if limit == MAX_LISTED_VALUES else "."
        raise ParameterInvalid(
            f"size: the answer would hold {total} values of {limit} allowed; ask for a smaller size or fewer classes{instead}"
        )

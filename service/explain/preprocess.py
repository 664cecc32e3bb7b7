"""From bytes to what the network and the pen need of an image. Runs in a codec thread; knows no HTTP and no torch."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from service.errors import ImageTooManyPixels, ParameterInvalid
from service.explain.model import ClassSelection, Model
from service.explain.options import Fit, Options
from service.explain.results import Delivery, ImageInfo
from service.imaging.decode import DecodedImage, decode
from service.imaging.geometry import Box, Placement, fitted, place, prepare, scaled, scaled_region, spread
from service.imaging.headers import Limits

MAX_NATIVE_PIXELS = 1024 * 1024  # of a network's input: what a network does to an image grows with its pixels
MAX_LISTED_VALUES = 1_000_000  # of one answer: a number in a list costs 50 times what it costs in an array
MAX_ENLARGED_PIXELS = 16_000_000  # of one image: a small file must not ask for a giant
MAX_DRAWN_PIXELS = 256_000_000  # of one answer, over all its images and classes
SPARE_PIXELS = 2.0  # an image decoded smaller has at least so many pixels for one of the input, across and down

Size = Literal["original", "input"] | int  # of what is drawn: an int is the longest side, in pixels
Pixels = NDArray[np.uint8]
Map = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedImage:
    """One image, decoded, and as the network will see it: `pixels` uint8 ``[h, w, 3]``."""

    image: DecodedImage
    sha256: str
    placement: Placement
    pixels: Pixels

    @property
    def info(self) -> ImageInfo:
        """What the answer says of the image."""
        return ImageInfo(width=self.image.width, height=self.image.height, format=self.image.format, sha256=self.sha256)


@dataclass(frozen=True, kw_only=True)
class Canvas:
    """What the maps of one image are drawn on, `width` by `height` pixels, and the box in it that the network saw."""

    seen: PreparedImage
    width: int
    height: int
    region: Box
    as_input: bool

    @classmethod
    def of(cls, seen: PreparedImage, size: Size) -> Canvas:
        """The image at the size asked for: the original, the network's input, or scaled to a longest side."""
        image, placement = seen.image, seen.placement
        if size == "input":
            height, width = placement.input_size
            return cls(seen, width, height, placement.window, as_input=True)
        width, height = (image.width, image.height) if size == "original" else fitted(image.width, image.height, size)
        return cls(seen, width, height, scaled_region(placement, width, height), as_input=False)

    @functools.cached_property
    def rgb(self) -> Pixels:
        """The image, uint8 ``[H, W, 3]``."""
        return self.seen.pixels if self.as_input else scaled(self.seen.image.rgb, self.width, self.height)

    def spread(self, values: Map) -> Map:
        """A map of the network's input, float32 ``[h, w]``, on the canvas, ``[H, W]``; 0 where the network did not look."""
        if not self.as_input:
            return spread(values, self.seen.placement, self.width, self.height)
        left, top, right, bottom = self.region
        laid = np.zeros_like(values)
        laid[top:bottom, left:right] = values[top:bottom, left:right]
        return laid


def see(data: bytes, limits: Limits, model: Model, fit: Fit | None, drawn: Size | None = "original") -> PreparedImage:
    """Decodes an image and prepares the network's input.

    Args:
        data: the file.
        limits: of what is accepted.
        model: whose input.
        fit: how the image meets it; the model's own way where None.
        drawn: the size at which the image will be drawn; None where only numbers are asked for. What is more than that and
            the network need may be left out, see `decode`.

    Raises:
        ImageError: the bytes are not an image that can be used, or one too large for `fit=native`.
    """
    fit = fit or model.fit

    def spare(width: int, height: int) -> float:
        if drawn == "original" or fit == "native":
            return 1.0
        most = place(width, height, model.spec, fit).reduction / SPARE_PIXELS
        return min(most, max(width, height) / drawn) if isinstance(drawn, int) else most

    image = decode(data, limits, spare)
    width, height = image.width, image.height
    if fit == "native" and height * width > MAX_NATIVE_PIXELS:
        raise ImageTooManyPixels(
            f"fit: native takes images of at most {MAX_NATIVE_PIXELS} pixels; this one has {height * width}."
        )
    placement = place(width, height, model.spec, fit)
    pixels = prepare(image.rgb, placement, model.spec, model.fill, image.shrunk)
    return PreparedImage(image=image, sha256=hashlib.sha256(data).hexdigest(), placement=placement, pixels=pixels)


def check_effort(seen: Sequence[PreparedImage], wanted: Sequence[ClassSelection], options: Options, delivery: Delivery) -> None:
    """Refuses an answer that would be too large to draw or to send, before the network is asked.

    Raises:
        ParameterInvalid: too many pixels or listed values in all.
    """
    total = 0
    for image, asked in zip(seen, wanted, strict=True):
        height, width = image.image.height, image.image.width
        side = max(height, width)
        one = height * width
        if options.size == "input":
            one = image.pixels.shape[0] * image.pixels.shape[1]
        elif isinstance(options.size, int):
            one = round(one * (options.size / side) ** 2)
            if options.size > side and one > MAX_ENLARGED_PIXELS:
                raise ParameterInvalid(
                    f"size: images are enlarged to at most {MAX_ENLARGED_PIXELS} pixels; ask for a smaller size."
                )
        total += one * (len(asked.classes) or asked.best)
    limit = MAX_LISTED_VALUES if delivery == "json" and options.heatmap == "list" else MAX_DRAWN_PIXELS
    if total > limit:
        instead = ", or heatmap=npy." if limit == MAX_LISTED_VALUES else "."
        raise ParameterInvalid(
            f"size: the answer would hold {total} values of {limit} allowed; ask for a smaller size or fewer classes{instead}"
        )

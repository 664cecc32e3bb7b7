"""From bytes to what the network and the renderer need of an image. Runs in a codec thread; knows no HTTP and no torch."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from service.errors import ImageTooManyPixels
from service.explain.results import ImageInfo
from service.imaging.decode import DecodedImage, decode, take_pixels
from service.imaging.geometry import Placement, mean_color, place, resample
from service.imaging.headers import Limits
from service.vocabulary import Fit, Preprocessing, Size

MAX_NATIVE_PIXELS: Final = 1024 * 1024  # of a network's input: what a network does to an image grows with its pixels
SPARE_PIXELS: Final = 2.0  # an image decoded smaller has at least so many pixels for one of the input, across and down


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedImage:
    """One image, decoded, and as the network will see it: `pixels` uint8 ``[h, w, 3]``."""

    decoded: DecodedImage
    sha256: str
    placement: Placement
    pixels: NDArray[np.uint8]

    @property
    def info(self) -> ImageInfo:
        """What the answer says of the image."""
        decoded = self.decoded
        return ImageInfo(width=decoded.width, height=decoded.height, format=decoded.format, sha256=self.sha256)


def preprocess(
    data: bytes | NDArray[np.uint8],
    limits: Limits,
    preprocessing: Preprocessing,
    fit: Fit,
    rendered_size: Size | None = "original",
) -> PreparedImage:
    """Decodes an image and prepares the network's input.

    Args:
        data: the file, or upright pixels, uint8 ``[H, W, 3]``.
        limits: of what is accepted.
        preprocessing: of the network.
        fit: how the image meets it.
        rendered_size: the size at which the image will be rendered; None where only numbers are asked for. What is more than
            that and the network need may be left out, see `decode`.

    Raises:
        ImageError: the bytes are not an image that can be used, or one too large for `fit=native`.
    """

    def max_reduction(width: int, height: int) -> float:
        if rendered_size == "original" or fit == "native":
            return 1.0
        most = place(width, height, preprocessing, fit).reduction / SPARE_PIXELS
        return min(most, max(width, height) / rendered_size) if isinstance(rendered_size, int) else most

    decoded = decode(data, limits, max_reduction) if isinstance(data, bytes) else take_pixels(data, limits)
    width, height = decoded.width, decoded.height
    if fit == "native" and height * width > MAX_NATIVE_PIXELS:
        raise ImageTooManyPixels(
            f"fit: native takes images of at most {MAX_NATIVE_PIXELS} pixels; this one has {height * width}."
        )
    placement = place(width, height, preprocessing, fit)
    pixels = resample(decoded.rgb, placement, preprocessing.interpolation, mean_color(preprocessing), decoded.reduction)
    return PreparedImage(decoded=decoded, sha256=_digest(data), placement=placement, pixels=pixels)


def _digest(data: bytes | NDArray[np.uint8]) -> str:
    """SHA-256 of a file; of pixels that of their shape and bytes, for the same bytes may be an image of another shape."""
    if isinstance(data, bytes):
        return hashlib.sha256(data).hexdigest()
    digest = hashlib.sha256(f"uint8 {data.shape}\n".encode())
    digest.update(np.ascontiguousarray(data).data)
    return digest.hexdigest()

"""Arrays to the bytes of a file: images as PNG, JPEG or WebP, maps as grey PNG or as ``.npy``."""

from __future__ import annotations

import io
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.errors import NotAcceptable
from service.imaging.png import encode_png

Media = Literal["png", "jpeg", "webp"]

_QUALITY: Final = 90
_WEBP_METHOD: Final = 0  # at quality 90 a third of the time of the default, for a tenth more bytes
_WEBP_SIDE: Final = 16_383


def encode_image(rgb: NDArray[np.uint8], media: Media) -> bytes:
    """Encode an image, uint8 ``[H, W, 3]`` RGB; JPEG and WebP at quality 90.

    Raises:
        NotAcceptable: WebP cannot hold an image that long.
    """
    if media == "png":
        return encode_png(rgb)
    if media == "webp" and max(rgb.shape) > _WEBP_SIDE:
        raise NotAcceptable(f"A WebP image has sides of at most {_WEBP_SIDE} pixels. Ask for PNG, or for a smaller size.")
    out = io.BytesIO()
    options = {"method": _WEBP_METHOD} if media == "webp" else {}
    Image.fromarray(rgb).save(out, media, quality=_QUALITY, **options)
    return out.getvalue()


def encode_grey(values: NDArray[np.float32], bits: Literal[8, 16], *, signed: bool = False) -> bytes:
    """Encode a map as grey PNG.

    Args:
        values: float32 ``[H, W]``, 0..1, or -1..1 where `signed`: zero is then middle grey. Beyond is cut.
        bits: per pixel.
        signed: whether negative values mean something.
    """
    unit = (values + 1) / 2 if signed else values
    top = (1 << bits) - 1
    levels = np.rint(np.clip(unit, 0, 1) * top)
    return encode_png(levels.astype(np.uint8 if bits == 8 else np.uint16))


def encode_npy(array: NDArray[np.float32]) -> bytes:
    """Encode as NumPy's ``.npy``, to be read with ``np.load(..., allow_pickle=False)``."""
    out = io.BytesIO()
    np.save(out, array, allow_pickle=False)
    return out.getvalue()

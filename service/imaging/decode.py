"""Untrusted bytes to an upright RGB image. Pillow decodes; whether it may is decided in `headers` before it sees a byte.

Formats are told by their magic bytes only; file names and content types do not reach this room.

The contract, for every format: the first frame, turned upright by its EXIF orientation, transparent parts over white, 16 bits
cut to their high byte, CMYK as Pillow converts it, colour profiles ignored, and all of the pixels or none.

A JPEG of which nobody needs every pixel is decoded at a half, a quarter or an eighth of its size, out of fewer coefficients of
its cosine transform: three times as fast for 12 megapixels, in a quarter of the memory or less.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from isal import igzip_lib
from numpy.typing import NDArray

# Pillow looks plugins up in a table; these imports fill it, so that no plugin of another format is ever loaded.
from PIL import GifImagePlugin, Image, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from service.errors import ImageEmpty, UnsupportedImageType
from service.imaging.headers import Header, Limits, corrupt, gif, jpeg, png, truncated, webp
from service.vocabulary import ImageFormat

Pixels = NDArray[np.uint8]

_PILLOW_FORMAT: Final[dict[ImageFormat, str]] = {
    "jpeg": JpegImagePlugin.JpegImageFile.format,
    "png": PngImagePlugin.PngImageFile.format,
    "webp": WebPImagePlugin.WebPImageFile.format,
    "gif": GifImagePlugin.GifImageFile.format,
}
_WHITE: Final = 255
_FLIPS: Final = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}  # OpenCV's flip codes; 5..8 are transposed first
_REDUCTIONS: Final = (8, 4, 2)
_TRANSPOSED: Final = range(5, 9)
_FEED: Final = 64 * 1024

# Sizes are checked by `headers` against the operator's limit; Pillow's own bound would warn or refuse at another one.
Image.MAX_IMAGE_PIXELS = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodedImage:
    """A decoded image.

    Attributes:
        rgb: uint8 ``[H, W, 3]`` RGB, contiguous, upright, maybe read-only; `width` by `height` over `reduction`, rounded up.
        format: of the file.
        width: of the upright original, in pixels.
        height: of the upright original.
        reduction: how many pixels of the original, across and down, one of `rgb` stands for: 1, 2, 4 or 8.
    """

    rgb: Pixels
    format: ImageFormat
    width: int
    height: int
    reduction: int = 1


def decode(data: bytes, limits: Limits, reducible: Callable[[int, int], float] = lambda _width, _height: 1.0) -> DecodedImage:
    """Decode a whole file. Safe to call from many threads at once.

    Args:
        data: JPEG, PNG, WebP or GIF.
        limits: bounds on size and complexity.
        reducible: told the width and height of the upright original, how many times smaller the image may come; a file that
            cannot be decoded so comes whole.

    Raises:
        ImageError: the child that names what is wrong with the file; nothing else.
    """
    header = read_header(data, limits)
    if header.deflated:
        _check_scanlines(header.deflated, header.inflated_size)
    sideways = header.orientation in _TRANSPOSED
    width, height = (header.height, header.width) if sideways else (header.width, header.height)
    reduction = _reduction(header, reducible(width, height))
    rgb = _decode_payload(header, reduction)
    if header.frame is not None:
        left, top, right, bottom = header.frame
        canvas = np.full((header.height, header.width, 3), _WHITE, np.uint8)
        canvas[top:bottom, left:right] = rgb
        rgb = canvas
    return DecodedImage(
        rgb=np.ascontiguousarray(_upright(rgb, header.orientation)),
        format=header.format,
        width=width,
        height=height,
        reduction=reduction,
    )


def read_header(data: bytes, limits: Limits) -> Header:
    """Tell the format of a file and check every claim of its header.

    Args:
        data: the whole file.
        limits: bounds on size and complexity.

    Returns:
        The header, with the bytes that a decoder needs.

    Raises:
        ImageEmpty: no bytes.
        UnsupportedImageType: not JPEG, PNG, WebP or GIF.
        ImageError: the child that names what is wrong with the file.
    """
    if not data:
        raise ImageEmpty("The image has no bytes. Check that the file was read before it was sent.")
    if data.startswith(jpeg.MAGIC):
        return jpeg.read(data, limits)
    if data.startswith(png.MAGIC):
        return png.read(data, limits)
    if data.startswith(gif.MAGIC):
        return gif.read(data, limits)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return webp.read(data, limits)
    if _begins_a_magic(data):
        raise truncated()
    raise UnsupportedImageType("The bytes are not a JPEG, PNG, WebP or GIF image. Convert the image to one of these.")


def _begins_a_magic(data: bytes) -> bool:
    """Whether so few bytes came that a supported format may have been meant."""
    if any(magic.startswith(data) for magic in (jpeg.MAGIC, png.MAGIC, *gif.MAGIC)):
        return True
    return len(data) < 12 and b"RIFF"[: len(data)] == data[:4] and b"WEBP".startswith(data[8:])


def _reduction(header: Header, reducible: float) -> int:
    """The largest of the decoder's that leaves enough.

    An image is turned only where nothing is rounded: what a flip moved to the left or the top must not be part of a pixel.
    """
    for factor in _REDUCTIONS if header.format == "jpeg" else ():
        if factor <= reducible and (header.orientation == 1 or header.width % factor == header.height % factor == 0):
            return factor
    return 1


def _decode_payload(header: Header, reduction: int) -> Pixels:
    left, top, right, bottom = header.frame or (0, 0, header.width, header.height)
    try:
        with Image.open(io.BytesIO(header.payload), formats=[_PILLOW_FORMAT[header.format]]) as image:
            if reduction > 1:
                image.draft(None, (header.width // reduction, header.height // reduction))
            rgb = _to_rgb(image, header.transparent)
    # Pillow's decoders raise a dozen kinds of exception on damaged files; its own fuzz test lists them.
    except Exception as error:
        # Its words stay here; only whether they speak of truncation goes on.
        raise (truncated() if "truncated" in str(error) else corrupt("its pixels cannot be read")) from None
    if rgb.shape != (-(-(bottom - top) // reduction), -(-(right - left) // reduction), 3):
        raise corrupt("its header and its pixels disagree about the size")
    return rgb


def _to_rgb(image: Image.Image, transparent: tuple[int, ...] | None) -> Pixels:
    if image.mode.startswith("I;16"):
        wide = np.asarray(image)
        grey = (wide >> 8).astype(np.uint8)
        if transparent is not None:
            grey[wide == transparent[0]] = _WHITE
        return np.repeat(grey[:, :, None], 3, axis=2)
    if "transparency" in image.info or "A" in image.getbands():
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema() != (255, 255):
            white = Image.new("RGBA", image.size, (_WHITE, _WHITE, _WHITE, 255))
            image = Image.alpha_composite(white, image)
    # A view of Pillow's bytes: of 50 megapixels a copy costs a second.
    rgb: Pixels = np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    if transparent is not None:
        key = np.array(transparent if len(transparent) == 3 else transparent * 3, np.uint8)
        rgb = np.where((rgb == key).all(axis=2, keepdims=True), np.uint8(_WHITE), rgb)
    return rgb


def _check_scanlines(deflated: bytes, expected: int) -> None:
    """Count the bytes a PNG inflates to, a piece at a time: Pillow leaves missing rows black and says nothing."""
    inflater = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_ZLIB)
    count, fed = 0, 0
    try:
        while count < expected and not inflater.eof:
            piece = b""
            if inflater.needs_input:
                piece = deflated[fed : fed + _FEED]
                fed += _FEED
                if not piece:
                    raise truncated()
            count += len(inflater.decompress(piece, 4 * _FEED))
    except igzip_lib.IsalError:  # type: ignore[misc]  # its stubs declare an instance where there is a class
        raise corrupt("its compressed pixels cannot be read") from None
    if count < expected:
        raise truncated()


def _upright(rgb: Pixels, orientation: int) -> Pixels:
    """Undo what Exif 2.32 (section 4.6.4, tag 0x0112) says the camera did."""
    if orientation in _TRANSPOSED:
        rgb = np.asarray(cv2.transpose(rgb), np.uint8)
    flip = _FLIPS.get(orientation)
    return rgb if flip is None else np.asarray(cv2.flip(rgb, flip), np.uint8)

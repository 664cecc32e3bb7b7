"""The first look at untrusted bytes: which format, how large, how complex; all refused here that should meet no decoder.

Works on the bytes alone, in time linear in their number, and allocates nothing by a claimed size. Formats are told by their
magic bytes only; file names and content types do not reach this room.

Our own code and not a library's, because every bound is checked before a decoder allocates a pixel.
"""

from __future__ import annotations

from service.errors import ImageEmpty, UnsupportedImageType
from service.imaging.headers import gif, jpeg, png, webp
from service.imaging.headers.base import Box, Format, Header, Limits, truncated

__all__ = ["Box", "Format", "Header", "Limits", "read_header"]


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

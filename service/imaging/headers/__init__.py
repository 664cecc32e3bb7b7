"""Readers of file headers, which validate untrusted bytes: they refuse files that are too large or too complex for a decoder.

This module has the parts that the readers of all formats share: the limits, the header that they return, the check of a claimed
size. A reader takes time linear in the number of bytes, and allocates no memory in proportion to a claimed size.

The readers are no library's, because every limit must be checked before a decoder allocates a pixel.
"""

from __future__ import annotations

from dataclasses import dataclass

from service.errors import ImageAspectRatio, ImageCorrupt, ImageTooManyPixels, ImageTooSmall, ImageTruncated
from service.vocabulary import Box, ImageFormat


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds on the claims of a header, all inclusive.

    Attributes:
        max_pixels: width times height.
        max_side: longest side in pixels.
        min_side: shortest side in pixels.
        max_aspect: longest side over shortest side.
        max_scans: number of scans of a JPEG, each of which is a pass over all pixels, however few bytes it has.
        max_scanned_pixels: pixels times scans of a JPEG with several scans; decoding that many takes about a second.
        max_chunks: number of segments, chunks or blocks of a file.
    """

    max_pixels: int = 50_000_000
    max_side: int = 16_384
    min_side: int = 8
    max_aspect: int = 100
    max_scans: int = 100
    max_scanned_pixels: int = 1_600_000_000
    max_chunks: int = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """The header of a valid file, with the bytes that a decoder needs.

    Attributes:
        format: the format of the magic bytes.
        width: width of the stored canvas in pixels, before the orientation is applied.
        height: height of the stored canvas in pixels, before the orientation is applied.
        payload: a file with the data alone that a decoder needs for the first frame: no text, no profiles, no EXIF, no further
            frames, nothing after the end. It is at most a few bytes longer than the original file.
        orientation: EXIF orientation, 1..8.
        frame: (left, top, right, bottom) of the first frame; None if it fills the canvas.
        transparent: the transparent grey level or RGB colour of a PNG without palette, on the decoder's scale.
        deflated: the compressed scanlines of a PNG.
        inflated_size: number of bytes of the scanlines of a PNG.
    """

    format: ImageFormat
    width: int
    height: int
    payload: bytes
    orientation: int = 1
    frame: Box | None = None
    transparent: tuple[int, ...] | None = None
    deflated: bytes = b""
    inflated_size: int = 0


def check_size(width: int, height: int, limits: Limits) -> None:
    """Refuses a claimed size that is impossible or out of bounds.

    Raises:
        ImageCorrupt: a side is zero.
        ImageTooManyPixels: there are too many pixels, or a side is too long.
        ImageAspectRatio: one side is too long relative to the other.
        ImageTooSmall: a side is too short.
    """
    if width == 0 or height == 0:
        raise ImageCorrupt("The image's header gives it no width or no height. Export the image again.")
    if width * height > limits.max_pixels:
        raise ImageTooManyPixels(
            f"The image has {width} x {height} pixels; at most {limits.max_pixels} are accepted. Send a smaller version."
        )
    if max(width, height) > limits.max_aspect * min(width, height):
        raise ImageAspectRatio(
            f"The image has {width} x {height} pixels; one side may be at most {limits.max_aspect} times the other. Crop it."
        )
    if max(width, height) > limits.max_side:
        raise ImageTooManyPixels(
            f"The image has {width} x {height} pixels; a side may have at most {limits.max_side}. Send a smaller version."
        )
    if min(width, height) < limits.min_side:
        raise ImageTooSmall(
            f"The image has {width} x {height} pixels; a side must have at least {limits.min_side}. Send a larger version."
        )


def truncated() -> ImageTruncated:
    """The error for a file that ends before its image does."""
    return ImageTruncated("The image ends before all of its pixels. Upload the whole file again.")


def corrupt(what: str) -> ImageCorrupt:
    """The error for a file that violates its format; `what` is a fixed phrase of this package, never bytes of the file."""
    return ImageCorrupt(f"The image is damaged: {what}. Export the image again.")

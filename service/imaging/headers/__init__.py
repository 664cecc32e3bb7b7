"""The first look at untrusted bytes: how large, how complex; all refused here that should meet no decoder.

Here is what the readers of all formats share: the limits, the header that they return, the check of a claimed size. A reader
works on the bytes alone, in time linear in their number, and allocates nothing by a claimed size.

Our own code and not a library's, because every bound is checked before a decoder allocates a pixel.
"""

from __future__ import annotations

from dataclasses import dataclass

from service.errors import ImageAspectRatio, ImageCorrupt, ImageTooManyPixels, ImageTooSmall, ImageTruncated
from service.vocabulary import Box, ImageFormat


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds on what a header may claim.

    Attributes:
        max_pixels: most pixels, width times height.
        max_side: longest side in pixels.
        min_side: shortest side in pixels.
        max_aspect: longest side over shortest side, inclusive.
        max_scans: most scans of a JPEG; each pass over the pixels costs time that the file's size does not show.
        max_scanned_pixels: most pixels times scans of a JPEG with more than one; about a second of decoding.
        max_chunks: most segments, chunks or blocks of a file.
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
    """A file that may be decoded, and how to read its pixels.

    Attributes:
        format: what the magic bytes say.
        width: of the canvas in pixels, as stored.
        height: of the canvas in pixels, as stored.
        payload: the file again, but only what a decoder needs for the first frame: no text, no profiles, no EXIF, no further
            frames, nothing after the end. Never longer than the file by more than a few bytes.
        orientation: EXIF orientation, 1..8.
        frame: (left, top, right, bottom) of the first frame where it does not fill the canvas.
        transparent: PNG without palette: the grey level or RGB colour that is see-through, on the decoder's scale.
        deflated: PNG: the compressed scanlines.
        inflated_size: PNG: bytes the scanlines must hold.
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
    """Refuse a claimed size that is impossible or out of bounds.

    Raises:
        ImageCorrupt: a side is zero.
        ImageTooManyPixels: too many pixels, or a side too long.
        ImageAspectRatio: too long for its width.
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
    """The file ends before the image does."""
    return ImageTruncated("The image ends before all of its pixels. Upload the whole file again.")


def corrupt(what: str) -> ImageCorrupt:
    """A rule of the format is broken; `what` is a fixed phrase of ours, never bytes of the file."""
    return ImageCorrupt(f"The image is damaged: {what}. Export the image again.")

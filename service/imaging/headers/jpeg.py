"""Reads JPEG markers (ITU-T T.81, annex B): size, scans and orientation, without decoding pixels.

The reader skips segments by their lengths, so that it never mistakes the thumbnail inside an EXIF block or a video behind the
image for the image. It decodes no Huffman codes: the decoder detects damage inside the entropy-coded data.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from service.errors import ImageTooComplex, ImageUnsupportedFeature
from service.imaging.headers import Header, Limits, check_size, corrupt, truncated
from service.imaging.headers.exif import read_orientation

MAGIC = b"\xff\xd8\xff"

# A marker of a segment. FF00 is a stuffed data byte, FF01 and FFD0..FFD7 have no segment, further FF are padding.
_MARKER = re.compile(rb"\xff[\x02-\xcf\xd8-\xfe]")
_SOI, _EOI, _SOS, _APP0, _APP1, _APP14 = 0xD8, 0xD9, 0xDA, 0xE0, 0xE1, 0xEE
_SOF_READABLE = {0xC0, 0xC1, 0xC2}  # baseline, extended, progressive; all Huffman-coded
_SOF_OTHER = {0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF}  # lossless, hierarchical, arithmetic
_TABLES = {0xC4, 0xDB, 0xDD}  # Huffman, quantisation, restart interval


def read(data: bytes, limits: Limits) -> Header:
    """Parses a file that starts with `MAGIC`.

    Raises:
        ImageError: the subclass for the defect of the file.
    """
    size: tuple[int, int] | None = None
    orientation: int | None = None
    payload = [data[:2]]
    first_scan = scans = end = 0
    for marker, start, body, end in _segments(data, limits):
        if marker in _SOF_READABLE or marker in _SOF_OTHER:
            if size is not None:
                raise corrupt("it has more than one JPEG frame header")
            size = _frame_size(data[body:end], limits, readable=marker in _SOF_READABLE)
        elif marker == _SOS:
            if size is None:
                raise corrupt("a JPEG scan comes before the frame header")
            first_scan = first_scan or start
            scans += 1
            if scans > limits.max_scans or 1 < scans > limits.max_scanned_pixels // (size[0] * size[1]):
                raise ImageTooComplex("The JPEG has too many scans for its size. Save it as baseline JPEG.")
        elif marker == _APP1 and orientation is None and data.startswith(b"Exif\0\0", body):
            orientation = read_orientation(data[body:end])
        if first_scan == 0 and _decoder_needs(marker, data, body):
            payload.append(data[start:end])

    if size is None or scans == 0:
        raise corrupt("the JPEG holds no pixels")
    # Every 8 x 8 block takes at least one bit, so scans with fewer bits are truncated, even if an end marker follows them.
    if (end - first_scan) * 512 < size[0] * size[1]:
        raise truncated()
    payload.append(data[first_scan:end])
    return Header(format="jpeg", width=size[0], height=size[1], payload=b"".join(payload), orientation=orientation or 1)


def _segments(data: bytes, limits: Limits) -> Iterator[tuple[int, int, int, int]]:
    """Yields (marker, start, start of the body, end) of every segment; the last one is the end-of-image marker."""
    pos = 2
    for _ in range(limits.max_chunks):
        match = _MARKER.search(data, pos)
        if match is None:
            raise truncated()
        marker, start, pos = data[match.end() - 1], match.start(), match.end()
        if marker == _SOI:
            raise corrupt("a second image starts inside the first")
        if marker == _EOI:
            yield marker, start, pos, pos
            return
        end = pos + int.from_bytes(data[pos : pos + 2], "big")
        if pos + 2 > len(data) or end > len(data):
            raise truncated()
        if end < pos + 2:
            raise corrupt("a JPEG segment is shorter than its own length field")
        yield marker, start, pos + 2, end
        pos = end
    raise ImageTooComplex(f"The JPEG has more than {limits.max_chunks} segments. Export the image again.")


def _decoder_needs(marker: int, data: bytes, start: int) -> bool:
    """Whether a segment is a table, a frame header, or one of the two application segments that define the colour space."""
    if marker == _APP0:
        return data.startswith(b"JFIF\0", start)
    if marker == _APP14:
        return data.startswith(b"Adobe", start)
    return marker in _TABLES or marker in _SOF_READABLE


def _frame_size(segment: bytes, limits: Limits, *, readable: bool) -> tuple[int, int]:
    if len(segment) < 6:
        raise corrupt("the JPEG frame header is too short")
    precision, components = segment[0], segment[5]
    height, width = int.from_bytes(segment[1:3], "big"), int.from_bytes(segment[3:5], "big")
    check_size(width, height, limits)
    if not readable:
        raise _unsupported("lossless, hierarchical or arithmetic coding")
    if components == 0 or len(segment) != 6 + 3 * components:
        raise corrupt("the JPEG frame header does not fit its number of components")
    if precision != 8:
        raise _unsupported(f"{precision} bits per sample")
    if components not in {1, 3, 4}:
        raise _unsupported(f"{components} components")
    if any(not (1 <= byte >> 4 <= 4 and 1 <= byte & 15 <= 4) for byte in segment[7::3]):
        raise corrupt("a JPEG sampling factor is out of range")
    return width, height


def _unsupported(what: str) -> ImageUnsupportedFeature:
    return ImageUnsupportedFeature(f"JPEG with {what} is not supported. Save it as baseline or progressive 8-bit JPEG.")

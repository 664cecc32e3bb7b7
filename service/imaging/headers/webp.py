"""Reads WebP chunks (RIFF container, RFC 9649): size, first frame and orientation, before libwebp allocates a canvas.

The payload is a still image of the first frame: the cost of decoding does not depend on the number of frames, and libwebp never
allocates an animation canvas.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from service.errors import ImageTooComplex
from service.imaging.headers import Header, Limits, check_size, corrupt, truncated
from service.imaging.headers.exif import read_orientation
from service.vocabulary import Box

_EXTENDED, _ANIMATED_FRAME = b"VP8X", b"ANMF"
_LOSSY, _LOSSLESS, _ALPHA, _EXIF = b"VP8 ", b"VP8L", b"ALPH", b"EXIF"
_ALPHA_FLAG, _ANIMATION_FLAG = 0x10, 0x02

Chunk = tuple[bytes, bytes]


def read(data: bytes, limits: Limits) -> Header:
    """Parses a file that starts with ``RIFF....WEBP``.

    Raises:
        ImageError: the subclass for the defect of the file.
    """
    end = 8 + int.from_bytes(data[4:8], "little")
    if end > len(data):
        # The claimed size is checked first: a file with few bytes and an excessive size is an attack rather than truncated.
        _check_claimed_size(data[12:], limits)
        raise truncated()
    chunks = _chunks(data[12:end], limits)
    kind, body = next(chunks)
    if kind in {_LOSSY, _LOSSLESS}:
        width, height = _bitstream_size(kind, body)
        check_size(width, height, limits)
        return Header(format="webp", width=width, height=height, payload=_still_image(width, height, [(kind, body)]))
    if kind != _EXTENDED:
        raise corrupt("the WebP does not start with pixels or an extended header")
    width, height = _canvas_size(body)
    check_size(width, height, limits)

    animated = bool(body[0] & _ANIMATION_FLAG)
    frame: Box | None = None if animated else (0, 0, width, height)
    image: list[Chunk] = []
    exif = b""
    for kind, body in chunks:
        if kind == _EXIF:
            exif = exif or body
        elif kind == _ANIMATED_FRAME and frame is None:
            frame, image = _animation_frame(body, limits)
        elif kind in {_ALPHA, _LOSSY, _LOSSLESS} and not animated:
            image.append((kind, body))
    if frame is None:
        raise corrupt("the WebP is animated but has no frame")
    columns, rows = frame[2] - frame[0], frame[3] - frame[1]
    bitstreams = [chunk for chunk in image if chunk[0] in {_LOSSY, _LOSSLESS}]
    if len(bitstreams) != 1 or len(image) > 2:
        raise corrupt("the WebP does not hold exactly one image in its first frame")
    if _bitstream_size(*bitstreams[0]) != (columns, rows) or frame[2] > width or frame[3] > height:
        raise corrupt("the sizes in the WebP contradict each other")
    return Header(
        format="webp",
        width=width,
        height=height,
        payload=_still_image(columns, rows, image),
        orientation=read_orientation(exif),
        frame=None if frame == (0, 0, width, height) else frame,
    )


def _check_claimed_size(riff: bytes, limits: Limits) -> None:
    """Checks the size in the first chunk of a truncated file, if the file has that many bytes."""
    kind, body = riff[:4], riff[8:]
    if kind == _EXTENDED and len(body) >= 10:
        check_size(*_canvas_size(body), limits)
    elif (kind == _LOSSLESS and len(body) >= 5) or (kind == _LOSSY and len(body) >= 10):
        check_size(*_bitstream_size(kind, body), limits)


def _chunks(riff: bytes, limits: Limits) -> Iterator[Chunk]:
    """Yields (type, body) of every chunk; bodies are padded to an even length."""
    if len(riff) < 8:
        raise truncated()
    pos = 0
    for _ in range(limits.max_chunks):
        if pos + 8 > len(riff):
            return
        kind, length = struct.unpack_from("<4sI", riff, pos)
        end = pos + 8 + length
        if end > len(riff):
            raise truncated()
        yield kind, riff[pos + 8 : end]
        pos = end + (length & 1)
    raise ImageTooComplex(f"The WebP has more than {limits.max_chunks} chunks. Send its first frame as a still image.")


def _canvas_size(body: bytes) -> tuple[int, int]:
    if len(body) < 10:
        raise truncated()
    return 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")


def _bitstream_size(kind: bytes, body: bytes) -> tuple[int, int]:
    if kind == _LOSSLESS:  # RFC 9649, section 3.4: signature, then 14 bits each, less one
        if len(body) < 5:
            raise truncated()
        if body[0] != 0x2F:
            raise corrupt("the WebP's pixels do not start as they must")
        bits = int.from_bytes(body[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if len(body) < 10:
        raise truncated()
    if body[0] & 1 or body[3:6] != b"\x9d\x01\x2a":  # RFC 6386, section 9.1: a key frame and its start code
        raise corrupt("the WebP's pixels do not start as they must")
    width, height = struct.unpack_from("<HH", body, 6)
    return width & 0x3FFF, height & 0x3FFF


def _animation_frame(body: bytes, limits: Limits) -> tuple[Box, list[Chunk]]:
    if len(body) < 16:
        raise truncated()
    left, top, columns, rows = (int.from_bytes(body[at : at + 3], "little") for at in (0, 3, 6, 9))
    box = (2 * left, 2 * top, 2 * left + columns + 1, 2 * top + rows + 1)
    image = [chunk for chunk in _chunks(body[16:], limits) if chunk[0] in {_ALPHA, _LOSSY, _LOSSLESS}]
    return box, image


def _still_image(width: int, height: int, image: list[Chunk]) -> bytes:
    """A WebP file of one still image."""
    if image[0][0] == _ALPHA:  # decoders read a separate alpha plane only behind an extended header
        size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
        image = [(_EXTENDED, bytes([_ALPHA_FLAG, 0, 0, 0]) + size), *image]
    chunks = b"".join(b"".join((kind, len(body).to_bytes(4, "little"), body, b"\0" * (len(body) & 1))) for kind, body in image)
    return b"".join((b"RIFF", (4 + len(chunks)).to_bytes(4, "little"), b"WEBP", chunks))

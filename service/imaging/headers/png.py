"""Reads PNG chunks (W3C PNG, third edition), without inflating them: it validates them and keeps those that define the pixels.

The payload has no text, colour profiles or animation frames: a compressed text of a gibibyte then costs no more than its
compressed bytes. The payload of an animated PNG is its default image.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from isal import isal_zlib

from service.errors import ImageTooComplex, ImageUnsupportedFeature
from service.imaging.headers import Header, Limits, check_size, corrupt, truncated
from service.imaging.headers.exif import read_orientation

MAGIC = b"\x89PNG\r\n\x1a\n"

Chunk = tuple[bytes, bytes, bool]  # type, body, whether the checksum is right

_ANCILLARY = 0x20  # bit of the first letter of the type
_METADATA = {b"PLTE", b"tRNS", b"eXIf"}  # chunks beside IDAT that determine the image
_GREY, _RGB, _PALETTE = 0, 2, 3
_CHANNELS = {_GREY: 1, _RGB: 3, _PALETTE: 1, 4: 2, 6: 4}
_DEPTHS = {_GREY: {1, 2, 4, 8, 16}, _RGB: {8, 16}, _PALETTE: {1, 2, 4, 8}, 4: {8, 16}, 6: {8, 16}}
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def read(data: bytes, limits: Limits) -> Header:
    """Parses a file that starts with `MAGIC`.

    Raises:
        ImageError: the subclass for the defect of the file.
    """
    chunks = _chunks(data, limits)
    kind, ihdr, is_valid = next(chunks)
    if kind == b"CgBI":
        raise ImageUnsupportedFeature("Apple's own variant of PNG (CgBI) is not supported. Export a standard PNG.")
    if kind != b"IHDR" or len(ihdr) != 13 or not is_valid:
        raise corrupt("the PNG does not start with a valid header")
    width, height, depth, color, compression, filters, interlace = struct.unpack(">IIBBBBB", ihdr)
    check_size(width, height, limits)
    if depth not in _DEPTHS.get(color, ()) or compression or filters or interlace > 1:
        raise corrupt("the PNG header asks for a pixel layout that does not exist")

    pixels, metadata = _collect(chunks)
    if not pixels:
        raise corrupt("the PNG holds no pixels")
    palette, transparency = metadata.get(b"PLTE", b""), metadata.get(b"tRNS", b"")
    if color == _PALETTE and (not palette or len(palette) % 3 or len(palette) > 768):
        raise corrupt("the PNG's palette is missing or has the wrong length")

    deflated = b"".join(pixels)
    payload = [MAGIC, _chunk(b"IHDR", ihdr)]
    if color == _PALETTE:
        payload.append(_chunk(b"PLTE", palette))
        payload.extend([_chunk(b"tRNS", transparency[:256])] if transparency else [])
    payload += [_chunk(b"IDAT", deflated), _chunk(b"IEND", b"")]
    return Header(
        format="png",
        width=width,
        height=height,
        payload=b"".join(payload),
        orientation=read_orientation(metadata[b"eXIf"]) if b"eXIf" in metadata else 1,
        transparent=_transparent_color(transparency, color, depth),
        deflated=deflated,
        inflated_size=_inflated_size(width, height, depth * _CHANNELS[color], interlaced=bool(interlace)),
    )


def _collect(chunks: Iterator[Chunk]) -> tuple[list[bytes], dict[bytes, bytes]]:
    """The bodies of the IDAT chunks up to IEND, and the body of the first valid chunk of each type of `_METADATA`."""
    pixels: list[bytes] = []
    metadata: dict[bytes, bytes] = {}
    for kind, body, is_valid in chunks:
        if kind == b"IEND":
            break
        if kind == b"IDAT":
            pixels.append(body)
        elif kind == b"IHDR":
            raise corrupt("the PNG has two headers")
        elif kind in _METADATA:
            if is_valid:
                metadata.setdefault(kind, body)
        elif not kind[0] & _ANCILLARY:
            raise ImageUnsupportedFeature("The PNG needs an extension that is not supported. Export a standard PNG.")
    return pixels, metadata


def _chunks(data: bytes, limits: Limits) -> Iterator[Chunk]:
    """Yields (type, body, whether the checksum is right) of every chunk up to the file's end.

    Raises:
        ImageCorrupt: the checksum of a critical chunk is wrong, or a chunk has no valid type or length.
        ImageTruncated: the file ends inside a chunk.
        ImageTooComplex: the file has too many chunks.
    """
    pos = len(MAGIC)
    for _ in range(limits.max_chunks):
        if pos + 8 > len(data):
            raise truncated()
        length, kind = struct.unpack_from(">I4s", data, pos)
        end = pos + 8 + length
        if not kind.isalpha() or length > 0x7FFFFFFF:
            raise corrupt("a PNG chunk has no valid name or length")
        if end + 4 > len(data):
            raise truncated()
        body = data[pos + 8 : end]
        is_valid = isal_zlib.crc32(body, isal_zlib.crc32(kind)) == int.from_bytes(data[end : end + 4], "big")
        if not is_valid and not kind[0] & _ANCILLARY:
            raise corrupt("the checksum of a PNG chunk is wrong")
        yield kind, body, is_valid
        pos = end + 4
    raise ImageTooComplex(f"The PNG has more than {limits.max_chunks} chunks. Export the image again.")


def _chunk(kind: bytes, body: bytes) -> bytes:
    crc = isal_zlib.crc32(body, isal_zlib.crc32(kind))
    return b"".join((struct.pack(">I4s", len(body), kind), body, crc.to_bytes(4, "big")))


def _transparent_color(transparency: bytes, color: int, depth: int) -> tuple[int, ...] | None:
    """The transparent colour of a tRNS chunk; None for a chunk of the wrong length, or a colour type but grey and RGB.

    A grey level of 16 bits keeps its 16 bits; all other values are scaled to 0..255, as by the decoder.
    """
    if (color, len(transparency)) not in {(_GREY, 2), (_RGB, 6)}:
        return None
    values = struct.unpack(f">{len(transparency) // 2}H", transparency)
    if depth == 16:
        return values if color == _GREY else tuple(value >> 8 for value in values)
    top = (1 << depth) - 1
    return tuple((value & top) * 255 // top for value in values)


def _inflated_size(width: int, height: int, bits: int, *, interlaced: bool) -> int:
    """The number of bytes of all scanlines with their filter bytes; `bits` is the number of bits per pixel."""
    passes = _ADAM7 if interlaced else ((0, 0, 1, 1),)
    size = 0
    for left, top, dx, dy in passes:
        columns, rows = -(-(width - left) // dx), -(-(height - top) // dy)
        size += rows * (1 + (columns * bits + 7) // 8) if columns > 0 and rows > 0 else 0
    return size

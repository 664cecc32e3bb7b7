"""PNG chunks (W3C PNG, third edition): checks them and keeps the five that make the pixels. Inflates nothing.

Text, colour profiles and animation frames are left out of what the decoder is given: a compressed text of a gibibyte then costs
no more than its bytes on the wire. Of an animated PNG the default image is read.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from isal import isal_zlib

from service.errors import ImageTooComplex, ImageUnsupportedFeature
from service.imaging.headers import Header, Limits, check_size, corrupt, truncated
from service.imaging.headers.exif import read_orientation

MAGIC = b"\x89PNG\r\n\x1a\n"

Chunk = tuple[bytes, bytes, bool]

_ANCILLARY = 0x20  # bit of the first letter
_BEARING = {b"PLTE", b"tRNS", b"eXIf"}
_GREY, _RGB, _PALETTE = 0, 2, 3
_CHANNELS = {_GREY: 1, _RGB: 3, _PALETTE: 1, 4: 2, 6: 4}
_DEPTHS = {_GREY: {1, 2, 4, 8, 16}, _RGB: {8, 16}, _PALETTE: {1, 2, 4, 8}, 4: {8, 16}, 6: {8, 16}}
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def read(data: bytes, limits: Limits) -> Header:
    """Parse a file that starts with `MAGIC`.

    Raises:
        ImageError: the child that names what is wrong.
    """
    chunks = _chunks(data, limits)
    kind, head, sound = next(chunks)
    if kind == b"CgBI":
        raise ImageUnsupportedFeature("Apple's own variant of PNG (CgBI) is not supported. Export a standard PNG.")
    if kind != b"IHDR" or len(head) != 13 or not sound:
        raise corrupt("the PNG does not start with a sound header")
    width, height, depth, color, compression, filters, interlace = struct.unpack(">IIBBBBB", head)
    check_size(width, height, limits)
    if depth not in _DEPTHS.get(color, ()) or compression or filters or interlace > 1:
        raise corrupt("the PNG header asks for a pixel layout that does not exist")

    pixels, side = _collect(chunks)
    if not pixels:
        raise corrupt("the PNG holds no pixels")
    palette, key = side.get(b"PLTE", b""), side.get(b"tRNS", b"")
    if color == _PALETTE and (not palette or len(palette) % 3 or len(palette) > 768):
        raise corrupt("the PNG's palette is missing or has the wrong length")

    deflated = b"".join(pixels)
    parts = [MAGIC, _chunk(b"IHDR", head)]
    if color == _PALETTE:
        parts.append(_chunk(b"PLTE", palette))
        parts.extend([_chunk(b"tRNS", key[:256])] if key else [])
    parts += [_chunk(b"IDAT", deflated), _chunk(b"IEND", b"")]
    return Header(
        format="png",
        width=width,
        height=height,
        payload=b"".join(parts),
        orientation=read_orientation(side[b"eXIf"]) if b"eXIf" in side else 1,
        transparent=_transparent(key, color, depth),
        deflated=deflated,
        inflated_size=_inflated_size(width, height, depth * _CHANNELS[color], interlaced=bool(interlace)),
    )


def _collect(chunks: Iterator[Chunk]) -> tuple[list[bytes], dict[bytes, bytes]]:
    """Sort the chunks up to IEND into pixels and the first sound one of each kind that bears on them."""
    pixels: list[bytes] = []
    side: dict[bytes, bytes] = {}
    for kind, body, sound in chunks:
        if kind == b"IEND":
            break
        if kind == b"IDAT":
            pixels.append(body)
        elif kind == b"IHDR":
            raise corrupt("the PNG has two headers")
        elif kind in _BEARING:
            if sound:
                side.setdefault(kind, body)
        elif not kind[0] & _ANCILLARY:
            raise ImageUnsupportedFeature("The PNG needs an extension that is not supported. Export a standard PNG.")
    return pixels, side


def _chunks(data: bytes, limits: Limits) -> Iterator[Chunk]:
    """Yield (type, body, whether the checksum fits) up to the file's end; critical chunks must be sound."""
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
        sound = isal_zlib.crc32(body, isal_zlib.crc32(kind)) == int.from_bytes(data[end : end + 4], "big")
        if not sound and not kind[0] & _ANCILLARY:
            raise corrupt("the checksum of a PNG chunk is wrong")
        yield kind, body, sound
        pos = end + 4
    raise ImageTooComplex(f"The PNG has more than {limits.max_chunks} chunks. Export the image again.")


def _chunk(kind: bytes, body: bytes) -> bytes:
    crc = isal_zlib.crc32(body, isal_zlib.crc32(kind))
    return b"".join((struct.pack(">I4s", len(body), kind), body, crc.to_bytes(4, "big")))


def _transparent(key: bytes, color: int, depth: int) -> tuple[int, ...] | None:
    """The see-through colour. Grey of 16 bits keeps its 16 bits; all else is scaled to 0..255 as the decoder does."""
    if (color, len(key)) not in {(_GREY, 2), (_RGB, 6)}:
        return None
    values = struct.unpack(f">{len(key) // 2}H", key)
    if depth == 16:
        return values if color == _GREY else tuple(value >> 8 for value in values)
    top = (1 << depth) - 1
    return tuple((value & top) * 255 // top for value in values)


def _inflated_size(width: int, height: int, bits: int, *, interlaced: bool) -> int:
    """Bytes of all scanlines with their filter bytes; `bits` per pixel."""
    passes = _ADAM7 if interlaced else ((0, 0, 1, 1),)
    size = 0
    for left, top, dx, dy in passes:
        columns, rows = -(-(width - left) // dx), -(-(height - top) // dy)
        size += rows * (1 + (columns * bits + 7) // 8) if columns > 0 and rows > 0 else 0
    return size

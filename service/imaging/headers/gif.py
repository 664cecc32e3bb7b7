"""Reads GIF blocks (GIF89a specification) up to the end of the first frame, and no byte after it."""

from __future__ import annotations

import struct

from service.errors import ImageTooComplex
from service.imaging.headers import Header, Limits, check_size, corrupt, truncated

MAGIC = (b"GIF87a", b"GIF89a")

_EXTENSION, _IMAGE, _TRAILER = 0x21, 0x2C, 0x3B
_GRAPHIC_CONTROL = 0xF9
_HAS_PALETTE, _HAS_TRANSPARENCY = 0x80, 0x01


def read(data: bytes, limits: Limits) -> Header:
    """Parses a file that starts with one of `MAGIC`.

    The canvas is the logical screen, enlarged to contain the first frame, as in browsers. The payload is a GIF of the first
    frame alone.

    Raises:
        ImageError: the subclass for the defect of the file.
    """
    if len(data) < 13:
        raise truncated()
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    check_size(width, height, limits)
    pos = 13 + _palette_bytes(flags)
    global_palette = data[13:pos]
    blocks = _SubBlocks(data, limits)

    control = b""
    while True:
        if pos >= len(data):
            raise truncated()
        if data[pos] == _IMAGE:
            break
        if data[pos] == _TRAILER:
            raise corrupt("the GIF holds no image")
        if data[pos] != _EXTENSION:
            raise corrupt("a GIF block is of no known kind")
        end = blocks.skip(pos + 2)
        if data[pos + 1] == _GRAPHIC_CONTROL and data[pos + 2] == 4:
            control = data[pos : pos + 8]
        pos = end

    if pos + 10 > len(data):
        raise truncated()
    left, top, columns, rows, flags = struct.unpack_from("<HHHHB", data, pos + 1)
    if columns == 0 or rows == 0:
        raise corrupt("the first frame of the GIF has no width or no height")
    width, height = max(width, left + columns), max(height, top + rows)
    check_size(width, height, limits)
    codes = pos + 10 + _palette_bytes(flags)
    end = blocks.skip(codes + 1)
    if end >= len(data):  # not even the trailer
        raise truncated()
    payload = b"".join(
        (
            b"GIF89a",
            struct.pack("<HH", columns, rows),
            data[10:13],
            global_palette,
            # A single frame needs no disposal and no delay.
            b"\x21\xf9\x04\x01\0\0" + control[6:7] + b"\0" if control and control[3] & _HAS_TRANSPARENCY else b"",
            b",\0\0\0\0",
            data[pos + 5 : end],
            b";",
        )
    )
    fills_canvas = (left, top, columns, rows) == (0, 0, width, height)
    return Header(
        format="gif",
        width=width,
        height=height,
        payload=payload,
        frame=None if fills_canvas else (left, top, left + columns, top + rows),
    )


def _palette_bytes(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & _HAS_PALETTE else 0


class _SubBlocks:
    """Skips sequences of data sub-blocks, with a bound on their number in one file.

    Encoders fill sub-blocks to 255 bytes; a file of sub-blocks of one byte would take a hundred times as long to skip.
    """

    def __init__(self, data: bytes, limits: Limits) -> None:
        self._data = data
        self._remaining = limits.max_chunks + len(data) // 64

    def skip(self, pos: int) -> int:
        """The position after the terminator of the sequence that starts at `pos`.

        Raises:
            ImageTooComplex: the file has too many sub-blocks.
            ImageTruncated: the file ends before the terminator.
        """
        data, length = self._data, len(self._data)
        while pos < length:
            self._remaining -= 1
            if self._remaining < 0:
                raise ImageTooComplex("The GIF consists of too many small blocks. Export the image again.")
            size = data[pos]
            pos += size + 1
            if size == 0:
                return pos
        raise truncated()

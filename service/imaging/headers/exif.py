"""The orientation in an EXIF block, the only tag that is read. An invalid block has no orientation and is no error."""

from __future__ import annotations

import struct

_ORIENTATION = 0x0112
_SHORT = 3


def read_orientation(block: bytes) -> int:
    r"""Reads tag 0x0112 of the first directory (Exif 2.32, section 4.6.4).

    Args:
        block: a TIFF structure, with or without the prefix ``Exif\0\0`` of JPEG.

    Returns:
        1..8; 1 (upright) if the tag is missing, is not a single SHORT, is out of range or lies beyond the end of the block.
    """
    tiff = block.removeprefix(b"Exif\0\0")
    byte_order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if byte_order is None:
        return 1
    try:
        magic, start = struct.unpack_from(f"{byte_order}HI", tiff, 2)
        if magic != 42:
            return 1
        (entries,) = struct.unpack_from(f"{byte_order}H", tiff, start)
        for index in range(entries):
            tag, kind, count, value = struct.unpack_from(f"{byte_order}HHIH", tiff, start + 2 + 12 * index)
            if tag == _ORIENTATION:
                return value if kind == _SHORT and count == 1 and 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1

"""The orientation in an EXIF block, and nothing else of it. A broken block is no orientation, never an error."""

from __future__ import annotations

import struct

_ORIENTATION = 0x0112
_SHORT = 3


def read_orientation(block: bytes) -> int:
    r"""Read tag 0x0112 of the first directory (Exif 2.32, section 4.6.4).

    Args:
        block: a TIFF structure, with or without the ``Exif\0\0`` that JPEG puts before it.

    Returns:
        1..8; 1 (upright) where the tag is missing, not one SHORT, out of range or out of reach.
    """
    tiff = block.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return 1
    try:
        magic, start = struct.unpack_from(f"{order}HI", tiff, 2)
        if magic != 42:
            return 1
        (entries,) = struct.unpack_from(f"{order}H", tiff, start)
        for index in range(entries):
            tag, kind, count, value = struct.unpack_from(f"{order}HHIH", tiff, start + 2 + 12 * index)
            if tag == _ORIENTATION:
                return value if kind == _SHORT and count == 1 and 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1

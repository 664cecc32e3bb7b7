"""A PNG writer for 8-bit RGB and 8- and 16-bit grey: the "up" filter in NumPy, igzip for the deflate, chunks by hand.

Our own code and not a library's, because it is 7.9 times as fast as OpenCV's level 1 at the same size (`P8` of `make bench`):
their deflate is what costs, and igzip does it in vectors. "Up" (W3C PNG, section 9.2) is the filter that is one subtraction of
whole rows.
"""

from __future__ import annotations

import struct
from typing import Any, Final

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_GREY: Final = 0
_RGB: Final = 2
_UP: Final = 2
_LEVEL: Final = 1


def encode_png(pixels: NDArray[Any]) -> bytes:
    """Encode uint8 ``[H, W, 3]`` RGB, uint8 ``[H, W]`` grey or uint16 ``[H, W]`` grey.

    Raises:
        ValueError: any other shape or dtype.
    """
    rgb = pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.dtype == np.uint8
    if not rgb and not (pixels.ndim == 2 and pixels.dtype in (np.uint8, np.uint16)):
        raise ValueError(f"PNG takes uint8 [H, W, 3], uint8 [H, W] or uint16 [H, W], not {pixels.dtype} {pixels.shape}")
    height, width = pixels.shape[:2]
    depth = 8 * pixels.dtype.itemsize
    wire = np.ascontiguousarray(pixels, ">u2" if depth == 16 else np.uint8)
    rows = wire.reshape(height, -1).view(np.uint8)

    lines = np.empty((height, 1 + rows.shape[1]), np.uint8)
    lines[:, 0] = _UP
    lines[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=lines[1:, 1:])
    header = struct.pack(">IIBBBBB", width, height, depth, _RGB if rgb else _GREY, 0, 0, 0)
    return b"".join(
        (
            _SIGNATURE,
            *_chunk(b"IHDR", header),
            *_chunk(b"IDAT", isal_zlib.compress(lines.data, _LEVEL)),
            *_chunk(b"IEND", b""),
        )
    )


def _chunk(kind: bytes, body: bytes) -> tuple[bytes, ...]:
    crc = isal_zlib.crc32(body, isal_zlib.crc32(kind))
    return struct.pack(">I", len(body)), kind, body, struct.pack(">I", crc)

"""Builders of image files, byte by byte where Pillow would not write them. Knows nothing of the service."""

from __future__ import annotations

import io
import struct
import zlib
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


@cache
def scene(width: int = 48, height: int = 32) -> NDArray[np.uint8]:
    """A smooth image of which no turn or mirror image is the same: uint8 [height, width, 3] RGB."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    red = 255 * x / (width - 1)
    green = 255 * y / (height - 1)
    blue = 255 * np.exp(-((x - width / 5) ** 2 + (y - height / 4) ** 2) / (height / 3) ** 2)
    image = np.stack([red, green, blue], axis=2).round().astype(np.uint8)
    image.setflags(write=False)
    return image


def save(pixels: NDArray[Any] | Image.Image, kind: str, **options: Any) -> bytes:
    """Encode with Pillow."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


@cache
def jpeg() -> bytes:
    return save(scene(), "JPEG", quality=92, subsampling=0)


def flat(width: int, height: int, kind: str, **options: Any) -> bytes:
    return save(Image.new("RGB", (width, height), (127, 90, 60)), kind, **options)


# PNG --------------------------------------------------------------------------------------------------------------------


def chunk(kind: bytes, body: bytes = b"") -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def ihdr(width: int, height: int, depth: int = 8, color: int = 2, interlace: int = 0) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, interlace))


def png_flat(width: int, height: int, depth: int = 8, color: int = 2, *, rows: int | None = None) -> bytes:
    """All samples zero, compressed as it is made; `rows` writes fewer than the header claims."""
    row = bytes((width * depth * {0: 1, 2: 3, 3: 1, 6: 4}[color] + 7) // 8 + 1)
    packer = zlib.compressobj(9)
    block, rest = divmod(height if rows is None else rows, 64)
    packed = b"".join([packer.compress(row * 64) for _ in range(block)] + [packer.compress(row * rest), packer.flush()])
    return PNG_MAGIC + ihdr(width, height, depth, color) + chunk(b"IDAT", packed) + chunk(b"IEND")


def png(samples: NDArray[Any], depth: int, color: int, *extra: bytes, interlace: bool = False, after: bytes = b"") -> bytes:
    """Any PNG from samples [H, W, channels], no filter; `extra` chunks go before the pixels, `after` behind them."""
    height, width = samples.shape[:2]
    parts = [samples[top::dy, left::dx] for left, top, dx, dy in ADAM7] if interlace else [samples]
    raw = b"".join(_scanlines(part, depth) for part in parts if part.size)
    head = ihdr(width, height, depth, color, int(interlace))
    return PNG_MAGIC + head + b"".join(extra) + chunk(b"IDAT", zlib.compress(raw)) + after + chunk(b"IEND")


def _scanlines(samples: NDArray[Any], depth: int) -> bytes:
    rows = samples.reshape(samples.shape[0], -1)
    if depth == 16:
        return b"".join(b"\0" + row.astype(">u2").tobytes() for row in rows)
    bits = (rows[:, :, None] >> np.arange(depth - 1, -1, -1)) & 1
    return b"".join(b"\0" + line.tobytes() for line in np.packbits(bits.reshape(rows.shape[0], -1).astype(np.uint8), axis=1))


def insert(data: bytes, *chunks: bytes) -> bytes:
    """Chunks put right after IHDR."""
    return data[:33] + b"".join(chunks) + data[33:]


def deflated_zeros(size: int) -> bytes:
    """A zlib stream that inflates to `size` zero bytes."""
    packer = zlib.compressobj(9)
    piece = bytes(1 << 20)
    return b"".join(
        [packer.compress(piece) for _ in range(size >> 20)] + [packer.compress(bytes(size & 0xFFFFF)), packer.flush()]
    )


# JPEG -------------------------------------------------------------------------------------------------------------------


def segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def after_soi(data: bytes, *segments: bytes) -> bytes:
    return data[:2] + b"".join(segments) + data[2:]


def sof(data: bytes) -> int:
    """Where the frame header starts."""
    return next(at for at in (data.find(b"\xff\xc0"), data.find(b"\xff\xc2")) if at > 0)


def patched_sof(data: bytes, width: int, height: int) -> bytes:
    at = sof(data)
    return data[: at + 5] + struct.pack(">HH", height, width) + data[at + 9 :]


@cache
def scans(count: int, width: int, height: int) -> bytes:
    """A progressive JPEG whose last, cheap scan is repeated until there are `count`."""
    data = flat(width, height, "JPEG", progressive=True, quality=50)
    last = data.rfind(b"\xff\xda")
    return data[:-2] + data[last:-2] * (count - data.count(b"\xff\xda")) + data[-2:]


def exif(orientation: int, *, kind: int = 3, order: str = "<") -> bytes:
    """A TIFF block with one entry, the orientation, of any TIFF type; no Exif prefix."""
    value = {2: b"6\0\0\0", 3: struct.pack(f"{order}HH", orientation & 0xFFFF, 0), 4: struct.pack(f"{order}I", orientation)}[
        kind
    ]
    mark = b"II" if order == "<" else b"MM"
    return mark + struct.pack(f"{order}HIHHHI", 42, 8, 1, 0x0112, kind, 1) + value + b"\0\0\0\0"


def with_exif(data: bytes, block: bytes) -> bytes:
    return after_soi(data, segment(0xE1, b"Exif\0\0" + block))


def stored(orientation: int, upright: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """How a camera stores an upright image under that orientation (Pillow's inverse of it)."""
    step = Image.Transpose
    inverse = {
        2: step.FLIP_LEFT_RIGHT, 3: step.ROTATE_180, 4: step.FLIP_TOP_BOTTOM, 5: step.TRANSPOSE,
        6: step.ROTATE_90, 7: step.TRANSVERSE, 8: step.ROTATE_270,
    }  # fmt: skip
    image = Image.fromarray(upright)
    return np.asarray(image.transpose(inverse[orientation]) if orientation in inverse else image)


# GIF and WebP -----------------------------------------------------------------------------------------------------------


def gif_head(width: int, height: int, palette: bytes = b"\0\0\0\xff\xff\xff") -> bytes:
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + palette


def gif_frame(left: int, top: int, width: int, height: int, codes: bytes = b"\x02\x02\x44\x01\0") -> bytes:
    """An image descriptor; the default codes are one pixel."""
    return b"," + struct.pack("<HHHHB", left, top, width, height, 0) + codes


def patched_webp(data: bytes, width: int, height: int) -> bytes:
    """A lossless WebP with another claimed size."""
    at = data.index(b"VP8L") + 9
    bits = struct.unpack_from("<I", data, at)[0] & 0xF0000000 | (height - 1) << 14 | (width - 1)
    return data[:at] + struct.pack("<I", bits) + data[at + 4 :]


def webp_chunk(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("<I", len(body)) + body + b"\0" * (len(body) & 1)


def riff(*chunks: bytes) -> bytes:
    body = b"WEBP" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body

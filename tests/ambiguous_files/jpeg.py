"""JPEG files that are easy to misread: colour models, orientation, metadata and what lies behind the image."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import partial

import numpy as np
from PIL import Image

from tests import image_files as make
from tests.ambiguous_files.base import Odd, as_rgb, grey, lossy, save_scene, white


def _cmyk() -> bytes:
    return make.save(Image.fromarray(make.scene()).convert("CMYK"), "JPEG", quality=95)


def _cmyk_without_adobe() -> bytes:
    data = _cmyk()
    at = data.index(b"\xff\xee")
    return data[:at] + data[at + 2 + int.from_bytes(data[at + 2 : at + 4], "big") :]


def _ycck() -> bytes:
    """Adobe's inverted CMYK as luminance and chrominance: stored planes are YCbCr of the inverted scene, and K of 255."""
    ycc = np.asarray(Image.fromarray(255 - make.scene()).convert("YCbCr"))
    planes = np.dstack([255 - ycc, np.zeros(ycc.shape[:2], np.uint8)])  # Pillow inverts what it writes
    data = make.save(Image.fromarray(planes, "CMYK"), "JPEG", quality=95)
    at = data.index(b"Adobe") + 11
    return data[:at] + b"\x02" + data[at + 1 :]


def _turned(orientation: int, order: str) -> bytes:
    stored = make.stored(orientation, make.scene())
    return make.with_exif(make.save(stored, "JPEG", quality=92, subsampling=0), make.exif(orientation, order=order))


def _xmp() -> bytes:
    return make.segment(0xE1, b'http://ns.adobe.com/xap/1.0/\0<rdf:Description tiff:Orientation="6" hdrgm:Version="1.0"/>')


def files() -> Iterator[Odd]:
    yield from lossy("H20", progressive=partial(save_scene, "JPEG", quality=92, subsampling=0, progressive=True))
    for name in ("4:4:4", "4:2:2", "4:2:0"):
        yield from lossy("H21", **{f"subsampled_{name}": partial(save_scene, "JPEG", quality=92, subsampling=name)})
    yield from lossy("H22", lambda: as_rgb(grey()), grey_jpeg=lambda: make.save(grey(), "JPEG", quality=92))
    yield from lossy("H25", cmyk=_cmyk)
    yield from lossy("H26", cmyk_without_Adobe_marker=_cmyk_without_adobe)
    yield from lossy("H27", ycck=_ycck)
    yield from lossy("H28", rgb_components=partial(save_scene, "JPEG", quality=95, keep_rgb=True))
    for turn in range(1, 9):
        yield from lossy(f"H{28 + turn}", **{f"orientation_{turn}": partial(_turned, turn, "<")})
        yield from lossy(f"H{28 + turn}", **{f"orientation_{turn}_big_endian": partial(_turned, turn, ">")})
    for name, block in {
        "0": make.exif(0), "9": make.exif(9), "65535": make.exif(65535), "LONG": make.exif(6, kind=4),
        "string": make.exif(6, kind=2),
    }.items():  # fmt: skip
        yield from lossy("H37", **{f"orientation_{name}": partial(make.with_exif, make.jpeg(), block)})
    yield from lossy("H39", orientation_in_XMP_only=lambda: make.after_soi(make.jpeg(), _xmp()))
    yield from lossy("H40", two_EXIF_blocks=lambda: make.with_exif(make.with_exif(make.jpeg(), make.exif(3)), make.exif(1)))
    yield from lossy("H40", EXIF_behind_SOF=_exif_behind_sof)
    block = make.exif(6)
    for name, broken in {
        "offset beyond": block[:4] + b"\xff\xff\xff\x7f" + block[8:], "cut": block[:14], "no TIFF": b"Garbage!", "empty": b"",
        "cyclic": make.exif(1)[:-4] + b"\x08\0\0\0", "magic": block[:2] + b"\x2b\0" + block[4:],
        "zero dpi": make.exif(1)[:8] + b"\1\0" + struct.pack("<HHII", 0x011A, 5, 1, 26) + bytes(12),
    }.items():  # fmt: skip
        yield from lossy("H41", **{f"broken_EXIF_{name}": partial(make.with_exif, make.jpeg(), broken)})
    icc = b"ICC_PROFILE\0\1\1" + b"not a profile" * 4000
    yield from lossy("H50", jpeg_corrupt_ICC=lambda: make.after_soi(make.jpeg(), make.segment(0xE2, icc)))
    second = make.save(white(), "JPEG")
    yield from lossy("H55", mpo=lambda: save_scene("MPO", quality=92, save_all=True, append_images=[Image.fromarray(white())]))
    yield from lossy("H56", ultra_HDR=lambda: make.after_soi(make.jpeg(), _xmp()) + second)
    yield from lossy("H57", other_thumbnail=lambda: make.with_exif(make.jpeg(), make.exif(1) + second))
    yield from lossy("H58", motion_photo=lambda: make.jpeg() + b"\0\0\0\x18ftypmp42" + bytes(5000) + b"\xff\xda\xff\xd9")
    yield from lossy("H59", long_comment=lambda: make.after_soi(make.jpeg(), make.segment(0xFE, b"c" * 65533)))
    yield from lossy("H59", many_APPn=lambda: make.after_soi(make.jpeg(), *[make.segment(0xE9, b"n" * 20)] * 300))
    yield from lossy("H59", restart_marks=partial(save_scene, "JPEG", quality=92, subsampling=0, restart_marker_rows=1))
    yield from lossy("H59", fill_bytes=lambda: make.after_soi(make.jpeg(), b"\xff" * 1000))


def _exif_behind_sof() -> bytes:
    data = make.save(make.stored(8, make.scene()), "JPEG", quality=92, subsampling=0)
    at = data.index(b"\xff\xda")
    return data[:at] + make.segment(0xE1, b"Exif\0\0" + make.exif(8)) + data[at:]

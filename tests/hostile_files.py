"""The catalogue of hostile and odd image files, all made by code, each with the answer it must get.

Unit tests put every case through the decoder, HTTP tests through the service; both must give `status` and `code`. Ids are those
of the project's catalogue of hostile images; several cases share one.
"""

from __future__ import annotations

import io
import random
import struct
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
from PIL import Image

from tests import image_files as make
from tests.ambiguous_files import gif_webp, jpeg, png
from tests.ambiguous_files.base import Odd
from tests.unsupported_formats import OTHER_FORMATS

Data = Callable[[], bytes]


@dataclass(frozen=True)
class Case:
    """One file and its answer; `code` is None where `status` is 200."""

    id: str
    name: str
    data: Data
    status: int
    code: str | None

    def __str__(self) -> str:
        return f"{self.id}-{self.name}".replace(" ", "-")


def _refused(id_: str, code: str, **files: Data) -> Iterator[Case]:
    status = 415 if code == "unsupported_image_type" else 422
    for name, data in files.items():
        yield Case(id_, name.replace("_", " "), cache(data), status, code)


def _accepted(id_: str, **files: Data) -> Iterator[Case]:
    for name, data in files.items():
        yield Case(id_, name.replace("_", " "), cache(data), 200, None)


def _cut(data: Data, percent: int) -> bytes:
    whole = data()
    return whole[: len(whole) * percent // 100]


def _flip(data: Data, mark: bytes, offset: int) -> bytes:
    """One byte changed, `offset` bytes after the first `mark`."""
    whole = bytearray(data())
    whole[whole.index(mark) + offset] ^= 0x55
    return bytes(whole)


def _zip() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("cat.jpg", make.jpeg())
    return out.getvalue()


@cache
def _png() -> bytes:
    return make.save(make.scene(), "PNG")


@cache
def _webp() -> bytes:
    return make.save(make.scene(), "WEBP", lossless=True)


@cache
def _gif() -> bytes:
    return make.save(make.scene(), "GIF")


def _broken() -> Iterator[Case]:
    """Section 2.1: empty, broken, lying."""
    yield from _refused("H01", "image_empty", empty=lambda: b"")
    yield from _refused(
        "H02",
        "image_truncated",
        one_byte=lambda: b"\xff",
        jpeg_magic=lambda: b"\xff\xd8\xff",
        png_magic=lambda: b"\x89PNG\r\n",
        png_signature=lambda: make.PNG_MAGIC,
        gif_magic=lambda: b"GIF8",
        riff=lambda: b"RIFF\x10\0\0\0",
        webp_magic=lambda: _webp()[:12],
    )
    yield from _refused("H03", "unsupported_image_type", random=lambda: b"\x00" + random.Random(3).randbytes(65535))
    yield from _refused(
        "H04", "unsupported_image_type",
        text=lambda: b"a cat, honestly", html=lambda: b"<!doctype html><img src=cat.jpg>", json=lambda: b'{"image": 1}',
        zip=_zip, elf=lambda: b"\x7fELF" + bytes(60), mp4=lambda: b"\0\0\0\x18ftypisom" + bytes(64),
    )  # fmt: skip
    for percent in (10, 50, 90, 99):
        yield from _refused("H07", "image_truncated", **{
            f"jpeg_{percent}": partial(_cut, make.jpeg, percent), f"png_{percent}": partial(_cut, _png, percent),
            f"webp_{percent}": partial(_cut, _webp, percent), f"gif_{percent}": partial(_cut, _gif, percent),
        })  # fmt: skip
    yield from _refused("H08", "image_truncated", jpeg_without_EOI=lambda: make.jpeg()[:-2])
    yield from _refused("H10", "image_aspect_ratio", png_1x65535=lambda: make.png_flat(1, 65535))
    yield from _refused("H11", "image_aspect_ratio", png_65535x1=lambda: make.png_flat(65535, 1))
    kinds = ("png", "jpeg", "gif", "webp")
    yield from _refused("H12", "image_too_small", **{f"{kind}_1x1": partial(make.flat, 1, 1, kind) for kind in kinds})
    yield from _refused("H13", "image_too_small", **{f"{kind}_7x7": partial(make.flat, 7, 7, kind) for kind in kinds})
    yield from _accepted("H13", **{f"{kind}_8x8": partial(make.flat, 8, 8, kind) for kind in kinds})
    yield from _accepted("H14", **{f"{kind}_800x8": partial(make.flat, 800, 8, kind) for kind in kinds})
    yield from _refused("H14", "image_aspect_ratio", **{f"{kind}_808x8": partial(make.flat, 808, 8, kind) for kind in kinds})
    yield from _refused(
        "H15", "image_corrupt",
        png_no_width=lambda: make.PNG_MAGIC + make.ihdr(0, 32) + _png()[33:],
        gif_0x0=lambda: _gif()[:6] + bytes(4) + _gif()[10:],
        jpeg_no_height_and_DNL=lambda: make.patched_sof(make.jpeg(), 48, 0)[:-2] + b"\xff\xdc\0\x04\0\x20\xff\xd9",
    )  # fmt: skip
    yield from _refused(
        "H16",
        "image_corrupt",
        png_IHDR_checksum=partial(_flip, _png, b"IHDR", 17),
        png_IDAT_checksum=partial(_flip, _png, b"IDAT", 30),
    )
    yield from _accepted("H16", png_text_checksum=lambda: make.insert(_png(), make.chunk(b"tEXt", b"k\0v")[:-1] + b"!"))
    yield from _refused(
        "H17",
        "image_truncated",
        png_half_the_rows=lambda: make.png_flat(32, 32, rows=16),
        png_no_rows=lambda: make.png_flat(32, 32, rows=0),
        png_no_IEND=lambda: _png()[:-12],
    )
    yield from _accepted("H17", png_garbage_behind=lambda: _png() + random.Random(17).randbytes(500))
    yield from _refused(
        "H18", "image_corrupt",
        png_IDAT_first=lambda: make.PNG_MAGIC + _png()[33:-12] + _png()[8:33] + _png()[-12:],
        png_two_IHDR=lambda: make.insert(_png(), make.ihdr(48, 32)),
        png_no_PLTE=lambda: make.png_flat(32, 32, 8, 3),
    )  # fmt: skip
    yield from _refused(
        "H19", "image_corrupt",
        jpeg_bad_huffman=lambda: make.after_soi(make.jpeg(), make.segment(0xC4, b"\0" + b"\xff" * 16 + bytes(64))),
        jpeg_bad_quantisation=lambda: make.after_soi(make.jpeg(), make.segment(0xDB, b"\0" + bytes(20))),
        jpeg_no_components=lambda: _replaced_sof(b"\x08\0\x20\0\x30\0"),
        jpeg_three_SOF=lambda: _repeated_sof(3),
    )  # fmt: skip


def _replaced_sof(body: bytes) -> bytes:
    data = make.jpeg()
    at = make.sof(data)
    end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return data[:at] + make.segment(0xC0, body) + data[end:]


def _repeated_sof(times: int) -> bytes:
    data = make.jpeg()
    at = make.sof(data)
    end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return data[:at] + data[at:end] * times + data[end:]


def _complex() -> Iterator[Case]:
    """What section 2.2 refuses: the rest of it is legitimate and lies in `tests/misread`."""
    for name, marker in (("lossless", 0xC3), ("arithmetic", 0xC9)):
        yield from _refused("H23", "image_unsupported_feature", **{f"jpeg_{name}": partial(_marked_sof, marker)})
    yield from _refused(
        "H23", "image_unsupported_feature", jpeg_12_bit=lambda: _replaced_sof(b"\x0c\0\x20\0\x30\x01\x01\x11\0")
    )
    yield from _refused("H24", "image_too_complex", jpeg_1000_scans=partial(make.scans, 1000, 1024, 1024))
    yield from _accepted("H24", jpeg_99_scans=partial(make.scans, 99, 64, 64))
    yield from _refused(
        "H24", "image_too_complex", jpeg_50_scans_of_49_MP=lambda: make.patched_sof(make.scans(50, 64, 64), 7000, 7000)
    )


def _marked_sof(marker: int) -> bytes:
    data = bytearray(make.jpeg())
    data[make.sof(make.jpeg()) + 1] = marker
    return bytes(data)


def _bombs() -> Iterator[Case]:
    """Section 2.3: resource bombs."""
    many = "image_too_many_pixels"
    yield from _refused("H60", many, png_100_MP_1_bit=partial(make.png_flat, 10_000, 10_000, 1, 0))
    yield from _refused("H61", many, png_400_MP_1_bit=partial(make.png_flat, 20_000, 20_000, 1, 0))
    yield from _refused("H62", many, png_64_MP=partial(make.png_flat, 8000, 8000))
    yield from _refused("H63", many, png_one_row_too_many=partial(make.png_flat, 10_000, 5001, 1, 0))
    yield from _accepted("H63", png_50_MP=partial(make.png_flat, 10_000, 5000, 1, 0))
    yield from _refused("H64", many, gif_4_gigapixels=lambda: make.gif_head(65535, 65535) + make.gif_frame(0, 0, 1, 1) + b";")
    yield from _refused(
        "H65", many, gif_frame_far_beyond=lambda: make.gif_head(16, 16) + make.gif_frame(60000, 60000, 1, 1) + b";"
    )
    yield from _accepted("H66", gif_100_000_frames=lambda: make.gif_head(16, 16) + make.gif_frame(0, 0, 1, 1) * 100_000 + b";")
    yield from _refused(
        "H67", "image_corrupt", gif_zero_width=lambda: make.gif_head(16, 16) + make.gif_frame(0, 0, 0, 16) + b";"
    )
    yield from _refused(
        "H67", "image_truncated", gif_too_few_codes=lambda: make.gif_head(16, 16) + make.gif_frame(0, 0, 16, 16) + b";"
    )
    yield from _refused("H68", many, webp_268_MP=lambda: make.patched_webp(_webp(), 16383, 16383))
    yield from _refused("H69", many, webp_64_MP=lambda: make.patched_webp(make.flat(16, 16, "WEBP", lossless=True), 8000, 8000))
    yield from _accepted("H70", webp_5000_frames=_webp_frames)
    yield from _refused("H71", many, jpeg_4_gigapixels=lambda: make.patched_sof(make.jpeg(), 65500, 65500))
    yield from _refused("H71", "image_truncated", jpeg_49_MP_in_a_few_bytes=lambda: make.patched_sof(make.jpeg(), 7000, 7000))
    yield from _refused("H72", many, jpeg_64_MP=lambda: make.patched_sof(make.flat(800, 800, "JPEG"), 8000, 8000))
    yield from _refused(
        "H73", "image_too_complex",
        jpeg_101_scans=partial(make.scans, 101, 512, 512), jpeg_10_000_scans=partial(make.scans, 10_000, 64, 64),
    )  # fmt: skip
    yield from _accepted(
        "H74",
        png_text_of_1_MiB=lambda: make.insert(_png(), make.chunk(b"zTXt", b"k\0\0" + make.deflated_zeros((1 << 20) + 1))),
        png_65_texts=lambda: make.insert(_png(), *[make.chunk(b"zTXt", b"k\0\0" + make.deflated_zeros(1 << 20))] * 65),
        png_international_text=lambda: make.insert(_png(), make.chunk(b"iTXt", b"k\0\1\0\0\0" + make.deflated_zeros(1 << 26))),
    )
    yield from _accepted(
        "H75", png_profile_of_256_MiB=lambda: make.insert(_png(), make.chunk(b"iCCP", b"p\0\0" + make.deflated_zeros(1 << 28)))
    )
    yield from _refused(
        "H76", "image_too_complex", png_100_000_chunks=lambda: make.insert(_png(), make.chunk(b"teSt") * 100_000)
    )
    yield from _accepted("H77", jpeg_10_MB_of_APP=lambda: make.after_soi(make.jpeg(), make.segment(0xE5, bytes(65533)) * 150))
    yield from _accepted(
        "H78",
        apng_2_billion_frames=lambda: make.insert(_png(), make.chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0))),
        apng_gap=lambda: make.insert(
            _png(),
            make.chunk(b"acTL", struct.pack(">II", 2, 0)),
            make.chunk(b"fcTL", struct.pack(">IIIIIHHBB", 7, 9, 9, 90, 0, 1, 1, 0, 0)),
        ),
    )
    yield from _accepted("H79", png_padded_to_1_MB=lambda: _png() + bytes(1_000_000 - len(_png())))


def _webp_frames() -> bytes:
    frames = [Image.fromarray(np.roll(make.scene(16, 16), shift, axis=1)) for shift in (0, 3)]
    data = make.save(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    at = data.index(b"ANMF")
    return make.riff(data[12:at], data[at : at + 8 + int.from_bytes(data[at + 4 : at + 8], "little")] * 5000)


def _others() -> Iterator[Case]:
    """Section 2.4, and what of 2.5 is bytes."""
    for name, literal in OTHER_FORMATS.items():
        id_, _, label = name.partition(" ")
        yield from _refused(id_, "unsupported_image_type", **{label.replace(" ", "_"): partial(bytes, literal)})
    yield from _accepted(
        "H100",
        png_and_zip=lambda: _png() + _zip(),
        gif_and_zip=lambda: _gif() + _zip(),
        jpeg_and_php=lambda: make.jpeg() + b"<?php ?>",
    )
    yield from _accepted(
        "H101", jpeg_script_in_comment=lambda: make.after_soi(make.jpeg(), make.segment(0xFE, b"<script>\r\n\x1b[31m"))
    )
    yield from _accepted("H102", png_with_bmp_text=lambda: make.insert(_png(), make.chunk(b"tEXt", b"k\0BM" + bytes(54))))
    yield from _refused(
        "H103", "image_unsupported_feature", png_CgBI=lambda: make.PNG_MAGIC + make.chunk(b"CgBI", b"P\0 \2") + _png()[8:]
    )


ODD: list[Odd] = [*jpeg.files(), *png.files(), *gif_webp.files()]
CATALOGUE: list[Case] = [
    *_broken(),
    *_complex(),
    *(Case(odd.id, odd.name, odd.data, 200, None) for odd in ODD),
    *_bombs(),
    *_others(),
]

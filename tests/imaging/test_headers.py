"""The header parser alone: its sizes are Pillow's, its bounds are exact, its time does not explode."""

import contextlib
import io
import struct
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from service.errors import ImageAspectRatio, ImageError, ImageTooComplex, ImageTooManyPixels, ImageTooSmall
from service.imaging.decode import read_header
from service.imaging.headers import Limits
from service.imaging.headers.exif import read_orientation
from tests import image_files as make

ANY_SIZE = Limits(max_pixels=2**40, max_side=2**20, min_side=1, max_aspect=2**20)
MEGABYTES = 8 * 2**20
SIDES = st.integers(1, 16_383)


def pillows_size(data: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(data)) as image:
        return image.size


@settings(max_examples=300, deadline=None)
@given(kind=st.sampled_from(["png", "gif"]), width=SIDES, height=SIDES)
def test_claimed_sizes_are_read_as_pillow_reads_them(kind: str, width: int, height: int) -> None:
    data = (
        make.PNG_MAGIC + make.ihdr(width, height) + make.chunk(b"IDAT") + make.chunk(b"IEND")
        if kind == "png"
        else make.gif_head(width, height) + make.gif_frame(0, 0, 1, 1) + b";"
    )
    if width * height > 80_000_000:  # Pillow warns of a bomb
        return

    header = read_header(data, ANY_SIZE)

    assert (header.width, header.height) == pillows_size(data)


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(["JPEG", "PNG", "WEBP", "GIF"]),
    width=st.integers(1, 80),
    height=st.integers(1, 80),
    animated=st.booleans(),
    options=st.sampled_from([{}, {"progressive": True}, {"lossless": True}, {"exif": make.exif(3)}]),
)
def test_sizes_of_whole_files_are_pillows(
    kind: str, width: int, height: int, animated: bool, options: dict[str, object]
) -> None:
    frames = {"save_all": True, "append_images": [Image.new("RGB", (width, height), 9)]} if animated and kind != "JPEG" else {}
    data = make.flat(width, height, kind, **options, **frames)

    header = read_header(data, ANY_SIZE)

    assert (header.width, header.height) == pillows_size(data) == (width, height)
    assert header.format == kind.lower()
    assert len(header.payload) <= len(data) + 64


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("order", "<>")
def test_orientation_in_either_byte_order(turn: int, order: str) -> None:
    assert read_orientation(make.exif(turn, order=order)) == turn
    assert read_orientation(b"Exif\0\0" + make.exif(turn, order=order)) == turn


@given(block=st.binary(max_size=200), start=st.sampled_from([b"", b"II*\0", b"MM\0*", b"Exif\0\0II*\0\x08\0\0\0"]))
def test_any_exif_block_has_an_orientation(block: bytes, start: bytes) -> None:
    assert 1 <= read_orientation(start + block) <= 8


@pytest.mark.parametrize(
    ("width", "height", "error"),
    [
        (1000, 1000, None), (1000, 1001, ImageTooManyPixels), (2000, 20, None), (2001, 20, ImageAspectRatio),
        (2100, 200, ImageTooManyPixels), (8, 8, None), (8, 7, ImageTooSmall),
    ],
)  # fmt: skip
def test_bounds_are_inclusive(width: int, height: int, error: type[ImageError] | None) -> None:
    limits = Limits(max_pixels=1_000_000, max_side=2050, min_side=8, max_aspect=100)
    data = make.png_flat(width, height, 1, 0)

    if error is None:
        assert read_header(data, limits).width == width
    else:
        with pytest.raises(error):
            read_header(data, limits)


def test_a_thumbnails_scans_are_not_the_images() -> None:
    data = make.with_exif(make.jpeg(), make.exif(1) + make.scans(90, 64, 64))

    assert read_header(data, Limits(max_scans=1)).width == 48


def test_chunks_and_segments_are_counted() -> None:
    for data in (
        make.insert(make.save(make.scene(), "PNG"), make.chunk(b"teSt") * 50),
        make.after_soi(make.jpeg(), make.segment(0xE9, b"") * 50),
    ):
        read_header(data, Limits(max_chunks=70))
        with pytest.raises(ImageTooComplex):
            read_header(data, Limits(max_chunks=49))


def _slow() -> dict[str, bytes]:
    """Eight megabytes each, shaped to make a careless walker crawl."""
    jpeg = make.jpeg()
    gif, frame = make.gif_head(16, 16), make.gif_frame(0, 0, 16, 16) + b";"
    screen = make.webp_chunk(b"VP8X", struct.pack("<I", 2) + bytes(3) + bytes(3))
    return {
        "stuffed bytes": jpeg[:-2] + b"\xff\0" * (MEGABYTES // 2) + jpeg[-2:],
        "restart marks": jpeg[:-2] + b"\xff\xd0" * (MEGABYTES // 2) + jpeg[-2:],
        "padding": make.after_soi(jpeg, b"\xff" * MEGABYTES),
        "padding without an end": jpeg[:-2] + b"\xff" * MEGABYTES,
        "one-byte blocks": gif + b"!\xfe" + b"\1x" * (MEGABYTES // 2) + b"\0" + frame,
        "empty extensions": gif + b"!\xfe\0" * (MEGABYTES // 3) + frame,
        "frames of nothing": make.riff(screen, make.webp_chunk(b"ANMF", bytes(1000)) * (MEGABYTES // 1008)),
        "small chunks": make.insert(make.save(make.scene(), "PNG"), make.chunk(b"teSt") * (MEGABYTES // 12)),
    }


def test_no_file_takes_long_to_refuse_or_to_read() -> None:
    for name, data in _slow().items():
        start = time.process_time()
        with contextlib.suppress(ImageError):
            read_header(data, Limits(min_side=1))
        assert time.process_time() - start < 0.5, name

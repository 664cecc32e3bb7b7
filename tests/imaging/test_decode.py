"""Every file of the catalogue through the decoder, and that nothing but the errors of the contract ever comes out."""

import io
import threading
import tracemalloc
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from service.errors import ImageError, ImageTruncated
from service.imaging.decode import decode
from service.imaging.headers import Limits
from tests import image_files as make
from tests.ambiguous_files.base import Odd
from tests.hostile_files import CATALOGUE, ODD, Case

LIMITS = Limits()


@pytest.mark.parametrize("case", CATALOGUE, ids=str)
def test_catalogue(case: Case) -> None:
    if case.status == 200:
        image = decode(case.data(), LIMITS)
        assert image.rgb.dtype == np.uint8
        assert image.rgb.shape[2] == 3
        assert image.rgb.flags.c_contiguous
        return
    with pytest.raises(ImageError) as caught:
        decode(case.data(), LIMITS)
    assert (caught.value.status, caught.value.code) == (case.status, case.code)
    assert caught.value.__cause__ is None
    assert not any(word in caught.value.detail for word in ("PIL", "Pillow", "libjpeg", "isal", "/"))


@pytest.mark.parametrize("odd", ODD, ids=str)
def test_odd_files_are_read_as_a_person_sees_them(odd: Odd) -> None:
    image = decode(odd.data(), LIMITS)

    expected = odd.expected()
    assert image.rgb.shape == expected.shape
    assert np.abs(image.rgb.astype(int) - expected).mean() <= odd.tolerance


def test_progressive_is_as_baseline() -> None:
    baseline, progressive = (make.save(make.scene(), "JPEG", progressive=turn) for turn in (False, True))

    difference = decode(baseline, LIMITS).rgb.astype(int) - decode(progressive, LIMITS).rgb
    assert np.abs(difference).max() <= 1


def test_formats_are_told_by_bytes_and_a_multi_image_file_is_a_jpeg() -> None:
    for kind, name in (("JPEG", "jpeg"), ("PNG", "png"), ("WEBP", "webp"), ("GIF", "gif")):
        assert decode(make.save(make.scene(), kind), LIMITS).format == name
    mpo = next(odd for odd in ODD if odd.id == "H55")
    with Image.open(io.BytesIO(mpo.data())) as opened:
        assert opened.format == "MPO"
    assert decode(mpo.data(), LIMITS).format == "jpeg"


@cache
def valid() -> dict[str, bytes]:
    scene = make.scene(64, 64)
    return {
        "jpeg": make.save(scene, "JPEG"), "progressive": make.save(scene, "JPEG", progressive=True),
        "png": make.save(scene, "PNG"),
        "interlaced": make.png(scene, 8, 2, interlace=True), "gif": make.save(scene, "GIF"),
        "webp": make.save(scene, "WEBP"), "webp lossless": make.save(scene, "WEBP", lossless=True),
    }  # fmt: skip


@pytest.mark.parametrize("name", valid())
def test_no_cut_is_ever_half_a_image(name: str) -> None:
    """Every file ends where its format says, so a cut anywhere is a cut."""
    data = valid()[name]
    for length in [*range(1, 60), *np.linspace(60, len(data) - 1, 40).astype(int)]:
        with pytest.raises(ImageTruncated):
            decode(data[:length], LIMITS)


@pytest.mark.parametrize("seed", range(100))
def test_bit_flips_in_scan_data_never_escape(seed: int) -> None:
    data = bytearray(make.jpeg())
    rng = np.random.default_rng(seed)
    data[rng.integers(data.index(b"\xff\xda") + 14, len(data) - 2)] ^= 1 << rng.integers(8)

    outcome = _outcome(bytes(data))

    assert outcome in {"ok", "image_truncated", "image_corrupt"}


def _outcome(data: bytes) -> str:
    """What a client would be told; any other exception fails the test."""
    try:
        decode(data, Limits(max_pixels=1_000_000))
    except ImageError as error:
        return error.code
    return "ok"


@settings(max_examples=400, deadline=None)
@given(
    magic=st.sampled_from([b"", b"\xff\xd8\xff", b"\xff\xd8\xff\xc0", make.PNG_MAGIC, b"GIF89a", b"RIFF\x40\0\0\0WEBPVP8X"]),
    rest=st.binary(max_size=400),
)
def test_random_bytes_never_escape(magic: bytes, rest: bytes) -> None:
    assert _outcome(magic + rest) != "ok"


EDGES = st.sampled_from(
    [b"\0", b"\1", b"\x7f", b"\x80", b"\xff", b"\0\0", b"\xff\xff", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff"]
)


@settings(max_examples=1000, deadline=None)
@given(
    name=st.sampled_from(sorted(valid())),
    edits=st.lists(
        st.tuples(st.floats(0, 1), st.sampled_from(["set", "insert", "delete"]), EDGES | st.binary(max_size=8)), max_size=4
    ),
    early=st.booleans(),
)
def test_mutated_files_never_escape(name: str, edits: list[tuple[float, str, bytes]], early: bool) -> None:
    data = bytearray(valid()[name])
    for place, how, value in edits:
        at = int(place * (100 if early else len(data)))
        end = at if how == "insert" else at + len(value)
        data[at:end] = b"" if how == "delete" else value

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert _outcome(bytes(data))


def test_mutated_files_with_sound_checksums_never_escape() -> None:
    """Damage behind a right checksum reaches the decoder."""
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(300):
        packed = bytearray(zlib.compress(bytes(1 + 3 * 64) * 64))
        packed[rng.integers(len(packed))] ^= 1 << rng.integers(8)
        body = make.chunk(b"IDAT", bytes(packed)) + make.chunk(b"IEND")
        seen.add(_outcome(make.PNG_MAGIC + make.ihdr(64, 64) + body))
    assert seen <= {"ok", "image_truncated", "image_corrupt"}
    assert "image_corrupt" in seen


@pytest.mark.parametrize("id_", ["H60", "H61", "H64", "H68", "H71", "H74", "H75", "H76"])
def test_bombs_cost_no_memory(id_: str) -> None:
    """Peak of Python's and NumPy's allocations, beside the file itself."""
    for case in (case for case in CATALOGUE if case.id == id_):
        data = case.data()
        tracemalloc.start()
        try:
            _outcome(data)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 5 * 2**20 + 2 * len(data)


def test_many_threads_decode_alike() -> None:
    files = [odd.data() for odd in ODD[::6]]
    alone = [decode(data, LIMITS).rgb for data in files]
    start = threading.Barrier(4)

    def all_of_them(_: int) -> list[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]]:
        start.wait()
        return [decode(data, LIMITS).rgb for data in files]

    with ThreadPoolExecutor(4) as pool:
        for images in pool.map(all_of_them, range(4)):
            for expected, got in zip(alone, images, strict=True):
                np.testing.assert_array_equal(got, expected)


def test_truncated_files_are_not_tolerated_by_a_global_switch() -> None:
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False

"""What is written must be read back: by Pillow and by OpenCV, bit for bit where the format allows."""

import io
from importlib import resources
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image

from service.errors import NotAcceptable
from service.imaging.encode import encode_grey, encode_image, encode_npy, encode_png
from service.vocabulary import ImageMedia

SIDES = st.integers(1, 40)
PIXELS = st.one_of(
    st.tuples(SIDES, SIDES, st.just(3)).flatmap(lambda shape: arrays(np.uint8, shape)),
    st.tuples(SIDES, SIDES).flatmap(lambda shape: arrays(np.uint8, shape)),
    st.tuples(SIDES, SIDES).flatmap(lambda shape: arrays(np.uint16, shape)),
)


@pytest.fixture(scope="module")
def photo() -> NDArray[np.uint8]:
    """A real photograph, 451 x 300."""
    with resources.files("skimage.data").joinpath("chelsea.png").open("rb") as file:
        return np.asarray(Image.open(file))


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


@settings(max_examples=200, deadline=None)
@given(pixels=PIXELS)
def test_png_comes_back_to_the_bit(pixels: NDArray[Any]) -> None:
    data = encode_png(pixels)

    np.testing.assert_array_equal(np.asarray(opened(data)), pixels)
    read = np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED))
    np.testing.assert_array_equal(read[:, :, ::-1] if pixels.ndim == 3 else read, pixels)


def test_png_takes_slices_and_read_only_views() -> None:
    image = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    image.setflags(write=False)

    np.testing.assert_array_equal(np.asarray(opened(encode_png(image[::-1, 3:20]))), image[::-1, 3:20])


def test_png_is_no_larger_than_opencvs_fast_setting(photo: NDArray[np.uint8]) -> None:
    _, reference = cv2.imencode(".png", photo[:, :, ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 1])

    assert len(encode_png(photo)) <= 1.03 * len(reference)


@pytest.mark.parametrize("pixels", [np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4)), np.zeros(4, np.uint8)], ids=str)
def test_png_refuses_other_arrays(pixels: NDArray[Any]) -> None:
    with pytest.raises(ValueError, match="PNG takes"):
        encode_png(pixels)


@pytest.mark.parametrize("media", ["png", "jpeg", "webp"])
def test_images_are_of_the_media_asked_for_and_alike(media: ImageMedia, photo: NDArray[np.uint8]) -> None:

    read = opened(encode_image(photo, media))

    assert read.format == media.upper()
    error = np.asarray(read.convert("RGB"), float) - photo
    assert 10 * np.log10(255**2 / (np.mean(error**2) + 1e-9)) > 34


def test_webp_longer_than_the_format_allows_is_refused_with_a_way_out() -> None:
    with pytest.raises(NotAcceptable, match="Ask for PNG"):
        encode_image(np.zeros((8, 16_384, 3), np.uint8), "webp")


@pytest.mark.parametrize(("bits", "top"), [(8, 255), (16, 65535)])
def test_grey_spans_the_whole_range(bits: Any, top: int) -> None:
    values = np.array([[0, 0.5, 1, 1.5, -1]], np.float32)

    read = np.asarray(opened(encode_grey(values, bits)))

    np.testing.assert_allclose(read, [[0, top / 2, top, top, 0]], atol=0.5)


def test_grey_of_a_signed_map_has_zero_in_the_middle() -> None:
    read = np.asarray(opened(encode_grey(np.array([[-1, 0, 1]], np.float32), 16, signed=True)))

    np.testing.assert_allclose(read, [[0, 32768, 65535]], atol=1)


def test_npy_comes_back_without_pickle() -> None:
    array = np.random.default_rng(0).random((3, 5, 7), dtype=np.float32)

    np.testing.assert_array_equal(np.load(io.BytesIO(encode_npy(array)), allow_pickle=False), array)

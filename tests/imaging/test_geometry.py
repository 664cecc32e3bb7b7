"""Crops against torchvision and timm, and the way back from the input to the image."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from timm.data.transforms_factory import transforms_imagenet_eval
from torchvision.transforms import v2

from service.imaging.geometry import place, place_map, resample, resize_region
from service.vocabulary import Fit, Interpolation, Preprocessing

FILL = (124, 116, 104)
SIZES = [(500, 375), (375, 500), (451, 300), (300, 300), (224, 224), (256, 256), (1023, 77), (60, 91), (333, 334)]


def input_of(height: int, width: int, resize: int | None, interpolation: Interpolation = "bilinear") -> Preprocessing:
    """An input of this size; mean and standard deviation do not matter here."""
    return Preprocessing(
        height=height, width=width, resize=resize, interpolation=interpolation, mean=(0.5,) * 3, std=(0.5,) * 3
    )


def photo(width: int, height: int) -> NDArray[np.uint8]:
    """Detail at every scale: noise on a ramp."""
    rng = np.random.default_rng(width * 10_000 + height)
    ramp = np.add.outer(np.linspace(0, 120, height), np.linspace(0, 80, width))[:, :, None]
    return np.asarray(np.clip(ramp + rng.integers(0, 56, (height, width, 3)), 0, 255), np.uint8)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
def test_crop_is_torchvisions(size: tuple[int, int], interpolation: Interpolation) -> None:
    rgb = photo(*size)
    preprocessing = input_of(224, 224, 256, interpolation)
    two_steps = v2.Compose([v2.Resize(256, v2.InterpolationMode(interpolation), antialias=True), v2.CenterCrop(224)])
    expected = np.asarray(two_steps(Image.fromarray(rgb)), int)

    got = resample(rgb, place(*size, preprocessing, "crop"), preprocessing.interpolation, FILL)

    difference = np.abs(got - expected)
    assert got.flags.c_contiguous
    assert difference.max() <= 1
    assert difference.mean() < 0.01


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_crop_is_timms(size: tuple[int, int]) -> None:
    rgb = photo(*size)
    preprocessing = input_of(240, 240, int(240 / 0.875), "bicubic")
    pipeline = transforms_imagenet_eval(240, crop_pct=0.875, interpolation="bicubic", use_prefetcher=True)
    expected = np.asarray(pipeline(Image.fromarray(rgb)), int).transpose(1, 2, 0)

    difference = np.abs(resample(rgb, place(*size, preprocessing, "crop"), preprocessing.interpolation, FILL) - expected)

    assert difference.max() <= 1
    assert difference.mean() < 0.01


def test_crop_larger_than_the_resized_image_is_centred_in_fill() -> None:
    rgb = photo(100, 60)
    preprocessing = input_of(80, 80, 60)

    placement = place(100, 60, preprocessing, "crop")
    got = resample(rgb, placement, preprocessing.interpolation, FILL)

    assert placement.window == (0, 10, 80, 70)
    np.testing.assert_array_equal(got[10:70], rgb[:, 10:90])
    assert (got[:10] == FILL).all()
    assert (got[70:] == FILL).all()


def test_crop_without_resize_covers_the_input_and_no_more() -> None:
    placement = place(400, 100, input_of(50, 100, None), "crop")

    assert placement.source == (100.0, 0.0, 300.0, 100.0)
    assert placement.region == (100, 0, 300, 100)


def test_squash_sees_everything_and_fills_the_input() -> None:
    rgb, preprocessing = photo(90, 40), input_of(32, 48, 36, "bicubic")
    placement = place(90, 40, preprocessing, "squash")

    assert placement.region == (0, 0, 90, 40)
    assert placement.window == (0, 0, 48, 32)
    expected = np.asarray(Image.fromarray(rgb).resize((48, 32), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(resample(rgb, placement, preprocessing.interpolation, FILL), expected)


def test_pad_keeps_the_shape_and_centres_it() -> None:
    rgb, preprocessing = photo(80, 40), input_of(64, 64, None)
    placement = place(80, 40, preprocessing, "pad")
    got = resample(rgb, placement, preprocessing.interpolation, FILL)

    assert placement.window == (0, 16, 64, 48)
    assert placement.region == (0, 0, 80, 40)
    assert (got[:16] == FILL).all()
    assert (got[48:] == FILL).all()
    assert not (got[16:48] == FILL).all(axis=2).any()


def test_native_is_the_image_itself() -> None:
    rgb, preprocessing = photo(53, 37), input_of(32, 32, 36, "bicubic")
    placement = place(53, 37, preprocessing, "native")

    assert placement.input_size == (37, 53)
    np.testing.assert_array_equal(resample(rgb, placement, preprocessing.interpolation, FILL), rgb)


def test_region_is_what_the_network_saw() -> None:
    assert place(451, 300, input_of(224, 224, 224, "bicubic"), "crop").region == (
        75,
        0,
        376,
        300,
    )


def test_spread_is_the_identity_where_sizes_agree() -> None:
    values = np.random.default_rng(0).random((37, 53), dtype=np.float32)
    placement = place(53, 37, input_of(8, 8, 8), "native")

    np.testing.assert_array_equal(place_map(values, placement, 53, 37), values)


def test_spread_puts_a_crop_where_it_was_and_zero_elsewhere() -> None:
    placement = place(40, 20, input_of(20, 20, 20), "crop")
    values = np.random.default_rng(1).random((20, 20), dtype=np.float32) + 1

    drawn = place_map(values, placement, 40, 20)

    np.testing.assert_array_equal(drawn[:, 10:30], values)
    assert not drawn[:, :10].any()
    assert not drawn[:, 30:].any()


def test_spread_leaves_out_the_margins_of_a_padded_image() -> None:
    placement = place(80, 40, input_of(64, 64, None), "pad")
    values = np.zeros((64, 64), np.float32)
    values[16:48] = 0.5

    drawn = place_map(values, placement, 80, 40)

    assert drawn.shape == (40, 80)
    assert (drawn == 0.5).all()


def test_a_spot_is_drawn_where_it_lies_in_the_image() -> None:
    """One bright pixel of the image, through the input and back: the way there and the way back agree."""
    rgb = np.zeros((300, 451, 3), np.uint8)
    rgb[200:210, 150:160] = 255
    preprocessing = input_of(224, 224, 256)
    placement = place(451, 300, preprocessing, "crop")
    seen = resample(rgb, placement, preprocessing.interpolation, FILL)[:, :, 0].astype(np.float32)

    drawn = place_map(seen, placement, 902, 600)

    rows, columns = np.indices(drawn.shape)
    assert (drawn * rows).sum() / drawn.sum() == pytest.approx(2 * 204.5 + 0.5, abs=1)
    assert (drawn * columns).sum() / drawn.sum() == pytest.approx(2 * 154.5 + 0.5, abs=1)


@settings(max_examples=300, deadline=None)
@given(
    width=st.integers(8, 400),
    height=st.integers(8, 400),
    preprocessing=st.builds(input_of, st.integers(8, 64), st.integers(8, 64), st.none() | st.integers(8, 80)),
    fit=st.sampled_from(["crop", "squash", "pad", "native"]),
    longest=st.integers(8, 300),
)
def test_every_placement_stays_inside(width: int, height: int, preprocessing: Preprocessing, fit: Fit, longest: int) -> None:
    placement = place(width, height, preprocessing, fit)
    rows, columns = placement.input_size
    scale = longest / max(width, height)
    shown = (max(1, round(width * scale)), max(1, round(height * scale)))

    for (left, top, right, bottom), (limit_x, limit_y) in [
        (placement.window, (columns, rows)),
        (placement.region, (width, height)),
        (resize_region(placement, *shown), shown),
    ]:
        assert 0 <= left < right <= limit_x
        assert 0 <= top < bottom <= limit_y
    assert resample(np.zeros((height, width, 3), np.uint8), placement, preprocessing.interpolation, FILL).shape == (
        rows,
        columns,
        3,
    )
    assert place_map(np.zeros((rows, columns), np.float32), placement, *shown).shape == shown[::-1]

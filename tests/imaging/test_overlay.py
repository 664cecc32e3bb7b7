"""The blend's arithmetic, and that the map is drawn only where the network looked."""

from typing import get_args

import numpy as np
import pytest
from numpy.typing import NDArray

from service.imaging import overlay
from service.imaging.overlay import compose
from service.vocabulary import HeatmapOverlay

WHOLE = (0, 0, 30, 20)
PART = (5, 2, 25, 18)


@pytest.fixture
def image() -> NDArray[np.uint8]:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    pixels.setflags(write=False)
    return pixels


@pytest.fixture
def shades() -> NDArray[np.float32]:
    return np.random.default_rng(1).random((20, 30), dtype=np.float32)


def draw(
    image: NDArray[np.uint8],
    shades: NDArray[np.float32],
    *,
    kind: HeatmapOverlay = "original",
    region: tuple[int, int, int, int] = WHOLE,
    color_map: str | None = None,
    alpha: float = 0.5,
    signed: bool = False,
) -> NDArray[np.uint8]:
    drawn = compose(image, shades, region=region, color_map=color_map, alpha=alpha, overlay_type=kind, signed=signed)
    assert drawn.dtype == np.uint8
    assert drawn.shape == image.shape
    assert drawn.flags.c_contiguous
    return drawn


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_original_is_the_weighted_mean(image: NDArray[np.uint8], shades: NDArray[np.float32], alpha: float) -> None:
    heat = overlay.colorize(shades, "viridis", signed=False).astype(float)

    drawn = draw(image, shades, color_map="viridis", alpha=alpha)

    np.testing.assert_allclose(drawn, (1 - alpha) * image + alpha * heat, atol=0.5001)


def test_beyond_the_region_the_image_is_only_dimmed(image: NDArray[np.uint8], shades: NDArray[np.float32]) -> None:
    whole, part = draw(image, shades), draw(image, shades, region=PART)

    np.testing.assert_array_equal(part[2:18, 5:25], whole[2:18, 5:25])
    np.testing.assert_allclose(part[:, :5], 0.4 * image[:, :5], atol=0.5001)
    np.testing.assert_allclose(part[18:], 0.4 * image[18:], atol=0.5001)


def test_grayscale_takes_the_images_colour_away(image: NDArray[np.uint8], shades: NDArray[np.float32]) -> None:
    drawn = draw(image, shades, kind="grayscale", alpha=0)

    np.testing.assert_array_equal(drawn[:, :, 0], drawn[:, :, 1])
    np.testing.assert_allclose(drawn[:, :, 0], image @ [0.299, 0.587, 0.114], atol=1)


def test_mask_black_shows_the_image_where_the_map_is_hot(image: NDArray[np.uint8]) -> None:
    shades = np.zeros((20, 30), np.float32)
    shades[:, 10:] = 1

    drawn = draw(image, shades, kind="mask_black", region=PART)

    np.testing.assert_array_equal(drawn[2:18, 10:25], image[2:18, 10:25])
    assert not drawn[:, :10].any()
    assert not drawn[:, 25:].any()


def test_mask_black_of_a_signed_map_goes_by_magnitude(image: NDArray[np.uint8]) -> None:
    drawn = draw(image, np.full((20, 30), -1, np.float32), kind="mask_black", signed=True)

    np.testing.assert_array_equal(drawn, image)


def test_none_is_the_heatmap_alone(image: NDArray[np.uint8], shades: NDArray[np.float32]) -> None:
    drawn = draw(image, shades, kind="none", region=PART)

    np.testing.assert_array_equal(drawn[2:18, 5:25], overlay.colorize(shades, "jet", signed=False)[2:18, 5:25])
    assert not drawn[:2].any()


def test_defaults_are_jet_and_blue_white_red(image: NDArray[np.uint8]) -> None:
    hot, against = np.ones((20, 30), np.float32), np.full((20, 30), -1, np.float32)

    np.testing.assert_array_equal(draw(image, hot, alpha=1)[0, 0], overlay.lut("jet")[255])
    np.testing.assert_array_equal(draw(image, against, alpha=1, signed=True)[0, 0], overlay.lut("diverging")[0])


@pytest.mark.parametrize("kind", get_args(HeatmapOverlay))
def test_the_image_given_is_left_alone(image: NDArray[np.uint8], shades: NDArray[np.float32], kind: HeatmapOverlay) -> None:
    before = image.copy()

    draw(image, shades, kind=kind, region=PART)

    np.testing.assert_array_equal(image, before)


def test_fade_at_full_opacity_of_a_map_of_ones_is_the_heatmap(image: NDArray[np.uint8]) -> None:
    ones = np.ones((20, 30), np.float32)

    for signed, sign in ((False, 1), (True, 1), (True, -1)):
        drawn = draw(image, sign * ones, kind="fade", alpha=1, signed=signed)
        np.testing.assert_array_equal(drawn, draw(image, sign * ones, kind="none", signed=signed))


def test_fade_leaves_the_image_where_the_map_is_zero(image: NDArray[np.uint8]) -> None:
    zeros = np.zeros((20, 30), np.float32)

    for signed in (False, True):
        np.testing.assert_array_equal(draw(image, zeros, kind="fade", alpha=1, signed=signed), image)


def test_the_opacity_of_fade_follows_the_magnitude_up_to_alpha(image: NDArray[np.uint8]) -> None:
    shades = np.random.default_rng(2).uniform(-1, 1, (20, 30)).astype(np.float32)
    heat = overlay.colorize(shades, "diverging", signed=True).astype(float)
    weight = 0.7 * np.abs(shades)[:, :, None]

    drawn = draw(image, shades, kind="fade", alpha=0.7, signed=True)

    np.testing.assert_allclose(drawn, (1 - weight) * image + weight * heat, atol=0.51)


def test_fade_at_the_peak_is_original(image: NDArray[np.uint8]) -> None:
    ones = np.ones((20, 30), np.float32)

    difference = draw(image, ones, kind="fade", alpha=0.3, region=PART).astype(int) - draw(image, ones, alpha=0.3, region=PART)

    assert np.abs(difference).max() <= 1


def test_a_signed_map_fades_unless_asked_otherwise() -> None:
    assert overlay.default_overlay_type(signed=True) == "fade"
    assert overlay.default_overlay_type(signed=False) == "original"

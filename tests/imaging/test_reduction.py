"""Large images made small, by the JPEG decoder and before the network's own resize: what changes, and what must not."""

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from service.errors import ImageTruncated
from service.imaging.decode import DecodedImage, decode
from service.imaging.geometry import place, resample
from service.imaging.headers import Limits
from tests import image_files as make
from tests.imaging.test_geometry import FILL, input_of, photo

LIMITS = Limits()
PREPROCESSING = input_of(64, 64, 72, "bicubic")


def reduction(data: bytes, spare: float) -> DecodedImage:
    return decode(data, LIMITS, lambda _width, _height: spare)


def averaged(rgb: NDArray[np.uint8], factor: int) -> NDArray[np.float64]:
    height, width, _ = rgb.shape
    return np.asarray(rgb.reshape(height // factor, factor, width // factor, factor, 3).mean((1, 3)))


@pytest.mark.parametrize(
    ("spare", "factor"), [(0.2, 1), (1, 1), (1.9, 1), (2, 2), (3.9, 2), (4, 4), (7.9, 4), (8, 8), (1000, 8)]
)
def test_as_small_as_is_allowed(spare: float, factor: int) -> None:
    image = reduction(make.save(make.scene(403, 301), "JPEG"), spare)
    assert (image.reduction, image.width, image.height) == (factor, 403, 301)
    assert image.rgb.shape == (-(-301 // factor), -(-403 // factor), 3)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF"])
def test_other_formats_come_whole(kind: str) -> None:
    image = reduction(make.save(make.scene(64, 48), kind), 8)
    assert (image.reduction, image.rgb.shape) == (1, (48, 64, 3))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_same_image_upright(mode: str, orientation: int) -> None:
    scene = make.scene(96, 64)
    stored = Image.fromarray(make.stored(orientation, scene)).convert(mode)
    data = make.with_exif(make.save(stored, "JPEG", quality=95), make.exif(orientation))
    asked = []
    small = decode(data, LIMITS, lambda width, height: asked.append((width, height)) or 4.0)  # type: ignore[func-returns-value]
    assert asked == [(96, 64)]
    assert (small.reduction, small.width, small.height, small.rgb.shape) == (4, 96, 64, (16, 24, 3))
    assert np.abs(small.rgb - averaged(decode(data, LIMITS).rgb, 4)).mean() < 3


def test_a_turned_image_comes_whole_where_a_pixel_would_be_cut() -> None:
    turned = make.with_exif(make.save(make.scene(403, 300), "JPEG"), make.exif(6))
    assert reduction(turned, 8).reduction == 1
    even = make.with_exif(make.save(make.scene(404, 300), "JPEG"), make.exif(6))
    assert (reduction(even, 8).reduction, reduction(even, 8).rgb.shape) == (4, (101, 75, 3))


def test_damage_is_found_all_the_same() -> None:
    data = make.save(make.scene(400, 300), "JPEG")
    with pytest.raises(ImageTruncated):
        reduction(data[: len(data) // 2], 8)


@pytest.mark.parametrize(("factor", "size"), [(2, (640, 480)), (2, (641, 483)), (4, (1280, 960))], ids=str)
def test_the_network_sees_the_same(factor: int, size: tuple[int, int]) -> None:
    """At twice the size or more, each step is within a few levels; a shift by a part of a pixel would be many."""
    data = make.save(photo(*size), "JPEG", quality=95)
    placement = place(*size, PREPROCESSING, "crop")
    whole, small = decode(data, LIMITS), reduction(data, factor)
    assert placement.reduction / small.reduction >= 2
    expected = resample(whole.rgb, placement, PREPROCESSING.interpolation, FILL).astype(int)
    difference = np.abs(resample(small.rgb, placement, PREPROCESSING.interpolation, FILL, small.reduction) - expected)
    assert difference.max() <= 6
    assert difference.mean() < 1


def test_a_giant_is_averaged_before_it_is_filtered() -> None:
    """Pillow's `reducing_gap`: an input of 64 pixels out of 1500."""
    rgb = photo(2000, 1500)
    placement = place(2000, 1500, PREPROCESSING, "crop")
    image = Image.fromarray(rgb)
    exact = np.asarray(image.resize((64, 64), Image.Resampling.BICUBIC, placement.source), int)
    difference = np.abs(resample(rgb, placement, PREPROCESSING.interpolation, FILL) - exact)
    assert 0 < difference.max() <= 4
    assert difference.mean() < 0.5

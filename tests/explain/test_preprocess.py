"""From bytes to what the network sees: every fit, limits, and how much of a JPEG is decoded."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from service.errors import ImageTooManyPixels, ImageTruncated
from service.explain import preprocess as preprocessing
from service.explain.model import Model
from service.explain.preprocess import PreparedImage, preprocess
from service.explain.render import Canvas
from service.explain.results import ImageInfo
from service.imaging.geometry import mean_color
from service.imaging.headers import Limits
from service.vocabulary import Fit, Size
from tests import image_files as make
from tests.explain.small_service import SIDE

DATA = make.save(make.scene(96, 48), "PNG")


def prepare(data: bytes, model: Model, fit: Fit, rendered_size: Size | None = "original") -> PreparedImage:
    return preprocess(data, Limits(max_pixels=1_000_000), model.network.preprocessing, fit, rendered_size)


@pytest.fixture
def prepared(model: Model) -> PreparedImage:
    return prepare(DATA, model, "crop")


def test_what_is_said_of_an_image(prepared: PreparedImage) -> None:
    assert prepared.info == ImageInfo(width=96, height=48, format="png", sha256=hashlib.sha256(DATA).hexdigest())


@pytest.mark.parametrize(
    ("fit", "region", "shape"),
    [
        ("crop", (24, 0, 72, 48), (SIDE, SIDE, 3)),
        ("squash", (0, 0, 96, 48), (SIDE, SIDE, 3)),
        ("pad", (0, 0, 96, 48), (SIDE, SIDE, 3)),
        ("native", (0, 0, 96, 48), (48, 96, 3)),
    ],
)
def test_every_fit(model: Model, fit: Fit, region: tuple[int, int, int, int], shape: tuple[int, int, int]) -> None:
    found = prepare(DATA, model, fit)
    assert (found.placement.region, found.pixels.shape) == (region, shape)
    assert found.pixels.dtype == np.uint8


def test_pixels_without_a_file(model: Model, prepared: PreparedImage) -> None:
    pixels = prepared.decoded.rgb
    found = preprocess(pixels, Limits(max_pixels=96 * 48), model.network.preprocessing, "crop")
    np.testing.assert_array_equal(found.pixels, prepared.pixels)
    assert found.placement == prepared.placement
    assert (found.info.width, found.info.height, found.info.format) == (96, 48, "rgb")
    turned = preprocess(pixels.reshape(96, 48, 3), Limits(), model.network.preprocessing, "crop")
    assert found.sha256 != turned.sha256  # equal bytes of another shape are another image
    strided = preprocess(np.flip(np.flip(pixels).copy()), Limits(), model.network.preprocessing, "crop")
    assert strided.sha256 == found.sha256


def test_pixels_without_a_file_have_the_limits_of_files(model: Model, prepared: PreparedImage) -> None:
    with pytest.raises(ImageTooManyPixels, match="96 x 48 pixels; at most 4607"):
        preprocess(prepared.decoded.rgb, Limits(max_pixels=96 * 48 - 1), model.network.preprocessing, "crop")


def test_a_broken_file(model: Model) -> None:
    with pytest.raises(ImageTruncated):
        prepare(DATA[:100], model, "crop")


def test_a_network_is_not_given_a_image_of_any_size(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preprocessing, "MAX_NATIVE_PIXELS", 96 * 48)
    assert prepare(DATA, model, "native").pixels.shape == (48, 96, 3)
    larger = make.save(make.scene(96, 49), "PNG")
    with pytest.raises(ImageTooManyPixels, match="at most 4608 pixels; this one has 4704"):
        prepare(larger, model, "native")
    assert prepare(larger, model, "crop").pixels.shape == (SIDE, SIDE, 3)


@pytest.mark.parametrize(
    ("rendered_size", "fit", "reduction"),
    [
        ("original", "crop", 1),
        (None, "crop", 4),  # 300 pixels for 32 of the input, of which twice as many must be left
        ("input", "crop", 4),
        (None, "pad", 4),
        (200, "crop", 2),
        (201, "crop", 1),
        (None, "native", 1),
    ],
)
def test_a_jpeg_is_decoded_as_large_as_it_is_needed(model: Model, rendered_size: Size | None, fit: Fit, reduction: int) -> None:
    data = make.save(make.scene(400, 300), "JPEG")
    found = prepare(data, model, fit, rendered_size)
    whole = prepare(data, model, fit)
    assert (found.decoded.reduction, found.info, found.placement) == (reduction, whole.info, whole.placement)
    assert np.abs(found.pixels.astype(int) - whole.pixels).mean() < 1
    for size in (rendered_size or "input", 64):
        canvas, same = Canvas.of(found, size), Canvas.of(whole, size)
        assert (canvas.width, canvas.height, canvas.region) == (same.width, same.height, same.region)
        assert canvas.rgb.shape == same.rgb.shape == (canvas.height, canvas.width, 3)
        assert np.abs(canvas.rgb.astype(int) - same.rgb).mean() < 2


def test_margins_have_the_colour_that_is_the_mean(model: Model) -> None:
    top, *_, bottom = prepare(DATA, model, "pad").pixels
    assert (top == mean_color(model.network.preprocessing)).all()
    assert (bottom == mean_color(model.network.preprocessing)).all()

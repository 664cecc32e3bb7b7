"""From bytes to the network's input and the canvas that maps are drawn on, and how large an answer may be."""

from __future__ import annotations

import copy
import hashlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from service.errors import ImageTooManyPixels, ImageTruncated, ParameterInvalid
from service.explain import preprocess
from service.explain.model import ClassSelection, Model
from service.explain.options import Fit, Options
from service.explain.preprocess import MAX_DRAWN_PIXELS, MAX_LISTED_VALUES, Canvas, PreparedImage, Size, check_effort, see
from service.explain.results import Delivery, ImageInfo
from service.imaging.decode import DecodedImage
from service.imaging.headers import Limits
from tests import images as make
from tests.explain.world import SIDE

LIMITS = Limits(max_pixels=1_000_000)
DATA = make.save(make.scene(96, 48), "PNG")
ONE = ClassSelection(classes=(3,), best=0, versus=None, listed=5)


@pytest.fixture
def seen(model: Model) -> PreparedImage:
    return see(DATA, LIMITS, model, "crop")


def claiming(seen: PreparedImage, width: int, height: int) -> PreparedImage:
    """As if the image were so large; its pixels take no memory."""
    rgb = np.broadcast_to(np.uint8(0), (height, width, 3))
    return replace(seen, image=DecodedImage(rgb=rgb, format="png", width=width, height=height))


def test_what_is_said_of_an_image(seen: PreparedImage) -> None:
    assert seen.info == ImageInfo(width=96, height=48, format="png", sha256=hashlib.sha256(DATA).hexdigest())


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
    found = see(DATA, LIMITS, model, fit)
    assert (found.placement.region, found.pixels.shape) == (region, shape)
    assert found.pixels.dtype == np.uint8


def test_the_model_says_how_a_image_fits_where_nobody_else_does(model: Model) -> None:
    padding = copy.copy(model)
    padding.fit = "pad"
    top, *_, bottom = see(DATA, LIMITS, padding, None).pixels
    assert (top == model.fill).all()
    assert (bottom == model.fill).all()
    assert see(DATA, LIMITS, padding, "crop").placement.region == (24, 0, 72, 48)


def test_a_broken_file(model: Model) -> None:
    with pytest.raises(ImageTruncated):
        see(DATA[:100], LIMITS, model, None)


def test_a_network_is_not_given_a_image_of_any_size(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preprocess, "MAX_NATIVE_PIXELS", 96 * 48)
    assert see(DATA, LIMITS, model, "native").pixels.shape == (48, 96, 3)
    larger = make.save(make.scene(96, 49), "PNG")
    with pytest.raises(ImageTooManyPixels, match="at most 4608 pixels; this one has 4704"):
        see(larger, LIMITS, model, "native")
    assert see(larger, LIMITS, model, "crop").pixels.shape == (SIDE, SIDE, 3)


@pytest.mark.parametrize(
    ("size", "shape", "region"),
    [
        ("original", (48, 96), (24, 0, 72, 48)),
        ("input", (SIDE, SIDE), (0, 0, SIDE, SIDE)),
        (48, (24, 48), (12, 0, 36, 24)),
        (200, (100, 200), (50, 0, 150, 100)),
        (8, (4, 8), (2, 0, 6, 4)),
    ],
)
def test_the_canvas_and_the_part_that_was_seen(
    seen: PreparedImage, size: Size, shape: tuple[int, int], region: tuple[int, int, int, int]
) -> None:
    canvas = Canvas.of(seen, size)
    assert (canvas.rgb.shape[:2], canvas.region) == (shape, region)
    laid = canvas.spread(np.ones((SIDE, SIDE), np.float32))
    left, top, right, bottom = region
    assert laid.shape == shape
    assert (laid[top:bottom, left:right] == 1).all()
    assert laid.sum() == (right - left) * (bottom - top)


@pytest.mark.parametrize(
    ("drawn", "fit", "reduction"),
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
def test_a_jpeg_is_decoded_as_large_as_it_is_needed(model: Model, drawn: Size | None, fit: Fit, reduction: int) -> None:
    data = make.save(make.scene(400, 300), "JPEG")
    found = see(data, LIMITS, model, fit, drawn)
    whole = see(data, LIMITS, model, fit)
    assert (found.image.reduction, found.info, found.placement) == (reduction, whole.info, whole.placement)
    assert np.abs(found.pixels.astype(int) - whole.pixels).mean() < 1
    for size in (drawn or "input", 64):
        canvas, same = Canvas.of(found, size), Canvas.of(whole, size)
        assert (canvas.width, canvas.height, canvas.region) == (same.width, same.height, same.region)
        assert canvas.rgb.shape == same.rgb.shape == (canvas.height, canvas.width, 3)
        assert np.abs(canvas.rgb.astype(int) - same.rgb).mean() < 2


def test_padding_is_no_part_of_the_image(model: Model) -> None:
    canvas = Canvas.of(see(DATA, LIMITS, model, "pad"), "input")
    assert canvas.region == (0, 8, 32, 24)
    laid = canvas.spread(np.ones((SIDE, SIDE), np.float32))
    assert (laid.sum(axis=1) > 0).nonzero()[0].tolist() == list(range(8, 24))


@pytest.mark.parametrize(
    ("size", "classes", "delivery", "heatmap", "limit"),
    [
        ({"width": 16_000, "height": 16_000}, 1, "json", "png", MAX_DRAWN_PIXELS),
        ({"width": 16_000, "height": 8000}, 2, "png", "png", MAX_DRAWN_PIXELS),
        ({"width": 16_000, "height": 4000}, 4, "npy", "list", MAX_DRAWN_PIXELS),
        ({"width": 1000, "height": 1000}, 1, "json", "list", MAX_LISTED_VALUES),
        ({"width": 500, "height": 500}, 4, "json", "list", MAX_LISTED_VALUES),
    ],
)
def test_the_largest_answer_and_one_row_more(
    seen: PreparedImage, size: dict[str, int], classes: int, delivery: Delivery, heatmap: Any, limit: int
) -> None:
    wanted, options = ClassSelection(classes=tuple(range(classes)), best=0, versus=None, listed=5), Options(heatmap=heatmap)
    check_effort([claiming(seen, **size)], [wanted], options, delivery)
    more = claiming(seen, size["width"], size["height"] + 1)
    with pytest.raises(ParameterInvalid, match=f"of {limit} allowed") as refused:
        check_effort([more], [wanted], options, delivery)
    assert ("heatmap=npy" in refused.value.detail) == (limit == MAX_LISTED_VALUES)
    check_effort([more], [wanted], Options(heatmap=heatmap, size="input"), delivery)
    check_effort([more], [wanted], Options(heatmap=heatmap, size=64), delivery)
    check_effort(
        [more], [ClassSelection(classes=(), best=0, versus=None, listed=5)], options, delivery
    )  # a prediction draws nothing


def test_the_effort_is_that_of_all_images_together(seen: PreparedImage) -> None:
    large, best = claiming(seen, 16_000, 8000), ClassSelection(classes=(), best=2, versus=None, listed=5)
    check_effort([large, large], [ONE, ONE], Options(), "json")
    with pytest.raises(ParameterInvalid):
        check_effort([large, large], [ONE, best], Options(), "json")
    small = claiming(seen, 20, 10)
    with pytest.raises(ParameterInvalid, match="enlarged to at most"):
        check_effort([small], [ONE], Options(size=16384), "json")
    with pytest.raises(ParameterInvalid, match="fewer classes"):
        check_effort([small] * 40, [ONE] * 40, Options(size=4096), "json")

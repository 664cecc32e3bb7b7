"""What maps are rendered on: sizes, the part that was seen, and answers that would be too large."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from service.errors import ParameterInvalid
from service.explain.model import ClassSelection, Model
from service.explain.options import ExplainOptions
from service.explain.preprocess import PreparedImage
from service.explain.render import MAX_LISTED_VALUES, MAX_RENDERED_PIXELS, Canvas, check_output_size
from service.imaging.decode import DecodedImage
from service.vocabulary import Delivery, Size
from tests.explain.small_service import SIDE
from tests.explain.test_preprocess import DATA, prepare

ONE = ClassSelection(classes=(3,), best=0, versus=None, listed=5)


@pytest.fixture
def prepared(model: Model) -> PreparedImage:
    return prepare(DATA, model, "crop")


def claiming(prepared: PreparedImage, width: int, height: int) -> PreparedImage:
    """As if the image were so large; its pixels take no memory."""
    rgb = np.broadcast_to(np.uint8(0), (height, width, 3))
    return replace(prepared, decoded=DecodedImage(rgb=rgb, format="png", width=width, height=height))


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
    prepared: PreparedImage, size: Size, shape: tuple[int, int], region: tuple[int, int, int, int]
) -> None:
    canvas = Canvas.of(prepared, size)
    assert (canvas.rgb.shape[:2], canvas.region) == (shape, region)
    placed = canvas.place(np.ones((SIDE, SIDE), np.float32))
    left, top, right, bottom = region
    assert placed.shape == shape
    assert (placed[top:bottom, left:right] == 1).all()
    assert placed.sum() == (right - left) * (bottom - top)


def test_padding_is_no_part_of_the_image(model: Model) -> None:
    canvas = Canvas.of(prepare(DATA, model, "pad"), "input")
    assert canvas.region == (0, 8, 32, 24)
    placed = canvas.place(np.ones((SIDE, SIDE), np.float32))
    assert (placed.sum(axis=1) > 0).nonzero()[0].tolist() == list(range(8, 24))


@pytest.mark.parametrize(
    ("size", "classes", "delivery", "heatmap", "limit"),
    [
        ({"width": 16_000, "height": 16_000}, 1, "json", "png", MAX_RENDERED_PIXELS),
        ({"width": 16_000, "height": 8000}, 2, "png", "png", MAX_RENDERED_PIXELS),
        ({"width": 16_000, "height": 4000}, 4, "npy", "list", MAX_RENDERED_PIXELS),
        ({"width": 1000, "height": 1000}, 1, "json", "list", MAX_LISTED_VALUES),
        ({"width": 500, "height": 500}, 4, "json", "list", MAX_LISTED_VALUES),
    ],
)
def test_the_largest_answer_and_one_row_more(
    prepared: PreparedImage, size: dict[str, int], classes: int, delivery: Delivery, heatmap: Any, limit: int
) -> None:
    selection, options = (
        ClassSelection(classes=tuple(range(classes)), best=0, versus=None, listed=5),
        ExplainOptions(heatmap=heatmap),
    )
    check_output_size([claiming(prepared, **size)], [selection], options, delivery)
    more = claiming(prepared, size["width"], size["height"] + 1)
    with pytest.raises(ParameterInvalid, match=f"of {limit} allowed") as refused:
        check_output_size([more], [selection], options, delivery)
    assert ("heatmap=npy" in refused.value.detail) == (limit == MAX_LISTED_VALUES)
    check_output_size([more], [selection], ExplainOptions(heatmap=heatmap, size="input"), delivery)
    check_output_size([more], [selection], ExplainOptions(heatmap=heatmap, size=64), delivery)
    check_output_size(
        [more], [ClassSelection(classes=(), best=0, versus=None, listed=5)], options, delivery
    )  # a prediction draws nothing


def test_the_effort_is_that_of_all_images_together(prepared: PreparedImage) -> None:
    large, best = claiming(prepared, 16_000, 8000), ClassSelection(classes=(), best=2, versus=None, listed=5)
    check_output_size([large, large], [ONE, ONE], ExplainOptions(), "json")
    with pytest.raises(ParameterInvalid):
        check_output_size([large, large], [ONE, best], ExplainOptions(), "json")
    small = claiming(prepared, 20, 10)
    with pytest.raises(ParameterInvalid, match="enlarged to at most"):
        check_output_size([small], [ONE], ExplainOptions(size=16384), "json")
    with pytest.raises(ParameterInvalid, match="fewer classes"):
        check_output_size([small] * 40, [ONE] * 40, ExplainOptions(size=4096), "json")

"""From a network's maps to images and arrays: every encoding tells the same, signs are kept, several become one."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from service.engine.types import EngineResult
from service.explain.model import ClassSelection, Model
from service.explain.options import Options
from service.explain.preprocess import PreparedImage, see
from service.explain.render import RenderedImage, document, draw
from service.explain.results import Delivery, Encoded
from service.imaging.headers import Limits
from tests import images as make

WIDTH, HEIGHT = 96, 48
REGION = np.s_[0:48, 24:72]
LOGITS = np.array([1, 0, 2, 0, 0, 0, 0, 0, 0, 3], np.float32)

Grid = NDArray[np.float32]
Draw = Callable[..., RenderedImage]


def ramp(low: float, high: float) -> Grid:
    return np.linspace(low, high, 64, dtype=np.float32).reshape(8, 8)


@pytest.fixture
def seen(model: Model) -> PreparedImage:
    return see(make.save(make.scene(WIDTH, HEIGHT), "PNG"), Limits(max_pixels=10_000), model, "crop")


@pytest.fixture
def drawn(model: Model, seen: PreparedImage) -> Draw:
    """Draws classes 0, 2, ... with the grids given."""

    def drawn(
        *grids: Grid, delivery: Delivery = "json", versus: int | None = None, stop: bool = False, **options: Any
    ) -> RenderedImage:
        classes = tuple(range(0, 2 * len(grids), 2))
        outcome = EngineResult(
            logits=LOGITS,
            classes=classes,
            maps=tuple((grid,) for grid in grids),
            layers=("block",),
            engine="torch",
            precision="fp32",
        )
        abandoned = threading.Event()
        if stop:
            abandoned.set()
        return draw(
            seen,
            outcome,
            ClassSelection(classes=classes, best=0, versus=versus, listed=3),
            model,
            Options(**options),
            delivery,
            abandoned,
        )

    return drawn


def opened(encoded: object) -> NDArray[Any]:
    assert isinstance(encoded, Encoded)
    if encoded.media_type == "application/x-npy":
        array: NDArray[Any] = np.load(io.BytesIO(encoded.data), allow_pickle=False)
    else:
        array = np.asarray(Image.open(io.BytesIO(encoded.data)))
    assert array.shape[:2] == (encoded.height, encoded.width)
    return array


@pytest.mark.parametrize(("polarity", "low"), [("positive", 0.0), ("negative", 0.0), ("both", -1.0)])
def test_every_encoding_of_a_heatmap_tells_the_same(drawn: Draw, polarity: str, low: float) -> None:
    def heatmap(encoding: str) -> Any:
        (explanation,) = drawn(ramp(-2, 1.5), heatmap=encoding, polarity=polarity).result.explanations
        return explanation.heatmap

    exact = opened(heatmap("npy"))
    assert exact.shape == (HEIGHT, WIDTH)
    assert exact.dtype == np.float32
    assert exact.min() == pytest.approx(low, abs=0.02)
    assert exact.max() == pytest.approx(0.75 if polarity == "both" else 1, abs=0.02)
    np.testing.assert_array_equal(np.array(heatmap("list"), np.float32), exact)
    for encoding, top in (("png", 255), ("png16", 65535)):
        levels = opened(heatmap(encoding)) / top
        np.testing.assert_allclose(2 * levels - 1 if polarity == "both" else levels, exact, atol=1.01 / top)
    assert heatmap("none") is None


def test_where_the_network_did_not_look_there_is_nothing(drawn: Draw) -> None:
    (explanation,) = drawn(ramp(1, 2), heatmap="npy", scale="none").result.explanations
    values = opened(explanation.heatmap).copy()
    assert (values[REGION] >= 1).all()
    values[REGION] = 0
    assert not values.any()
    assert explanation.region == (24, 0, 72, 48)
    assert explanation.grid == (8, 8)


def test_raw_bounds_tell_found_from_nothing_found(drawn: Draw) -> None:
    found, nothing = drawn(ramp(-2, 1.5), ramp(-3, -1), heatmap="npy").result.explanations
    assert (found.raw_min, found.raw_max, found.blank) == (0, 1.5, False)
    assert (nothing.raw_min, nothing.raw_max, nothing.blank) == (0, 0, True)
    assert not opened(nothing.heatmap).any()
    (signed,) = drawn(ramp(-2, 1.5), polarity="both").result.explanations
    assert (signed.raw_min, signed.raw_max) == (-2, 1.5)


def test_provenance(drawn: Draw) -> None:
    (_, second) = (answer := drawn(ramp(0, 1), ramp(0, 1), versus=9, polarity="negative", scale="max")).result.explanations
    assert (second.prediction.class_id, second.prediction.label, second.prediction.logit) == (2, "class 2", 2)
    assert second.versus is not None
    assert (second.versus.class_id, second.versus.logit) == (9, 3)
    assert (second.method, second.layer, second.polarity, second.scale) == ("gradcam", ("block",), "negative", "max")
    assert [one.class_id for one in answer.result.predictions] == [9, 2, 0]


def test_the_overlay_comes_beside_the_heatmap_where_it_is_asked_for(drawn: Draw) -> None:
    (without,) = drawn(ramp(0, 1)).result.explanations
    assert without.overlay is None
    (plain,) = drawn(ramp(0, 1), overlay=True).result.explanations
    assert opened(plain.overlay).shape == (HEIGHT, WIDTH, 3)
    (sheet,) = drawn(ramp(0, 1), overlay=True, overlay_type="panel").result.explanations
    assert opened(sheet.heatmap).shape == (HEIGHT, WIDTH)
    assert opened(sheet.overlay).shape[1] > 3 * WIDTH


@pytest.mark.parametrize("media", ["png", "jpeg", "webp"])
def test_one_image_is_the_whole_document(drawn: Draw, media: Delivery) -> None:
    options = {"overlay_type": "none", "color_map": "none", "size": "input"}
    one = drawn(ramp(0, 1), delivery=media, **options)
    whole = document([one], Options(**options), media)
    image = opened(whole)
    assert image.shape == (32, 32, 3)
    assert image[0, 0].max() < 30
    assert image[-1, -1].min() > 225
    assert one.result.explanations[0].heatmap is None


def test_several_classes_of_several_images_are_one_sheet(drawn: Draw) -> None:
    options: dict[str, Any] = {"overlay_type": "panel", "polarity": "both"}
    images = [
        drawn(ramp(-1, 1), ramp(-1, -1), delivery="png", versus=9, **options),
        drawn(ramp(0, 1), delivery="png", **options),
    ]
    heights = [opened(document(part, Options(**options), "png")).shape[0] for part in ([images[0]], images)]
    assert heights[0] < heights[1]
    assert [len(image.rows) for image in images] == [2, 1]
    assert "versus class 9" in images[0].rows[0].note


def test_arrays_are_stacked(drawn: Draw) -> None:
    one, two = drawn(ramp(0, 1), delivery="npy"), drawn(ramp(0, 1), ramp(1, 0), delivery="npy")
    single = document([one], Options(), "npy")
    stack = document([two], Options(), "npy")
    assert single is not None
    assert stack is not None
    assert np.load(io.BytesIO(single.data)).shape == (HEIGHT, WIDTH)
    maps = np.load(io.BytesIO(stack.data))
    assert maps.shape == (2, HEIGHT, WIDTH)
    assert maps.dtype == np.float32
    np.testing.assert_array_equal(maps[0], np.load(io.BytesIO(single.data)))
    np.testing.assert_allclose(maps[1][:, ::-1][::-1], maps[0], atol=1e-5)


def test_json_is_no_document(drawn: Draw) -> None:
    assert document([drawn(ramp(0, 1))], Options(), "json") is None


def test_nothing_is_drawn_for_nobody(drawn: Draw) -> None:
    assert drawn(ramp(0, 1), ramp(0, 1), stop=True).result.explanations == ()

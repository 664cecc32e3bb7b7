"""From a network's maps to images and arrays: every encoding tells the same, signs are kept, several become one."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from service.engine.types import EngineResult
from service.errors import DeadlineExceeded
from service.explain.model import ClassScores, ClassSelection, Model
from service.explain.options import ExplainOptions
from service.explain.preprocess import PreparedImage
from service.explain.render import RenderedImage, combine, render_explanations
from service.explain.results import EncodedMedia, ExplainResult, Explanation, Media
from service.explain.scheduler import Deadline
from service.imaging.provenance import Provenance, decode_xmp
from service.vocabulary import Delivery
from tests.explain.test_preprocess import DATA, prepare

WIDTH, HEIGHT = 96, 48
REGION = np.s_[0:48, 24:72]
LOGITS = np.array([1, 0, 2, 0, 0, 0, 0, 0, 0, 3], np.float32)

ORIGIN = Provenance(software="camserve", model="tiny", version="2", digest="sha256:00", request_id="r1")

Grid = NDArray[np.float32]
Render = Callable[..., RenderedImage]


def ramp(low: float, high: float) -> Grid:
    return np.linspace(low, high, 64, dtype=np.float32).reshape(8, 8)


@pytest.fixture
def prepared(model: Model) -> PreparedImage:
    return prepare(DATA, model, "crop")


@pytest.fixture
def render(model: Model, prepared: PreparedImage) -> Render:
    """Renders classes 0, 2, ... with the grids given."""

    def render(
        *grids: Grid,
        delivery: Delivery = "json",
        versus: int | None = None,
        within_s: float = 30,
        number: int = 3,
        **options: Any,
    ) -> RenderedImage:
        classes = tuple(range(0, 2 * len(grids), 2))
        result = EngineResult(
            logits=LOGITS,
            classes=classes,
            maps=tuple((grid,) for grid in grids),
            layers=("block",),
            engine="torch",
            precision="fp32",
        )
        selection = ClassSelection(classes=classes, best=0, versus=versus, listed=3)
        scores = ClassScores(LOGITS, model.labels)
        asked = ExplainOptions(**options)
        deadline = Deadline(within_s)
        return render_explanations(
            prepared, result, scores, selection, asked, delivery, deadline, provenance=ORIGIN, number=number
        )

    return render


def explanations(rendered: RenderedImage) -> tuple[Explanation, ...]:
    assert isinstance(rendered.result, ExplainResult)
    return rendered.result.explanations


def whole_answer(images: list[RenderedImage], options: ExplainOptions, delivery: Delivery) -> Media | None:
    return combine(images, delivery, color_map=options.color_map, signed=options.polarity == "both")


def opened(encoded: object) -> NDArray[Any]:
    assert isinstance(encoded, EncodedMedia | Media)
    data = encoded.data if isinstance(encoded, Media) else base64.b64decode(encoded.b64)
    if encoded.media_type == "application/x-npy":
        array: NDArray[Any] = np.load(io.BytesIO(data), allow_pickle=False)
    else:
        array = np.asarray(Image.open(io.BytesIO(data)))
    assert array.shape[:2] == (encoded.height, encoded.width)
    return array


@pytest.mark.parametrize(("polarity", "low"), [("positive", 0.0), ("negative", 0.0), ("both", -1.0)])
def test_every_encoding_of_a_heatmap_tells_the_same(render: Render, polarity: str, low: float) -> None:
    def heatmap(encoding: str) -> Any:
        (explanation,) = explanations(render(ramp(-2, 1.5), heatmap=encoding, polarity=polarity))
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


def test_where_the_network_did_not_look_there_is_nothing(render: Render) -> None:
    (explanation,) = explanations(render(ramp(1, 2), heatmap="npy", scale="none"))
    values = opened(explanation.heatmap).copy()
    assert (values[REGION] >= 1).all()
    values[REGION] = 0
    assert not values.any()
    assert explanation.region == (24, 0, 72, 48)
    assert explanation.grid == (8, 8)


def test_raw_bounds_tell_found_from_nothing_found(render: Render) -> None:
    found, nothing = explanations(render(ramp(-2, 1.5), ramp(-3, -1), heatmap="npy"))
    assert (found.raw_min, found.raw_max, found.blank) == (0, 1.5, False)
    assert (nothing.raw_min, nothing.raw_max, nothing.blank) == (0, 0, True)
    assert not opened(nothing.heatmap).any()
    (signed,) = explanations(render(ramp(-2, 1.5), polarity="both"))
    assert (signed.raw_min, signed.raw_max) == (-2, 1.5)


def test_provenance(render: Render) -> None:
    (_, second) = explanations(answer := render(ramp(0, 1), ramp(0, 1), versus=9, polarity="negative", scale="max"))
    assert (second.class_id, second.label, second.logit) == (2, "class 2", 2)
    assert second.versus is not None
    assert (second.versus.class_id, second.versus.logit) == (9, 3)
    assert (second.method, second.layer, second.polarity, second.scale) == ("gradcam", ("block",), "negative", "max")
    assert [one.class_id for one in answer.result.predictions] == [9, 2, 0]


def provenance_of(media: object) -> Provenance:
    assert isinstance(media, EncodedMedia | Media)
    data = media.data if isinstance(media, Media) else base64.b64decode(media.b64)
    provenance = decode_xmp(Image.open(io.BytesIO(data)).info["xmp"])
    assert provenance is not None
    return provenance


@pytest.mark.parametrize("overlay_type", ["original", "none", "panel"])
def test_an_overlay_says_inside_what_it_shows(render: Render, overlay_type: str) -> None:
    first, second = explanations(render(ramp(0, 1), ramp(0, 1), versus=9, overlay=True, overlay_type=overlay_type))
    for explanation in (first, second):
        found = provenance_of(explanation.overlay)
        (shown,) = found.classes
        assert replace(found, classes=()) == replace(ORIGIN, layers=("block",))
        assert (shown.image, shown.class_id, shown.label, shown.versus) == (
            3,
            explanation.class_id,
            explanation.label,
            "class 9",
        )
        assert shown.probability == pytest.approx(explanation.probability, rel=1e-5)


@pytest.mark.parametrize("media", ["png", "jpeg", "webp"])
def test_a_sheet_says_what_each_row_shows(render: Render, media: Delivery) -> None:
    options: dict[str, Any] = {"overlay_type": "panel"}
    images = [
        render(ramp(0, 1), ramp(0, 1), delivery=media, number=1, **options),
        render(ramp(0, 1), delivery=media, **options),
    ]
    found = provenance_of(whole_answer(images, ExplainOptions(**options), media))
    assert replace(found, classes=()) == replace(ORIGIN, layers=("block",))
    assert [(one.image, one.label) for one in found.classes] == [(1, "class 0"), (1, "class 2"), (3, "class 0")]


def test_a_signed_overlay_fades_unless_asked_otherwise(render: Render) -> None:
    def overlay(**options: Any) -> NDArray[Any]:
        (explanation,) = explanations(render(ramp(-1, 1), overlay=True, **options))
        return opened(explanation.overlay)

    signed = overlay(polarity="both")
    np.testing.assert_array_equal(signed, overlay(polarity="both", overlay_type="fade"))
    assert (signed != overlay(polarity="both", overlay_type="original")).any()
    np.testing.assert_array_equal(overlay(), overlay(overlay_type="original"))


def test_nearest_shows_the_cells(render: Render) -> None:
    (explanation,) = explanations(render(ramp(0, 1), heatmap="npy", scale="none", interpolation="nearest"))
    np.testing.assert_array_equal(opened(explanation.heatmap)[REGION], np.kron(ramp(0, 1), np.ones((6, 6), np.float32)))


def test_the_overlay_comes_beside_the_heatmap_where_it_is_asked_for(render: Render) -> None:
    (without,) = explanations(render(ramp(0, 1)))
    assert without.overlay is None
    (plain,) = explanations(render(ramp(0, 1), overlay=True))
    assert opened(plain.overlay).shape == (HEIGHT, WIDTH, 3)
    (sheet,) = explanations(render(ramp(0, 1), overlay=True, overlay_type="panel"))
    assert opened(sheet.heatmap).shape == (HEIGHT, WIDTH)
    assert opened(sheet.overlay).shape[1] > 3 * WIDTH


@pytest.mark.parametrize("media", ["png", "jpeg", "webp"])
def test_one_image_is_the_whole_document(render: Render, media: Delivery) -> None:
    options = {"overlay_type": "none", "color_map": "none", "size": "input"}
    one = render(ramp(0, 1), delivery=media, **options)
    whole = whole_answer([one], ExplainOptions(**options), media)
    image = opened(whole)
    assert image.shape == (32, 32, 3)
    assert image[0, 0].max() < 30
    assert image[-1, -1].min() > 225
    assert explanations(one)[0].heatmap is None


def test_several_classes_of_several_images_are_one_sheet(render: Render) -> None:
    options: dict[str, Any] = {"overlay_type": "panel", "polarity": "both"}
    images = [
        render(ramp(-1, 1), ramp(-1, -1), delivery="png", versus=9, **options),
        render(ramp(0, 1), delivery="png", **options),
    ]
    heights = [opened(whole_answer(part, ExplainOptions(**options), "png")).shape[0] for part in ([images[0]], images)]
    assert heights[0] < heights[1]
    assert [len(image.rows) for image in images] == [2, 1]
    assert "versus class 9" in images[0].rows[0].note


def test_arrays_are_stacked(render: Render) -> None:
    one, two = render(ramp(0, 1), delivery="npy"), render(ramp(0, 1), ramp(1, 0), delivery="npy")
    single = whole_answer([one], ExplainOptions(), "npy")
    stack = whole_answer([two], ExplainOptions(), "npy")
    assert single is not None
    assert stack is not None
    assert np.load(io.BytesIO(single.data)).shape == (HEIGHT, WIDTH)
    maps = np.load(io.BytesIO(stack.data))
    assert maps.shape == (2, HEIGHT, WIDTH)
    assert maps.dtype == np.float32
    np.testing.assert_array_equal(maps[0], np.load(io.BytesIO(single.data)))
    np.testing.assert_allclose(maps[1][:, ::-1][::-1], maps[0], atol=1e-5)


def test_json_has_no_media(render: Render) -> None:
    assert whole_answer([render(ramp(0, 1))], ExplainOptions(), "json") is None


def test_nothing_is_rendered_for_nobody(render: Render) -> None:
    with pytest.raises(DeadlineExceeded):
        render(ramp(0, 1), ramp(0, 1), within_s=-1)

"""Explanations measured, layers looked into, classes contrasted: over HTTP, with the embedded model and real photographs."""

from __future__ import annotations

import io

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydantic import TypeAdapter

from service.engine.evaluation.faithfulness import STEPS
from service.explain.results import ExplainResponse, InspectResponse
from service.imaging.plots import GREY, OKABE_ITO
from tests.conftest import Running
from tests.photographs import CHELSEA, COFFEE

pytestmark = pytest.mark.slow

TABBY, PUZZLE = 281, 918  # a class that is in the image of Chelsea, and one that is not


def post(server: Running, path: str, data: bytes = CHELSEA.data, status: int = 200) -> httpx.Response:
    response = httpx.post(f"{server.url}{path}", content=data, timeout=120)
    assert response.status_code == status, response.text
    return response


def array(server: Running, query: str) -> NDArray[np.float32]:
    return np.asarray(np.load(io.BytesIO(post(server, f"/explain?format=npy&{query}").content), allow_pickle=False))


def test_an_explanation_is_measured_beside_its_baselines(gallery: Running) -> None:
    response = post(gallery, "/explain?evaluate=true&heatmap=none", COFFEE.data)
    answer = TypeAdapter(ExplainResponse).validate_json(response.content, strict=True)
    found = answer.results[0].explanations[0]
    measured = found.evaluation
    assert measured is not None
    assert measured.steps == STEPS == len(measured.map.deletion_curve) - 1
    # What measures asks the network in fp32; the explanation may come from a trunk in bf16.
    assert measured.probability == pytest.approx(found.probability, abs=0.01)
    assert measured.map.insertion_curve[-1] == pytest.approx(measured.probability, abs=1e-5)
    # Coffee is one thing in one place: the map finds it better than chance and than the centre.
    assert measured.map.deletion < min(measured.random.deletion, measured.center.deletion)
    assert measured.map.insertion > max(measured.random.insertion, measured.center.insertion)
    assert measured.map.road > max(measured.random.road, measured.center.road)
    assert measured.map.average_drop < min(measured.random.average_drop, measured.center.average_drop)
    assert list(response.json()["results"][0]["explanations"][0])[-1] == "evaluation"


def test_it_is_null_unless_asked_for(server: Running) -> None:
    assert post(server, "/explain").json()["results"][0]["explanations"][0]["evaluation"] is None
    assert "explanations" not in post(server, "/predict?evaluate=true").json()["results"][0]


def test_the_curves_as_a_plot(gallery: Running) -> None:
    image = Image.open(io.BytesIO(post(gallery, "/explain?format=png&overlay_type=curves").content))
    pixels = np.asarray(image)
    assert image.width > image.height
    for color in (OKABE_ITO[0], GREY):
        assert (pixels == color).all(axis=2).sum() > 500  # the map's lines, and those of its baselines


@pytest.mark.parametrize("layers", ["", "layer=blocks.2&layer=bn2&"])
def test_layers_are_looked_into(server: Running, layers: str) -> None:
    response = post(server, f"/inspect?{layers}class_id={TABBY}&channels=5")
    answer = TypeAdapter(InspectResponse).validate_json(response.content, strict=True)
    inspection = answer.results[0].inspection
    assert inspection.class_id == TABBY
    names = [view.layer for view in inspection.layers]
    assert names == (["blocks.2", "bn2"] if layers else ["blocks.1", "blocks.2", "blocks.4", "bn2"])
    for view in inspection.layers:
        weights = [abs(one.weight) for one in view.strongest]
        assert len(weights) == 5
        assert weights == sorted(weights, reverse=True)
        assert sum(view.weights.counts) == view.shape[0]
        assert sum(view.gradients.counts) == np.prod(view.shape)
        assert view.activation_min <= view.activation_mean <= view.activation_max
    assert inspection.layers[-1].shape == (1280, 7, 7)
    assert answer.results[0].predictions[0].class_id == CHELSEA.top[0]


def test_the_feature_maps_as_a_sheet(server: Running) -> None:
    response = post(server, f"/models/efficientnet_lite0/inspect?format=jpeg&class_id={TABBY}")
    image = Image.open(io.BytesIO(response.content))
    assert image.format == "JPEG"
    assert min(image.size) > 700
    assert response.headers["x-explain-class-id"] == str(TABBY)
    assert response.headers["x-explain-layer"] == "blocks.1,blocks.2,blocks.4,bn2"


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ("class_id=281,285", 422, "parameter_invalid"),
        ("layer=nowhere", 422, "layer_not_found"),
        ("class_name=nothing%20such", 422, "class_not_found"),
        ("format=npy", 406, "not_acceptable"),
        ("channels=0", 422, "parameter_invalid"),
    ],
)
def test_what_cannot_be_looked_into(server: Running, query: str, status: int, code: str) -> None:
    assert post(server, f"/inspect?{query}", status=status).json()["code"] == code


def test_a_sheet_shows_one_image(server: Running) -> None:
    files = [("image", CHELSEA.data), ("image", COFFEE.data)]
    assert httpx.post(f"{server.url}/inspect?format=png", files=files, timeout=60).json()["code"] == "not_acceptable"
    results = httpx.post(f"{server.url}/inspect", files=files, timeout=60).json()["results"]
    assert [result["inspection"]["class_id"] for result in results] == [CHELSEA.top[0], COFFEE.top[0]]


def test_an_absent_class_is_dark_where_the_scale_is_shared(server: Running) -> None:
    present, absent = array(server, f"class_id={TABBY},{PUZZLE}&scale=shared")
    assert present.max() > 0.95
    assert absent.max() < 0.4
    assert absent.mean() < present.mean() / 3
    alone = array(server, f"class_id={TABBY},{PUZZLE}")
    assert alone[1].max() > 0.95  # with a scale of its own it looks as hot


def test_what_speaks_against_is_what_does_not_speak_for(server: Running) -> None:
    positive, negative, both = (
        array(server, f"class_id={TABBY}&versus=282&scale=none&polarity={p}") for p in ("positive", "negative", "both")
    )
    assert positive.min() >= 0
    assert negative.min() >= 0
    assert both.min() < 0 < both.max()
    hot = positive > 0.5 * positive.max()
    assert (both[hot] > 0).all()
    cold = negative > 0.5 * negative.max()
    assert (both[cold] < 0).all()


def test_a_contrast_is_the_difference_and_turns_its_sign(server: Running) -> None:
    query = "scale=none&polarity=both&"
    for_cat, for_puzzle = array(server, f"{query}class_id={TABBY},{PUZZLE}")
    difference = array(server, f"{query}class_id={TABBY}&versus={PUZZLE}")
    opposite = array(server, f"{query}class_id={PUZZLE}&versus={TABBY}")
    # Grad-CAM is linear in the score.
    np.testing.assert_allclose(difference, for_cat - for_puzzle, atol=1e-4)
    np.testing.assert_allclose(difference, -opposite, atol=1e-4)
    assert difference.max() > 0.5 * for_cat.max()
    # What speaks for the puzzle and not for the cat is next to nothing, beside what speaks for the cat.
    against = array(server, f"scale=none&polarity=negative&class_id={TABBY}&versus={PUZZLE}")
    assert against.mean() < difference.clip(min=0).mean()

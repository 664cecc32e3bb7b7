"""Which route has which options: /predict and /explain those of `ExplainOptions`, /inspect its own."""

from __future__ import annotations

import base64

import httpx
import pytest

from service.explain.options import ExplainOptions, InspectOptions, PredictOptions
from tests.api.stand_ins import StandInExplainer

pytestmark = pytest.mark.anyio

LONG = "a" * 257
# Every option of /explain: a value that it takes, and one that it refuses.
VALUES: dict[str, tuple[str, str]] = {
    "model": ("resnet50", LONG), "fit": ("pad", "sideways"), "format": ("json", "gif"), "class_id": ("3", "cat"),
    "class_name": ("tabby", LONG), "versus": ("3", LONG), "top_k": ("3", "0"), "eigen_smooth": ("true", "perhaps"),
    "aug_smooth": ("true", "perhaps"), "samples": ("5", "0"), "steps": ("5", "0"), "noise": ("0.1", "-1"),
    "window": ("3", "0"), "stride": ("3", "0"), "segments": ("5", "1"), "seed": ("0", "-1"), "head_fusion": ("max", "most"),
    "block": ("-1", "-201"), "toward": ("to_class", "up"), "discard_ratio": ("0.5", "1"), "rivals": ("1", "0"),
    "method": ("rise", LONG), "layer": ("blocks.6", LONG), "polarity": ("both", "up"), "scale": ("max", "min"),
    "color_map": ("hot", "cold"), "alpha": ("0.25", "2"), "overlay_type": ("panel", "board"),
    "clip_percent_lowerbound": ("5", "-1"), "clip_percent_upperbound": ("95", "101"), "size": ("input", "7"),
    "interpolation": ("nearest", "lanczos"),
    "heatmap": ("list", "tuple"), "overlay": ("true", "perhaps"), "evaluate": ("true", "perhaps"),
}  # fmt: skip


def test_every_option_of_explain_is_tried() -> None:
    assert VALUES.keys() == ExplainOptions.model_fields.keys()
    assert PredictOptions.model_fields.keys() < ExplainOptions.model_fields.keys()


@pytest.mark.parametrize("path", ["/explain", "/predict"])
@pytest.mark.parametrize("name", VALUES)
async def test_explain_and_predict_take_and_check_the_same_options(
    client: httpx.AsyncClient, explainer: StandInExplainer, path: str, name: str
) -> None:
    right, wrong = VALUES[name]
    response = await client.post(path, params={name: right}, content=b"x")
    assert response.status_code == 200, response.text
    assert explainer.options == ExplainOptions.model_validate({name: right})
    assert explainer.options.model_fields_set == {name}
    response = await client.post(path, params={name: wrong}, content=b"x")
    assert (response.status_code, response.json()["code"]) == (422, "parameter_invalid")
    assert response.json()["detail"].startswith(f"{name}: must be ")
    assert len(explainer.calls) == 1


async def assert_refused_by_name(client: httpx.AsyncClient, path: str, name: str, value: str) -> None:
    """In the query string, as a form field and in the JSON body."""
    image = base64.b64encode(b"x").decode()
    for response in (
        await client.post(path, params={name: value}, content=b"x"),
        await client.post(path, data={name: value}, files={"image": b"x"}),
        await client.post(path, json={"image": image, name: value}),
    ):
        assert (response.status_code, response.json()["code"]) == (422, "parameter_invalid")
        assert response.json()["detail"].startswith(f"{name}: unknown option; ")


@pytest.mark.parametrize("path", ["/explain", "/predict", "/models/resnet50/explain", "/models/resnet50/predict"])
async def test_explain_has_no_channels(client: httpx.AsyncClient, explainer: StandInExplainer, path: str) -> None:
    await assert_refused_by_name(client, path, "channels", "8")
    assert explainer.calls == []


@pytest.mark.parametrize("path", ["/inspect", "/models/resnet50/inspect"])
@pytest.mark.parametrize("name", sorted(ExplainOptions.model_fields.keys() - InspectOptions.model_fields.keys()))
async def test_inspect_refuses_what_it_has_not(
    client: httpx.AsyncClient, explainer: StandInExplainer, path: str, name: str
) -> None:
    await assert_refused_by_name(client, path, name, VALUES[name][0])
    assert explainer.calls == []


async def test_inspect_takes_its_own(client: httpx.AsyncClient, explainer: StandInExplainer) -> None:
    given = {name: VALUES[name][0] for name in InspectOptions.model_fields.keys() - {"channels"}} | {"channels": "5"}
    response = await client.post("/inspect", params=given, content=b"x")
    assert response.status_code == 200, response.text
    assert explainer.calls[-1].options == InspectOptions.model_validate(given)
    response = await client.post("/inspect?channels=0", content=b"x")
    assert response.json()["detail"] == "channels: must be at least 1"

"""What clients of other servers show of an error: its detail, whatever its code; and before the models are loaded."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Iterator

import httpx
import numpy as np
import pytest
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig
from tritonclient.http import InferenceServerClient
from tritonclient.http import InferInput as TritonInput
from tritonclient.utils import InferenceServerException

from service import errors
from service.app import create_app
from service.errors import CamserveError
from service.explain.registry import Registry
from service.settings import Settings
from tests import image_files as make
from tests.api.compat.wire import b64
from tests.api.stand_ins import MODEL, StandInExplainer, make_app
from tests.conftest import Running, listening

pytestmark = pytest.mark.anyio

IMAGE = make.save(make.scene(96, 48), "PNG")
ERRORS = [
    error
    for _, error in inspect.getmembers(errors, inspect.isclass)
    if issubclass(error, CamserveError) and error.__module__ == errors.__name__
]
DETAIL = "What is wrong, and what to do."


@pytest.fixture(scope="module", autouse=True)
def unloaded() -> Iterator[None]:
    """Registries never end loading: nothing here asks a network."""

    async def start(_registry: Registry) -> None:
        await asyncio.Event().wait()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Registry, "start", start)
        yield


@pytest.fixture(scope="module")
def refusing() -> StandInExplainer:
    """An explainer that refuses everything with `fail_with`."""
    return StandInExplainer()


@pytest.fixture(scope="module")
def service(refusing: StandInExplainer) -> Iterator[Running]:
    with listening(make_app(refusing)) as service:
        yield service


@pytest.fixture
async def kserve_v1() -> AsyncIterator[InferenceRESTClient]:
    async with InferenceRESTClient(RESTConfig(protocol="v1")) as client:
        yield client


@pytest.fixture
async def kserve_v2() -> AsyncIterator[InferenceRESTClient]:
    async with InferenceRESTClient(RESTConfig(protocol="v2", retries=0)) as client:
        yield client


def triton_infer(url: str) -> None:
    client = InferenceServerClient(url.removeprefix("http://"))
    try:
        tensor = TritonInput("image", [1], "BYTES")
        tensor.set_data_from_numpy(np.array([IMAGE], np.object_))
        client.infer(MODEL, [tensor])
    finally:
        client.close()


async def test_every_code_is_shown_in_words(
    service: Running, refusing: StandInExplainer, kserve_v1: InferenceRESTClient, kserve_v2: InferenceRESTClient
) -> None:
    document = {"instances": [b64(IMAGE)]}
    for error in ERRORS:
        refusing.fail_with = error(DETAIL)
        for call in (kserve_v1.infer(service.url, document, model_name=MODEL), kserve_v1.explain(service.url, MODEL, document)):
            with pytest.raises(httpx.HTTPStatusError, match=DETAIL) as shown:
                await call
            assert shown.value.response.json()["code"] == error.code
        tensor = InferInput("image", [1], "BYTES", data=[b64(IMAGE)])
        with pytest.raises(httpx.HTTPStatusError, match=DETAIL):
            await kserve_v2.infer(service.url, InferRequest(model_name=MODEL, infer_inputs=[tensor]), model_name=MODEL)
        with pytest.raises(InferenceServerException, match=DETAIL):
            await asyncio.to_thread(triton_infer, service.url)
        async with httpx.AsyncClient(base_url=service.url) as client:
            answer = await client.put(f"/explanations/{MODEL}", content=IMAGE)
        assert (answer.status_code, answer.json()["message"]) == (error.status, DETAIL)


async def test_a_fault_of_ours_tells_nothing(
    service: Running, refusing: StandInExplainer, kserve_v1: InferenceRESTClient
) -> None:
    refusing.fail_with = RuntimeError("a secret")
    with pytest.raises(httpx.HTTPStatusError, match="Quote the request id") as shown:
        await kserve_v1.infer(service.url, {"instances": [b64(IMAGE)]}, model_name=MODEL)
    assert "secret" not in shown.value.response.text


def test_a_key_that_is_missing_is_told_in_words() -> None:
    with listening(make_app(StandInExplainer(), api_keys="k" * 32)) as service:
        client = InferenceServerClient(service.url.removeprefix("http://"))
        with pytest.raises(InferenceServerException, match="Send an API key"):
            client.get_server_metadata()
        assert client.is_server_live()
        assert client.is_server_ready()
        client.close()


# Before the models are loaded ---------------------------------------------------------------------------------------------


@pytest.fixture
def cold() -> Iterator[Running]:
    """The default service, which never ends loading."""
    with listening(create_app(Settings(log_format="json"))) as service:
        yield service


async def test_a_model_that_is_still_loading(
    cold: Running, kserve_v1: InferenceRESTClient, kserve_v2: InferenceRESTClient
) -> None:
    assert await kserve_v1.is_server_live(cold.url) is True
    assert await kserve_v1.is_model_ready(cold.url, MODEL) is False
    assert await kserve_v2.is_server_live(cold.url) is True
    assert await kserve_v2.is_model_ready(cold.url, MODEL) is False
    with pytest.raises(httpx.HTTPStatusError, match="Not every model is ready"):
        await kserve_v2.is_server_ready(cold.url)
    with pytest.raises(httpx.HTTPStatusError, match="still loading"):
        await kserve_v1.explain(cold.url, MODEL, {"instances": [b64(IMAGE)]})
    async with httpx.AsyncClient(base_url=cold.url) as client:
        assert (await client.get("/ping")).status_code == 503
        assert (await client.post("/invocations", content=IMAGE)).status_code == 503
        states = (await client.post("/v2/repository/index")).json()
    assert (states[0]["name"], states[0]["state"]) == (MODEL, "LOADING")


def test_triton_sees_a_model_that_is_still_loading(cold: Running) -> None:
    client = InferenceServerClient(cold.url.removeprefix("http://"))
    assert client.is_server_live()
    assert not client.is_server_ready()
    assert not client.is_model_ready(MODEL)
    client.close()
    with pytest.raises(InferenceServerException, match="still loading"):
        triton_infer(cold.url)

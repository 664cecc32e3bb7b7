"""Which models live: every state of a card, one that fails among others, a worker that dies."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest
import structlog

from service.api.dependencies import services_of
from service.app import create_app
from service.engine.network import Network
from service.errors import ConfigurationError, ModelNotFound, ModelUnhealthy, NotReady
from service.explain.registry import Registry
from service.telemetry import Metrics
from tests.explain.small_service import LAYER, load_small, small_service, small_settings, until
from tests.image_files import jpeg
from tests.model_cards import write_card

pytestmark = pytest.mark.anyio
NOWHERE = ("random = 0", f'file = "nowhere.pth"\nsha256 = "{"0" * 64}"')


def states(registry: Registry) -> dict[str, str]:
    return {info.name: info.state for info in registry.describe()}


async def test_from_loading_to_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_small(monkeypatch)
    write_card(tmp_path, "another", LAYER)
    metrics = Metrics()
    registry = Registry(small_settings(tmp_path), metrics)
    assert states(registry) == {"tiny": "loading", "another": "available"}
    assert registry.describe_one("tiny").layers == ()
    with pytest.raises(NotReady) as not_yet:
        registry.get(None)
    assert not_yet.value.retry_after_s is not None
    assert b'camserve_model_ready{model="tiny"} 0.0' in metrics.render()[0]

    await registry.start()
    assert states(registry) == {"tiny": "ready", "another": "available"}
    assert registry.ready
    assert registry.get(None) is registry.get("tiny")
    told = registry.describe_one("tiny")
    assert (told.input_size, told.classes, told.default_layer) == ((32, 32), 10, ("block",))
    assert "stem" in {layer.name for layer in told.layers}
    assert "gradcam" in told.methods
    assert b'camserve_model_ready{model="tiny"} 1.0' in metrics.render()[0]
    for name in ("another", "nope", "../tiny", ""):
        with pytest.raises(ModelNotFound, match="Models served: tiny"):
            registry.get(name)
    with pytest.raises(ModelNotFound, match="Cards: another, tiny"):
        registry.describe_one("nope")
    await registry.close()


async def test_one_that_fails_does_not_take_the_others_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_small(monkeypatch)
    write_card(tmp_path, "broken", LAYER, NOWHERE)
    registry = Registry(small_settings(tmp_path, models=("tiny", "broken")), Metrics())
    with pytest.raises(ConfigurationError, match=r"card broken: .*nowhere\.pth"):
        await registry.start()

    async def is_ready() -> bool:
        return states(registry)["tiny"] == "ready"

    await until(is_ready)
    assert registry.get("tiny").scheduler.alive
    assert not registry.ready
    told = registry.describe_one("broken")
    assert told.state == "failed"
    assert "nowhere.pth" in (told.error or "")
    with pytest.raises(ModelUnhealthy, match="could not be loaded"):
        registry.get("broken")
    await registry.close()


async def test_what_nobody_expected_is_not_told_to_clients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object, **__: object) -> Network:
        raise RuntimeError("out of memory at 0xdeadbeef")

    monkeypatch.setattr(Network, "load", load)
    registry = Registry(small_settings(tmp_path), Metrics())
    with pytest.raises(RuntimeError):
        await registry.start()
    assert registry.describe_one("tiny").error == "It could not be loaded; see the log."


async def test_random_weights_are_said_aloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_small(monkeypatch)
    settings = small_settings(tmp_path, random_weights=True)
    write_card(tmp_path, "tiny", LAYER, ("random = 0", 'name = "r160_in1k"'))
    registry = Registry(settings, Metrics())
    with structlog.testing.capture_logs() as lines:
        await registry.start()
    await registry.close()
    assert [line["model"] for line in lines if line["log_level"] == "warning"] == ["tiny"]


async def test_a_worker_that_died_is_seen_by_everybody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_small(monkeypatch)
    app = create_app(small_settings(tmp_path, log_format="json"))
    transport = httpx.ASGITransport(app)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://camserve") as client:

        async def is_ready() -> bool:
            return (await client.get("/readyz")).status_code == 200

        await until(is_ready)
        assert (await client.post("/predict", content=jpeg())).status_code == 200
        worker = services_of(app).registry.get(None).scheduler.fast._workers[0]
        worker.cancel()
        await asyncio.gather(worker, return_exceptions=True)
        assert not await is_ready()
        (told, *_) = (await client.get("/models")).json()["models"]
        assert (told["state"], told["classes"]) == ("failed", 10)
        assert "stopped working" in told["error"]
        response = await client.post("/predict", content=jpeg())
        assert (response.status_code, response.json()["code"]) == (503, "model_unhealthy")
        assert int(response.headers["retry-after"]) >= 1
        assert 'camserve_model_ready{model="tiny"} 0.0' in (await client.get("/metrics")).text
        assert (await client.get("/livez")).status_code == 200


async def test_closing_twice_is_as_good_as_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with small_service(tmp_path, monkeypatch) as small:
        await small.registry.close()
        assert not small.registry.ready

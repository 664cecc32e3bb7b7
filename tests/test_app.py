"""The application's life: what answers before, while and after the models are there, and a start that fails."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import orjson
import pytest
from fastapi import FastAPI

from service.api.dependencies import Phase, services_of
from service.app import create_app
from service.errors import ConfigurationError
from service.explain.registry import Registry
from service.settings import Settings

pytestmark = pytest.mark.anyio

UNLOADABLE = """
description = "Weights that are nowhere"
[architecture]
source = "timm"
name = "resnet18"
[weights]
file = "nowhere.pth"
sha256 = "0000000000000000000000000000000000000000000000000000000000000000"
[labels]
dataset = "imagenet-1k"
[explain]
layer = "layer4"
"""


def client_of(app: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://camserve")


async def test_livez_answers_while_the_models_load(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    loaded, closed = asyncio.Event(), asyncio.Event()

    async def start(registry: Registry) -> None:
        await loaded.wait()

    async def close(registry: Registry) -> None:
        closed.set()

    monkeypatch.setattr(Registry, "start", start)
    monkeypatch.setattr(Registry, "close", close)
    monkeypatch.setattr(Registry, "ready", property(lambda _: loaded.is_set()))
    app = create_app(Settings(log_format="json"))
    async with client_of(app) as client:
        async with app.router.lifespan_context(app):
            assert (await client.get("/livez")).status_code == 200
            assert (await client.get("/readyz")).json()["code"] == "not_ready"
            assert (await client.post("/explain", content=b"x")).json()["code"] == "not_ready"
            assert (await client.get("/models")).json()["models"][0]["state"] == "loading"
            assert '"service_ready"' not in capsys.readouterr().err
            loaded.set()
            await asyncio.sleep(0.01)
            assert (await client.get("/readyz")).status_code == 200
            lines = [orjson.loads(line) for line in capsys.readouterr().err.splitlines()]
            assert [line["models"] for line in lines if line["event"] == "service_ready"] == [["efficientnet_lite0"]]
            assert not closed.is_set()
        assert closed.is_set()
        assert (await client.get("/readyz")).json()["code"] == "shutting_down"


async def test_stopped_while_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    async def start(registry: Registry) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(Registry, "start", start)
    app = create_app(Settings())
    async with asyncio.timeout(5), app.router.lifespan_context(app):
        pass
    assert services_of(app).phase is Phase.DRAINING


async def test_models_that_cannot_be_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "unloadable.toml").write_text(UNLOADABLE)
    failure: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
    settings = Settings(models_dir=tmp_path, models=("unloadable",), log_format="json")
    app = create_app(settings, on_fatal=failure.set_result)
    async with app.router.lifespan_context(app), client_of(app) as client:
        assert isinstance(await asyncio.wait_for(failure, 60), ConfigurationError)
        assert (await client.get("/models/unloadable")).json()["state"] == "failed"
        assert (await client.get("/livez")).status_code == 200
        assert (await client.get("/readyz")).status_code == 503
    lines = [orjson.loads(line) for line in capsys.readouterr().err.splitlines() if line.startswith("{")]
    reason = next(line["reason"] for line in lines if line["event"] == "models_not_loaded")
    assert "nowhere.pth" in reason


async def test_a_failed_start_without_a_listener_lives_on_unready(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = asyncio.Event()

    async def start(registry: Registry) -> None:
        failed.set()
        raise RuntimeError("out of memory")

    monkeypatch.setattr(Registry, "start", start)
    app = create_app(Settings())
    async with app.router.lifespan_context(app), client_of(app) as client:
        await failed.wait()
        assert (await client.get("/livez")).status_code == 200
        assert (await client.get("/readyz")).status_code == 503


async def test_a_card_that_is_not_there_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "unloadable.toml").write_text(UNLOADABLE)
    with pytest.raises(ConfigurationError, match=r"'nope'.*unloadable"):
        create_app(Settings(models_dir=tmp_path, models=("nope",)))


async def test_two_apps_live_side_by_side() -> None:
    one, other = create_app(Settings()), create_app(Settings())
    async with client_of(one) as client:
        await client.get("/livez")
    assert b'camserve_requests_total{model="",route="/livez",status="200"} 1.0' in services_of(one).metrics.render()[0]
    assert b"camserve_requests_total{" not in services_of(other).metrics.render()[0]

"""The HTTP side over stand-ins, see stand_ins.py; and the whole application, over a small network."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from service.app import create_app
from tests.api.stand_ins import ADMIN_KEY, StandInExplainer, client_of, make_app
from tests.explain.small_service import load_small, small_settings, until


@pytest.fixture
def explainer() -> StandInExplainer:
    return StandInExplainer()


@pytest.fixture
def app(explainer: StandInExplainer) -> FastAPI:
    return make_app(explainer)


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(app) as client:
        yield client


@pytest.fixture
async def whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[httpx.AsyncClient]:
    """The app with a small network, started; it caches, and operators have the key `ADMIN_KEY`."""
    load_small(monkeypatch)
    app = create_app(small_settings(tmp_path, cache_entries=8, admin_keys=ADMIN_KEY))
    async with app.router.lifespan_context(app), client_of(app) as client:

        async def ready() -> bool:
            return (await client.get("/readyz")).status_code == 200

        await until(ready)
        yield client

"""The HTTP side over stand-ins; see standins.py."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import FastAPI

from tests.api.standins import StandInExplainer, client_of, make_app


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

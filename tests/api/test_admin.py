"""The operator's routes: off by default, behind keys of their own, each one call of the registry."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from service.api.dependencies import services_of
from service.errors import ModelNotFound
from tests.api.stand_ins import ADMIN_KEY, MODEL, StandInExplainer, StandInRegistry, client_of, make_app

pytestmark = pytest.mark.anyio

USER_KEY = "u" * 32


class RecordingRegistry(StandInRegistry):
    """Remembers what it was asked to do."""

    def __init__(self) -> None:
        self.changes: list[tuple[str, str]] = []

    async def load(self, name: str) -> None:
        self._change("load", name)

    async def unload(self, name: str) -> None:
        self._change("unload", name)

    def _change(self, what: str, name: str) -> None:
        if name != MODEL:
            raise ModelNotFound("There is no such model card.")
        self.changes.append((what, name))


def client_and_registry(**settings: Any) -> tuple[httpx.AsyncClient, RecordingRegistry]:
    registry = RecordingRegistry()
    return client_of(make_app(StandInExplainer(), registry, **settings)), registry


@pytest.mark.parametrize("what", ["load", "unload"])
async def test_an_operator_loads_and_unloads(what: str) -> None:
    client, registry = client_and_registry(admin_keys=ADMIN_KEY, api_keys=USER_KEY)
    async with client:
        for headers in ({"X-API-Key": ADMIN_KEY}, {"Authorization": f"Bearer {ADMIN_KEY}"}):
            answer = await client.post(f"/admin/models/{MODEL}/{what}", headers=headers)
            assert (answer.status_code, answer.json()["name"]) == (200, MODEL)
        missing = await client.post(f"/admin/models/nowhere/{what}", headers={"X-API-Key": ADMIN_KEY})
    assert missing.json()["code"] == "model_not_found"
    assert registry.changes == [(what, MODEL)] * 2


@pytest.mark.parametrize(
    ("settings", "headers", "status", "code"),
    [
        ({}, {}, 404, "not_found"),
        ({"api_keys": USER_KEY}, {"X-API-Key": USER_KEY}, 404, "not_found"),
        ({"admin_keys": ADMIN_KEY}, {}, 401, "auth_required"),
        ({"admin_keys": ADMIN_KEY}, {"X-API-Key": "wrong"}, 401, "auth_invalid"),
        ({"admin_keys": ADMIN_KEY}, {"X-API-Key": USER_KEY}, 401, "auth_invalid"),
        ({"admin_keys": ADMIN_KEY, "api_keys": USER_KEY}, {"X-API-Key": USER_KEY}, 403, "forbidden"),
    ],
)
async def test_nobody_else_does(settings: dict[str, str], headers: dict[str, str], status: int, code: str) -> None:
    client, registry = client_and_registry(**settings)
    async with client:
        answer = await client.post(f"/admin/models/{MODEL}/load", headers=headers)
        trick = await client.post(f"//admin/models/{MODEL}/load", headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert ("WWW-Authenticate" in answer.headers) == (status == 401)
    assert trick.status_code in {401, 404}
    assert registry.changes == []


async def test_an_operators_key_opens_nothing_else() -> None:
    client, _ = client_and_registry(admin_keys=ADMIN_KEY, api_keys=USER_KEY)
    async with client:
        assert (await client.get("/models", headers={"X-API-Key": ADMIN_KEY})).status_code == 401
        assert (await client.get("/models", headers={"X-API-Key": USER_KEY})).status_code == 200


async def test_nothing_is_loaded_while_the_service_stops() -> None:
    registry = RecordingRegistry()
    app = make_app(StandInExplainer(), registry, admin_keys=ADMIN_KEY)
    services_of(app).lifecycle.drain()
    async with client_of(app) as client:
        answer = await client.post(f"/admin/models/{MODEL}/load", headers={"X-API-Key": ADMIN_KEY})
    assert answer.json()["code"] == "shutting_down"
    assert registry.changes == []

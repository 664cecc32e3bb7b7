"""GET /models/{model}/classes: every class, and an entity tag that changes with weights and labels."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from pydantic import TypeAdapter

from service.api.catalogue import entity_tag
from service.api.schemas import Problem
from service.app import create_app
from service.engine.cards.labels import LabelSet, imagenet_labels
from service.explain.model import list_classes
from service.explain.results import ClassList
from tests import image_files as make
from tests.api.stand_ins import ADMIN_KEY, client_of
from tests.explain.small_service import small_settings
from tests.model_cards import CLASSES

pytestmark = pytest.mark.anyio

PATH = "/models/tiny/classes"
IMAGE = make.save(make.scene(96, 48), "PNG")


async def test_every_class_in_order(whole: httpx.AsyncClient) -> None:
    response = await whole.get(PATH)
    classes = TypeAdapter(ClassList).validate_json(response.content, strict=True).classes
    assert [(one.class_id, one.label, one.wordnet_id) for one in classes] == [(n, f"class {n}", None) for n in range(CLASSES)]
    predicted = (await whole.post("/predict?top_k=10", content=IMAGE)).json()["results"][0]["predictions"]
    assert {one["class_id"]: one["label"] for one in predicted} == {one.class_id: one.label for one in classes}


def test_classes_of_imagenet_have_wordnet_ids() -> None:
    classes = list_classes(imagenet_labels("imagenet-1k")).classes
    tiger_cat = classes[282]
    assert (tiger_cat.class_id, tiger_cat.label, tiger_cat.wordnet_id) == (282, "tiger cat", "n02123159")
    assert len(classes) == 1000
    assert list_classes(LabelSet(("tabby, tabby cat",))).classes[0].label == "tabby"


async def test_what_a_client_has_is_not_sent_again(whole: httpx.AsyncClient) -> None:
    first = await whole.get(PATH)
    etag = first.headers["etag"]
    assert (await whole.get(PATH)).headers["etag"] == etag
    for condition in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        again = await whole.get(PATH, headers={"If-None-Match": condition})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
    for condition in ('"other"', etag.strip('"'), ""):
        again = await whole.get(PATH, headers={"If-None-Match": condition})
        assert (again.status_code, again.content) == (200, first.content)


async def test_head(whole: httpx.AsyncClient) -> None:
    first, head = await whole.get(PATH), await whole.head(PATH)
    assert (head.status_code, head.content) == (200, b"")
    assert {head.headers[name] == first.headers[name] for name in ("etag", "content-length", "content-type")} == {True}
    same = await whole.head(PATH, headers={"If-None-Match": first.headers["etag"]})
    assert same.status_code == 304


def test_the_tag_changes_with_the_weights_and_with_the_labels() -> None:
    tags = {entity_tag(digest, body) for digest in ("sha256:0", "sha256:1") for body in (b"cat", b"dog")}
    assert len(tags) == 4
    assert entity_tag("sha256:0", b"cat") in tags


async def test_other_labels_have_another_tag(whole: httpx.AsyncClient, tmp_path: Path) -> None:
    before = (await whole.get(PATH)).headers["etag"]
    (tmp_path / "labels.txt").write_text("".join(f"kind {number}\n" for number in range(CLASSES)))
    for change in ("unload", "load"):
        assert (await whole.post(f"/admin/models/tiny/{change}", headers={"X-API-Key": ADMIN_KEY})).status_code == 200
    response = await whole.get(PATH, headers={"If-None-Match": before})
    assert response.status_code == 200
    assert response.json()["classes"][3]["label"] == "kind 3"


async def test_a_model_that_is_not_there(whole: httpx.AsyncClient) -> None:
    response = await whole.get("/models/nope/classes")
    assert response.status_code == 404
    assert Problem.model_validate_json(response.content, strict=True).code == "model_not_found"


async def test_a_model_that_is_not_ready(tmp_path: Path) -> None:
    async with client_of(create_app(small_settings(tmp_path))) as client:
        response = await client.get(PATH)
    assert response.status_code == 503
    assert Problem.model_validate_json(response.content, strict=True).code == "not_ready"
    assert int(response.headers["retry-after"]) > 0

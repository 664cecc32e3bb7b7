"""Zero-shot classifiers over HTTP: labels and a prompt in a card, weights and tokenizer in a folder beside it."""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from service.settings import Settings
from tests.conftest import running
from tests.engine.sources import two_towers
from tests.photographs import CHELSEA


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("models")
    for family in ("clip", "siglip"):
        two_towers.save_repository(folder / family, family)
        digest = hashlib.sha256((folder / family / "model.safetensors").read_bytes()).hexdigest()
        weights = f'file = "{family}/model.safetensors"\nsha256 = "{digest}"'
        two_towers.save_card(
            folder, family, name=family, labels='prompt = ["a photo of a {}.", "a drawing of a {}."]', weights=weights
        )
    settings = Settings(models_dir=folder, models=("clip", "siglip"), max_batch_size=1)
    with running(settings) as service, httpx.Client(base_url=service.url, timeout=60) as client:
        yield client


def answer(client: httpx.Client, model: str, **options: Any) -> dict[str, Any]:
    query: dict[str, Any] = {"heatmap": "list", "top_k": 3} | options
    response = client.post(f"/models/{model}/explain", content=CHELSEA.data, params=query)
    assert response.status_code == 200, response.text
    result: dict[str, Any] = response.json()["results"][0]
    return result


@pytest.mark.parametrize("model", ["clip", "siglip"])
def test_labels_with_probabilities_as_the_family_was_trained(client: httpx.Client, model: str) -> None:
    predictions = answer(client, model)["predictions"]
    assert {one["label"] for one in predictions} == set(two_towers.LABELS)
    total = sum(math.exp(one["logit"]) for one in predictions)
    for one in predictions:
        expected = math.exp(one["logit"]) / total if model == "clip" else 1 / (1 + math.exp(-one["logit"]))
        assert one["probability"] == pytest.approx(expected)


@pytest.mark.parametrize("model", ["clip", "siglip"])
def test_what_speaks_for_a_label_rather_than_another(client: httpx.Client, model: str) -> None:
    """Grad-CAM is linear in the score, so the signed map of a difference is the difference of the maps."""
    raw = {"scale": "none", "polarity": "both"}
    dog, sofa, contrast = (
        np.array(answer(client, model, **raw | query)["explanations"][0]["heatmap"])
        for query in ({"class_name": "dog"}, {"class_name": "blue sofa"}, {"class_name": "dog", "versus": "blue sofa"})
    )
    np.testing.assert_allclose(contrast, dog - sofa, atol=1e-5)
    assert np.ptp(contrast) > 1e-4


@pytest.mark.parametrize("model", ["clip", "siglip"])
@pytest.mark.parametrize("method", ["gradcam", "attention_rollout"])
def test_it_is_drawn(client: httpx.Client, model: str, method: str) -> None:
    query = {"format": "png", "class_name": "cat", "method": method}
    response = client.post(f"/models/{model}/explain", content=CHELSEA.data, params=query)
    assert response.status_code == 200, response.text
    overlay = np.asarray(Image.open(io.BytesIO(response.content)).convert("RGB")).astype(int)
    photograph = np.asarray(Image.open(CHELSEA.path).convert("RGB")).astype(int)
    assert overlay.shape == photograph.shape
    assert np.abs(overlay - photograph).mean() > 5

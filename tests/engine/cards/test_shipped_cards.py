"""Every card of the repository: built from its architecture alone, exported, cut at its layer, explained."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from service.engine.batch import EngineRequest
from service.engine.cards.card import Card
from service.engine.cards.labels import read_labels
from service.engine.cards.repository import read_cards
from service.engine.network import Network
from service.engine.sources import load
from service.engine.types import EngineResult
from service.settings import DEFAULT_MODELS_DIR

pytestmark = pytest.mark.slow

CARDS = read_cards(DEFAULT_MODELS_DIR)
FIXED = {"vit_b_16", "vit_base_patch16_224"}  # take images of one size only
SIDE = 128  # elsewhere: exporting costs the same, running less


def small(card: Card) -> Card:
    """The card with seeded weights and, where the network takes any size, a small input."""
    weights = card.weights.model_copy(
        update=dict.fromkeys(("name", "hub", "revision", "package", "file", "keys")) | {"random": 0}
    )
    crop = None if card.name in FIXED else SIDE
    return card.model_copy(
        update={"weights": weights, "preprocess": card.preprocess.model_copy(update={"crop": crop, "resize": crop})}
    )


def test_the_repository_has_what_people_run() -> None:
    assert {
        "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2",
        "mobilenet_v3_large", "resnet18", "resnet50", "swin_t", "vgg16", "vit_b_16", "vit_base_patch16_224", "xception",
        "xception_keras",
    } <= set(CARDS)  # fmt: skip


# Those whose weights are installed are loaded with them in other tests.
@pytest.mark.parametrize("name", [name for name, card in CARDS.items() if card.weights.package is None])
def test_a_card_is_loaded_exported_cut_and_explained(name: str) -> None:
    card = CARDS[name]
    loaded = load(small(card))
    for parameter in loaded.module.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)  # torchvision's ViT is born with a classifier of zeros
    network = Network(name, loaded, card.explain.layer, torch.device("cpu"))
    labels = read_labels(card)
    assert labels is not None
    assert network.classes == len(labels)
    pre = network.preprocessing
    pixels = np.random.default_rng(0).integers(0, 255, (pre.height, pre.width, 3), np.uint8)
    (result,) = network.run([EngineRequest(pixels=pixels, classes=(3, 281))])
    assert isinstance(result, EngineResult)
    first, second = (heat / np.abs(heat).max() for (heat,) in result.maps)
    assert first.size >= 9
    assert np.isfinite(first).all()
    # An untrained network finds little difference between places and classes, but far more than rounding makes (1e-6).
    assert first.std() > 2e-3
    assert np.abs(first - second).max() > 2e-3

"""Do the maps say what the network looked at? Measured on real photographs with the embedded model's trained weights."""

from __future__ import annotations

import copy
import statistics

import httpx
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from service.engine.batch import EngineRequest
from service.engine.cards.repository import read_cards
from service.engine.methods import METHODS
from service.engine.network import Network
from service.engine.sources import load
from service.engine.types import EngineResult
from service.imaging.decode import decode
from service.imaging.geometry import place, resample
from service.imaging.headers import Limits
from service.settings import DEFAULT_MODELS_DIR
from tests.conftest import Running
from tests.photographs import ALL

pytestmark = pytest.mark.slow

# Maps of a class: not those of activations alone, nor of what is known to fail (guided backpropagation says so itself).
FAMILIES = {"gradient at a layer", "head of the network", "fine-grained"}
# These add up what speaks for the class and leave out what speaks against it; where every channel's weight is as likely to be
# positive, that is much the same for any class. `GET /methods` says so.
POSITIVE_ONLY = {"gradcam_elementwise", "gradcam_plusplus", "layercam"}
OF_A_CLASS = [*(name for name, m in METHODS.items() if m.family in FAMILIES), "saliency", "input_x_gradient"]


def test_gradcam_beats_a_random_map_and_the_centre_on_average(server: Running) -> None:
    measured = []
    for photo in ALL:
        url = f"{server.url}/explain?evaluate=true&heatmap=none&overlay=false"
        response = httpx.post(url, content=photo.data, timeout=120)
        assert response.status_code == 200, response.text
        measured.append(response.json()["results"][0]["explanations"][0]["evaluation"])

    def mean(of: str, figure: str) -> float:
        return statistics.mean(float(one[of][figure]) for one in measured)

    for baseline in ("random", "center"):
        assert mean("map", "deletion") < mean(baseline, "deletion")
        assert mean("map", "insertion") > mean(baseline, "insertion")
        assert mean("map", "road") > mean(baseline, "road")


@pytest.fixture(scope="module")
def networks() -> tuple[Network, Network]:
    """The embedded model, and the same with the weights of its classifier in another order (Adebayo 2018)."""
    card = read_cards(DEFAULT_MODELS_DIR)["efficientnet_lite0"]
    loaded = load(card)
    shuffled = copy.deepcopy(loaded)
    weight = shuffled.module.get_parameter("classifier.weight")
    order = torch.randperm(weight.numel(), generator=torch.Generator().manual_seed(0))
    weight.copy_(weight.flatten()[order].view_as(weight))
    cpu = torch.device("cpu")
    return Network("trained", loaded, card.explain.layer, cpu), Network("shuffled", shuffled, card.explain.layer, cpu)


@pytest.fixture(scope="module")
def seen(networks: tuple[Network, Network]) -> list[NDArray[np.uint8]]:
    """The photographs as the network sees them."""
    own = networks[0].preprocessing
    decoded = [decode(photo.data, Limits()).rgb for photo in ALL]
    return [resample(rgb, place(rgb.shape[1], rgb.shape[0], own, own.fit), own.interpolation, (0, 0, 0)) for rgb in decoded]


def ranks(grid: NDArray[np.float32]) -> NDArray[np.float64]:
    return grid.ravel().argsort().argsort().astype(np.float64)


@pytest.mark.parametrize("name", OF_A_CLASS)
def test_shuffled_weights_of_the_head_change_the_map(
    networks: tuple[Network, Network], seen: list[NDArray[np.uint8]], name: str
) -> None:
    correlations = []
    method = METHODS[name]
    classes = [photo.top[0] for photo in ALL]
    requests = [
        EngineRequest(pixels=pixels, classes=(c,), method=method, parameters=method.defaults)
        for pixels, c in zip(seen, classes, strict=True)
    ]
    for one, other in zip(*(network.run(requests) for network in networks), strict=True):
        assert isinstance(one, EngineResult)
        assert isinstance(other, EngineResult)
        correlations.append(np.corrcoef(ranks(one.maps[0][0]), ranks(other.maps[0][0]))[0, 1])
    assert np.mean(correlations) < (0.97 if name in POSITIVE_ONLY else 0.5), correlations

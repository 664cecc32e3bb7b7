"""Looking into layers: numbers by hand on captum's network, and which layers are looked at when none is named."""

from __future__ import annotations

import numpy as np
import pytest

from service.engine.layer_statistics import BINS
from service.engine.network import Network
from service.engine.types import LayerStatisticsRequest
from service.errors import DeadlineExceeded
from tests.networks import Pooled, known, network, seeded


@pytest.fixture(scope="module")
def pooled() -> Network:
    return network(seeded(Pooled), "block", size=32)


def random_image(seed: int = 0, size: int = 32) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)


def test_weights_of_a_pooled_head_are_its_own_over_the_cells(pooled: Network) -> None:
    found = pooled.layer_statistics(
        LayerStatisticsRequest(pixels=random_image(), class_id=2, layers=("stem", "block"), channels=5)
    )
    stem, block = found.layers
    assert (stem.layer, stem.shape, block.layer, block.shape) == ("stem", (8, 16, 16), "block", (16, 8, 8))
    head = seeded(Pooled).get_parameter("head.weight")  # the same seed
    own = head[2].numpy() / 64
    strongest = np.argsort(-np.abs(own))[:5]
    assert [one.channel for one in block.strongest] == strongest.tolist()
    assert [one.weight for one in block.strongest] == pytest.approx(own[strongest].tolist(), rel=1e-5)
    # The same gradient in every cell: the pooled histogram holds one for each channel, the other one for each cell.
    assert sum(block.weights.counts) == 16
    assert [64 * count for count in block.weights.counts] == list(block.gradients.counts)
    assert len(block.weights.edges) == BINS + 1
    stem_maps, block_maps = found.feature_maps
    assert (stem_maps.shape, block_maps.shape) == ((5, 16, 16), (5, 8, 8))
    assert [one.mean for one in block.strongest] == pytest.approx(block_maps.mean(axis=(1, 2)).tolist(), rel=1e-5)
    assert block.activation_min == 0 <= block.activation_mean <= block.activation_max
    assert block_maps.max() <= block.activation_max


def test_the_best_class_and_a_contrast(pooled: Network) -> None:
    best = pooled.layer_statistics(LayerStatisticsRequest(pixels=random_image(), layers=("block",), channels=16))
    assert best.class_id == int(best.logits.argmax())
    against = pooled.layer_statistics(
        LayerStatisticsRequest(
            pixels=random_image(), class_id=best.class_id, versus=best.class_id, layers=("block",), channels=16
        )
    )
    assert {one.weight for one in against.layers[0].strongest} == {0.0}


def test_it_ends_when_its_checkpoint_says_so(pooled: Network) -> None:
    def expired() -> None:
        raise DeadlineExceeded("nobody waits")

    with pytest.raises(DeadlineExceeded):
        pooled.layer_statistics(LayerStatisticsRequest(pixels=random_image()), expired)


def test_layers_in_the_order_asked_for(pooled: Network) -> None:
    found = pooled.layer_statistics(
        LayerStatisticsRequest(pixels=random_image(), class_id=0, layers=("block", "stem"), channels=1)
    )
    assert [statistics.layer for statistics in found.layers] == ["block", "stem"]


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        ("resnet18", 64, ("layer1", "layer2", "layer3", "layer4")),
        ("vgg11", 64, ("features.14", "features.19", "features", "avgpool")),
    ],
)
def test_a_few_stages_over_the_depth(name: str, size: int, expected: tuple[str, ...]) -> None:
    whole = network(known(name), expected[-1], size=size)
    found = whole.layer_statistics(LayerStatisticsRequest(pixels=random_image(size=size), channels=2))
    assert tuple(statistics.layer for statistics in found.layers) == expected


def test_both_stages_of_a_small_network(pooled: Network) -> None:
    found = pooled.layer_statistics(LayerStatisticsRequest(pixels=random_image(), channels=1))
    assert [statistics.layer for statistics in found.layers] == ["stem", "block"]

"""Maps of networks whose deepest grid is blank or in another order: they find the place that made the network decide.

The weights are random, but the classifier is fitted to tell images with a textured square from images without: what a trained
network knows, in one matrix. What such a network has to look at is known, so its maps can be measured.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from service.engine.batch import EngineRequest
from service.engine.network import Network
from service.engine.sources import LoadedNetwork
from service.engine.types import EngineResult, EvaluationRequest
from tests.sweep.check import MAX_DIFFERENCE, load_family, map_difference, normalise
from tests.sweep.families import FAMILIES

pytestmark = pytest.mark.sweep  # minutes: `make sweep` runs it

FITTED_IMAGES = 48
MEASURED_IMAGES = 8
TRIED_IMAGES = 30  # to find as many that the network recognises
SIDE = 224
RIDGE = 1e-4  # of the largest eigenvalue
MARGIN = 8.0  # between a class's logits for images with and without a square


def draw(side: int, number: int, *, square: bool) -> NDArray[np.uint8]:
    """A background of one colour, with a checkerboard of 2 pixels in a square of a quarter of the side, anywhere."""
    random = np.random.default_rng(number)
    image = np.full((side, side, 3), 128.0) + random.uniform(-20, 20, 3)
    if square:
        top, left = random.integers(0, side - side // 4, 2)
        rows, columns = np.indices((side // 4, side // 4)) // 2
        image[top : top + side // 4, left : left + side // 4] += np.where((rows + columns) % 2, 100, -100)[..., None]
    return image.clip(0, 255).astype(np.uint8)


def fit_classifier(loaded: LoadedNetwork) -> None:
    """Ridge regression of the last linear layer: class 1 has a square, class 0 has none, the others are never likely."""
    classifier = [layer for layer in loaded.module.modules() if isinstance(layer, nn.Linear) and layer.out_features == 10][-1]
    features: list[Tensor] = []
    handle = classifier.register_forward_pre_hook(lambda _module, inputs: features.append(inputs[0].flatten(0, -2)))
    labels = [number % 2 for number in range(FITTED_IMAGES)]
    with torch.no_grad():
        for number, label in enumerate(labels):
            loaded.module(normalise(draw(loaded.preprocessing.height, number, square=bool(label)), loaded))
    handle.remove()
    x = torch.cat(features).double()
    mean = x.mean(0)
    centred, target = x - mean, MARGIN * (torch.tensor(labels).double() - 0.5)
    gram = centred @ centred.T
    gram += RIDGE * torch.linalg.eigvalsh(gram)[-1] * torch.eye(len(x))
    weight = centred.T @ torch.linalg.solve(gram, target)
    with torch.no_grad():
        classifier.weight.zero_()
        classifier.bias.fill_(-10)
        classifier.weight[1], classifier.bias[1] = weight, -weight @ mean
        classifier.weight[0], classifier.bias[0] = -weight, weight @ mean


@pytest.mark.parametrize("key", ["timm:hiera", "timm:mvitv2"])
def test_a_map_is_more_faithful_than_a_random_one(key: str) -> None:
    loaded = load_family(FAMILIES[key])
    fit_classifier(loaded)
    measure(loaded, SIDE)


def measure(loaded: LoadedNetwork, side: int) -> None:
    """Checks that maps at the layer that the network chooses are right, and insert a square sooner than random maps do."""
    network = Network("test", loaded, (), torch.device("cpu"))
    info = network.layers[network.layer_choice.chosen[0]]
    assert network.layer_choice.warning is None
    assert map_difference(loaded, network, info) < MAX_DIFFERENCE
    insertions: list[tuple[float, float]] = []
    for number in range(FITTED_IMAGES, FITTED_IMAGES + TRIED_IMAGES):
        if len(insertions) == MEASURED_IMAGES:
            break
        pixels = draw(side, number, square=True)
        (result,) = network.run([EngineRequest(pixels=pixels, classes=(1,))])
        assert isinstance(result, EngineResult), result
        if result.logits.argmax() != 1:
            continue  # what the network does not recognise, its map need not find
        cells = torch.from_numpy(result.maps[0][0])[None, None]
        heatmap = torch.nn.functional.interpolate(cells, (side, side), mode="bilinear")[0, 0].numpy()
        (found,) = network.evaluate(EvaluationRequest(pixels=pixels, classes=(1,), maps=(heatmap,), grid=info.grid))
        insertions.append((found.map.insertion, found.random.insertion))
    assert len(insertions) == MEASURED_IMAGES
    of_maps, of_random_maps = np.mean(insertions, axis=0)
    assert of_maps > of_random_maps, insertions

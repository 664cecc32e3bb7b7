"""What maps count, and on what grid: what each method says of itself, against networks whose logits are doubled."""

from __future__ import annotations

import copy
import functools

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray
from torch import nn

from service.engine.batch import EngineRequest
from service.engine.methods import METHODS
from service.engine.network import Network
from service.engine.types import EngineResult, MethodParameters
from tests.networks import Pooled, network, seeded

# Their weights depend on the scale of the logits by more than a factor: a softmax, or a quotient of powers of the gradient.
NOT_PROPORTIONAL = {"gradcam_plusplus", "finercam", "scorecam"}
ATTENTION = {name for name, method in METHODS.items() if method.family == "attention"}
SIDES = {"pooled": 32, "vit": 160}


@functools.cache
def doubled(kind: str) -> tuple[Network, Network]:
    """A network, and the same with all of its logits twice as large."""
    module = seeded(Pooled) if kind == "pooled" else seeded(timm.create_model, "test_vit", num_classes=5)
    other = copy.deepcopy(module)
    head = other.get_submodule("head")
    assert isinstance(head, nn.Linear)
    with torch.no_grad():
        head.weight.mul_(2)
        head.bias.mul_(2)
    layers: tuple[str, ...] = ("block",) if kind == "pooled" else ()
    return network(module, *layers, size=SIDES[kind]), network(other, *layers, size=SIDES[kind])


def explain(name: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The map of a method, and that of the network with doubled logits."""
    kind = "vit" if name in ATTENTION else "pooled"
    image = np.random.default_rng(0).integers(0, 256, (SIDES[kind], SIDES[kind], 3), np.uint8)
    few = {"samples": 8, "steps": 4, "window": 8, "stride": 8, "segments": 6}
    given = MethodParameters(**{option: few[option] for option in METHODS[name].parameter_names if option in few})
    maps = []
    for one in doubled(kind):
        method, parameters = one.resolve_method(name, given)
        request = EngineRequest(pixels=image, classes=(1,), method=method, parameters=parameters)
        (result,) = one.run([request])
        assert isinstance(result, EngineResult), result
        maps.append(result.maps[0][0])
    single, double = maps
    return single, double


@pytest.mark.parametrize("name", sorted(METHODS.keys() - NOT_PROPORTIONAL))
def test_a_map_in_logits_grows_with_the_logits_and_no_other(name: str) -> None:
    single, double = explain(name)
    assert np.abs(single).max() > 0
    growth = float(np.abs(double).max() / np.abs(single).max())
    match METHODS[name].raw_unit:
        case "logit":
            np.testing.assert_allclose(double, 2 * single, rtol=2e-3, atol=2e-4 * np.abs(single).max())
        case "activation" | "probability":
            np.testing.assert_allclose(double, single, atol=1e-5 * np.abs(single).max())
        case "none":
            assert growth == pytest.approx(1, abs=0.01) or growth > 1.9


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_map_has_the_grid_that_the_method_says(name: str) -> None:
    single, _ = explain(name)
    side = SIDES["vit" if name in ATTENTION else "pooled"]
    assert (single.shape == (side, side)) == (not METHODS[name].has_grid)


@pytest.mark.parametrize(("name", "passes"), [("gradcam", 1), ("saliency", 3), ("rise", 160), ("integrated_gradients", 96)])
def test_passes_of_the_default_parameters(name: str, passes: int) -> None:
    method = METHODS[name]
    assert method.passes(method.defaults) == passes
    assert method.lane == ("slow" if passes > 3 else "fast")

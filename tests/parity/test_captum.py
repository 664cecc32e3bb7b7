"""Input gradients, occlusion and Grad-CAM against captum; Score-CAM against pytorch-grad-cam. The same weights and pictures.

Where captum draws at random it is asked about the very points that were drawn here. The figures are differences relative to the
peak of captum's map, written as a table (see `report`); the contract is 1e-4.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from captum.attr import GuidedBackprop, GuidedGradCam, InputXGradient, IntegratedGradients, LayerGradCam, Occlusion, Saliency
from captum.attr._core.gradient_shap import InputBaselineXGradient
from pytorch_grad_cam import ScoreCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn

from service.engine.network import Network
from service.engine.work import Tuning, Work
from tests.engine.methods.probing import explained, explore, normalised, picture, probe_of
from tests.networks import VIT_SIDE, known, network
from tests.parity.oracle import report

TOLERANCE = 1e-4
CLASS = 281
# Small inputs: what is compared is arithmetic, which does not know how large a picture is.
NETWORKS = {
    "resnet18": ("layer4", 64),
    "vgg16": ("features.21", 64),
    "timm:tf_efficientnet_lite0": ("bn2", 64),
    "convnext_tiny": ("features", 64),
    "resnet50": ("layer4", 64),
    "densenet121": ("features", 64),
    "mobilenet_v3_large": ("features", 64),
    "swin_t": ("features.7.1.norm1", 64),
    "vit_b_16": ("encoder.layers.encoder_layer_11.ln_1", VIT_SIDE),
}


@functools.cache
def ours(name: str) -> Network:
    layer, size = NETWORKS[name]
    return network(known(name), layer, size=size, name=name.rpartition(":")[2])


def image(name: str) -> Tensor:
    return normalised(picture(NETWORKS[name][1]))


def found(name: str, method: str, **tuning: Any) -> Tensor:
    work = Work(picture(NETWORKS[name][1]), classes=(CLASS,), method=method, tuning=Tuning(**tuning))
    return torch.from_numpy(explained(ours(name), work).maps[0][0])


@pytest.fixture(scope="module")
def table() -> Iterator[dict[tuple[str, str], float]]:
    rows: dict[tuple[str, str], float] = {}
    yield rows
    report("captum", rows, NETWORKS)


def hold(table: dict[tuple[str, str], float], method: str, name: str, mine: Tensor, theirs: Tensor) -> None:
    peak = theirs.abs().max()
    assert mine.shape == theirs.shape
    assert theirs.std() > 1e-3 * peak, "a flat map would agree with anything"
    table[method, name] = float((mine - theirs).abs().max() / peak)
    assert table[method, name] <= TOLERANCE
    assert mine.argmax() == theirs.argmax()


@pytest.mark.parametrize("name", NETWORKS)
def test_saliency(table: dict[tuple[str, str], float], name: str) -> None:
    expected = Saliency(known(name)).attribute(image(name).requires_grad_(), target=CLASS)
    hold(table, "saliency", name, found(name, "saliency"), expected[0].amax(0))


@pytest.mark.parametrize("name", NETWORKS)
def test_input_x_gradient(table: dict[tuple[str, str], float], name: str) -> None:
    expected = InputXGradient(known(name)).attribute(image(name).requires_grad_(), target=CLASS).detach()
    hold(table, "input_x_gradient", name, found(name, "input_x_gradient"), expected[0].sum(0))


@pytest.mark.parametrize("name", NETWORKS)
def test_integrated_gradients(table: dict[tuple[str, str], float], name: str) -> None:
    expected = IntegratedGradients(known(name)).attribute(image(name), target=CLASS, n_steps=12, internal_batch_size=4)
    hold(table, "integrated_gradients", name, found(name, "integrated_gradients", steps=12), expected[0].sum(0).float())


@pytest.mark.parametrize("name", NETWORKS)
def test_smoothgrad_at_the_same_points(table: dict[tuple[str, str], float], name: str) -> None:
    probing = probe_of(ours(name)._cuts.graph, image(name), "smoothgrad", CLASS, samples=10, noise=0.2)
    mine = explore(probing)
    gradients = Saliency(known(name)).attribute(probing.asked.requires_grad_(), target=CLASS, abs=False)
    hold(table, "smoothgrad", name, mine, gradients.mean(0).abs().amax(0))


@pytest.mark.parametrize("name", NETWORKS)
def test_gradient_shap_at_the_same_points(table: dict[tuple[str, str], float], name: str) -> None:
    # Without noise a point is b + alpha (x - b); with the generator's own alphas the plain colours b can be told.
    samples = 8
    probing = probe_of(ours(name)._cuts.graph, image(name), "gradient_shap", CLASS, samples=samples, noise=0)
    mine = explore(probing)
    generator = probing.generator
    colors = torch.randn(samples, 3, 1, 1, generator=generator)
    alphas = torch.rand(samples, 1, 1, 1, generator=generator)
    inputs, baselines = image(name).expand(samples, -1, -1, -1), colors.expand(-1, -1, *image(name).shape[2:])
    torch.testing.assert_close(probing.asked, baselines + alphas * (inputs - baselines))
    with mock.patch.object(np.random, "uniform", return_value=alphas.numpy().ravel()):
        theirs = InputBaselineXGradient(known(name)).attribute(inputs.clone().requires_grad_(), baselines, target=CLASS)
    hold(table, "gradient_shap", name, mine, theirs.detach().mean(0).sum(0))


class AsReLU(nn.ReLU):
    """Another rectifier under the name to which captum's rule is bound."""

    def __init__(self, own: nn.Module) -> None:
        super().__init__()
        self.own = own

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.own(x)
        return result


@functools.cache
def rectified(name: str) -> nn.Module:
    """The network with every rectifier a module of captum's kind, none in place."""
    build = functools.partial(known.__wrapped__, name)  # a copy of its own
    module: nn.Module = build()
    for parent in list(module.modules()):
        for attribute, child in list(parent.named_children()):
            if isinstance(child, (nn.ReLU, nn.ReLU6, nn.GELU)):
                if hasattr(child, "inplace"):
                    child.inplace = False
                setattr(parent, attribute, child if isinstance(child, nn.ReLU) else AsReLU(child))
    return module


GUIDED = ["vgg16", "timm:tf_efficientnet_lite0", "convnext_tiny"]


@pytest.mark.filterwarnings("ignore:Setting backward hooks on ReLU activations:UserWarning")
@pytest.mark.parametrize("name", GUIDED)
def test_guided_backprop(table: dict[tuple[str, str], float], name: str) -> None:
    expected = GuidedBackprop(rectified(name)).attribute(image(name).requires_grad_(), target=CLASS)
    hold(table, "guided_backprop", name, found(name, "guided_backprop"), expected[0].sum(0))


@pytest.mark.filterwarnings("ignore:Setting backward hooks on ReLU activations:UserWarning")
@pytest.mark.parametrize("name", GUIDED)
def test_guided_gradcam(table: dict[tuple[str, str], float], name: str) -> None:
    module = rectified(name)
    oracle = GuidedGradCam(module, module.get_submodule(NETWORKS[name][0]))
    expected = oracle.attribute(image(name).requires_grad_(), target=CLASS, interpolate_mode="bilinear").detach()
    hold(table, "guided_gradcam", name, found(name, "guided_gradcam"), expected[0].sum(0))


# Where a layer's output is channels first, and no functional ReLU overwrites it; the others are in test_methods.py.
@pytest.mark.parametrize("name", sorted(set(NETWORKS) - {"densenet121", "swin_t", "vit_b_16"}))
def test_gradcam(table: dict[tuple[str, str], float], name: str) -> None:
    module = rectified(name)  # a layer's output that a ReLU overwrites is not the layer's
    expected = LayerGradCam(module, module.get_submodule(NETWORKS[name][0])).attribute(image(name), target=CLASS).detach()
    hold(table, "gradcam", name, found(name, "gradcam"), expected[0, 0])


@pytest.mark.parametrize("name", NETWORKS)
def test_occlusion(table: dict[tuple[str, str], float], name: str) -> None:
    size = NETWORKS[name][1]
    window, stride = size // 3, size // 4  # squares overlap, and the last of a row is cut off
    expected = Occlusion(known(name)).attribute(
        image(name), (3, window, window), strides=(3, stride, stride), target=CLASS, perturbations_per_eval=4
    )
    mine = found(name, "occlusion", window=window, stride=stride)
    hold(table, "occlusion", name, mine, expected[0, 0].float())


@pytest.mark.parametrize(("name", "layer"), [("resnet18", "layer1"), ("convnext_tiny", "features.1")])
def test_scorecam(table: dict[tuple[str, str], float], name: str, layer: str) -> None:
    """All channels of an early layer, which has fewer: pytorch-grad-cam's grids before they are scaled."""
    small = picture(32)
    net = network(known(name), layer, size=32, name=name)
    work = Work(small, classes=(CLASS,), method="scorecam", tuning=Tuning(samples=10_000))
    with ScoreCAM(known(name), [known(name).get_submodule(layer)]) as cam:
        batch = normalised(small)
        cam.activations_and_grads(batch)
        activations = cam.activations_and_grads.activations[0].numpy()
        targets = [ClassifierOutputTarget(CLASS)]
        expected = cam.get_cam_image(batch, cam.target_layers[0], targets, activations, None)
    hold(table, "scorecam", name, torch.from_numpy(explained(net, work).maps[0][0]), torch.from_numpy(expected[0]))

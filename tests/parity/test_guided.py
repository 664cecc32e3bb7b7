"""The oracle matrix: Grad-CAM, guided backpropagation and guided Grad-CAM against captum (and pytorch-grad-cam).

captum binds its rule to modules of the class `nn.ReLU` alone. Here every rectifier of a network is such a module, so that its
rule holds wherever the service's does.
"""

from __future__ import annotations

import functools

import pytest
import torch
from captum.attr import GuidedBackprop, GuidedGradCam, LayerGradCam
from pytorch_grad_cam import GuidedBackpropReLUModel
from torch import Tensor, nn

from tests.parity.matrix import Record, record
from tests.parity.oracle import channels_first, hold_raw, ready, twin
from tests.parity.subjects import SMALL, Subject

OTHERS = (nn.ReLU6, nn.GELU, nn.Hardswish)
CONVENTION = "captum's rule bound to ReLU6, GELU and Hardswish too, as in the service"
nine = pytest.mark.parametrize("subject", SMALL.values(), ids=list(SMALL))
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:Setting backward hooks on ReLU activations:UserWarning")]


class AsReLU(nn.ReLU):
    """Another rectifier under the name to which captum's rule is bound."""

    def __init__(self, own: nn.Module) -> None:
        super().__init__()
        self.own = own

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.own(x)
        return result


class DenseNet(nn.Module):
    """torchvision's, with a module for the rectifier that its forward asks for by name."""

    def __init__(self, own: nn.Module) -> None:
        super().__init__()
        self.features, self.classifier = own.get_submodule("features"), own.get_submodule("classifier")
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.relu(self.features(x)).mean((2, 3)))
        return logits


@functools.cache
def rectified(subject: Subject) -> tuple[nn.Module, str]:
    """The network with every rectifier a module of captum's kind, none in place, and its layer, channels first."""
    module = twin(ready(subject.module))
    for path, part in list(module.named_modules()):
        if isinstance(part, OTHERS):
            module.set_submodule(path, AsReLU(part))
    if subject.name.startswith("densenet"):
        module = DenseNet(module)
    return channels_first(module, subject.layer, subject.reshape)


def has_others(subject: Subject) -> bool:
    return any(isinstance(part, OTHERS) for part in subject.module.modules())


def convention(subject: Subject) -> str:
    return CONVENTION if has_others(subject) else ""


@nine
def test_guided_backprop(record_property: Record, subject: Subject) -> None:
    module, _ = rectified(subject)
    expected = GuidedBackprop(module).attribute(subject.images().requires_grad_(), target=subject.class_id)
    found = subject.raw("guided_backprop")
    hold_raw(record_property, "captum", "guided_backprop", subject.name, found, expected[0].sum(0), convention(subject))


@nine
def test_guided_backprop_of_pytorch_grad_cam(record_property: Record, subject: Subject) -> None:
    module, _ = rectified(subject)
    oracle = GuidedBackpropReLUModel(twin(ready(subject.module) if has_others(subject) else module))
    expected = torch.from_numpy(oracle(subject.images(), subject.class_id)).sum(2)
    found = subject.raw("guided_backprop")
    if has_others(subject):
        record(record_property, "pytorch-grad-cam", "guided_backprop", subject.name, None, "it guides modules of ReLU alone")
        assert (found - expected).abs().max() > 0.01 * expected.abs().max()
    else:
        hold_raw(record_property, "pytorch-grad-cam", "guided_backprop", subject.name, found, expected)


@nine
def test_guided_gradcam(record_property: Record, subject: Subject) -> None:
    module, layer = rectified(subject)
    oracle = GuidedGradCam(module, module.get_submodule(layer))
    expected = oracle.attribute(subject.images().requires_grad_(), target=subject.class_id, interpolate_mode="bilinear")
    found = subject.raw("guided_gradcam")
    hold_raw(record_property, "captum", "guided_gradcam", subject.name, found, expected.detach()[0].sum(0), convention(subject))


@nine
def test_gradcam(record_property: Record, subject: Subject) -> None:
    module, layer = rectified(subject)  # a layer's output that a ReLU overwrites is not the layer's
    expected = LayerGradCam(module, module.get_submodule(layer)).attribute(subject.images(), target=subject.class_id)
    reshaped = "captum given the layer's grid channels first" if subject.reshape else ""
    hold_raw(record_property, "captum", "gradcam", subject.name, subject.raw("gradcam"), expected.detach()[0, 0], reshaped)

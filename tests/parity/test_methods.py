"""The oracle matrix: class activation maps that pytorch-grad-cam 1.5 has too, on every kind of network.

The same seeded weights, two images, one class; the maps a client gets, min-max scaled at the network's input size, which is
not square. The figures are the largest differences; the contract is 1e-4. Where the service follows another convention (the
docstring of the method says so) the library is asked by its own means to follow it too, and the table says so.
"""

from __future__ import annotations

from typing import Any
from unittest import mock

import numpy as np
import pytest
import pytorch_grad_cam as library_of
import torch
from numpy.typing import NDArray
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget, FinerWeightedTarget

from service.engine.methods import METHODS
from tests.parity.matrix import NETWORKS, Record
from tests.parity.oracle import Maps, channels_first, edited, hold, library
from tests.parity.subjects import WIDE

pytestmark = pytest.mark.slow

SEEDS = (7, 8)


class EpsFree(library_of.GradCAMPlusPlus):  # type: ignore[misc]  # the library has no types
    """Nothing but the paper's equation."""

    def get_cam_weights(self, *args: Any) -> Any:
        with np.errstate(invalid="ignore"):
            return edited(library_of.GradCAMPlusPlus.get_cam_weights, "eps = 0.000001", "eps = 0")(self, *args)


class Double(library_of.KPCA_CAM):  # type: ignore[misc]  # the library has no types
    """A kernel that is almost constant loses half its digits when it is centred."""

    def get_cam_image(self, *args: Any) -> Any:
        images, layer, category, activations, *rest = args
        return super().get_cam_image(images, layer, category, activations.astype(np.float64), *rest)


SHARED = {
    "gradcam": library_of.GradCAM,
    "hirescam": library_of.HiResCAM,
    "gradcam_elementwise": library_of.GradCAMElementWise,
    "gradcam_plusplus": EpsFree,
    "xgradcam": library_of.XGradCAM,
    "layercam": library_of.LayerCAM,
    "eigengradcam": library_of.EigenGradCAM,
    "eigencam": library_of.EigenCAM,
    "kpca_cam": Double,
    "fem": library_of.FEM,
    "random_cam": library_of.RandomCAM,
}
CONVENTIONS = {
    "gradcam_plusplus": "the library's eps of 1e-6 set to 0, as in the paper",
    "kpca_cam": "the library asked in double precision",
    "random_cam": "the library given the service's draws",
    "eigencam": "of the sign that the library's singular vector happens to have",
    "eigengradcam": "of the sign that the library's singular vector happens to have",
}
ANY_SIGN = ("eigencam", "eigengradcam")
SMOOTHABLE = [name for name in SHARED if METHODS[name].defaults.eigen_smooth is not None]
# The library's ShapleyCAM raises where the head is linear: there is no second derivative.
LINEAR = ("resnet18", "resnet50", "timm:tf_efficientnet_lite0")
# In the others the gradient is constant, or (ConvNeXt) the score does not depend on the scale of A: then H A = -G.
CURVED = ("mobilenet_v3_large", "swin_t", "vit_b_16")
full_svd = np.linalg.svd


def uniform(low: float, high: float, size: tuple[int, int]) -> NDArray[np.float32]:
    """The service's draws in place of numpy's."""
    draws = torch.rand(size[1], generator=torch.Generator().manual_seed(0)) * (high - low) + low
    return np.tile(draws.numpy(), (size[0], 1))


def thin_svd(cells: NDArray[Any], *, full_matrices: bool) -> Any:
    """All of V, of which one row is looked at, takes seconds."""
    assert full_matrices
    return full_svd(cells, full_matrices=False)


def theirs(name: str, method: str, **asked: Any) -> Maps:
    subject = WIDE[name]
    asked["targets"] = [ClassifierOutputTarget(subject.class_id)] * len(SEEDS)
    with mock.patch.object(np.random, "uniform", uniform), mock.patch.object(np.linalg, "svd", thin_svd):
        return library(SHARED[method], subject.module, [subject.layer], subject.images(*SEEDS), subject.reshape, **asked)


def ours(name: str, method: str, **parameters: Any) -> Maps:
    return WIDE[name].rendered(WIDE[name].explained(method, *SEEDS, **parameters))


def either_sign(name: str, method: str, expected: Maps, **parameters: Any) -> Maps:
    """Our maps, each of the polarity that the library's arbitrary sign gave its own."""
    results = WIDE[name].explained(method, *SEEDS, **parameters)
    both = [WIDE[name].rendered(results, "positive"), WIDE[name].rendered(results, "negative")]
    return np.stack([min(pair, key=lambda one: np.abs(one - e).max()) for *pair, e in zip(*both, expected, strict=True)])


@pytest.mark.parametrize("method", SHARED)
@pytest.mark.parametrize("name", NETWORKS)
def test_equals_pytorch_grad_cam(record_property: Record, name: str, method: str) -> None:
    expected = theirs(name, method)
    found = either_sign(name, method, expected) if method in ANY_SIGN else ours(name, method)
    hold(record_property, method, name, found, expected, CONVENTIONS.get(method, ""))


@pytest.mark.parametrize("method", SMOOTHABLE)
@pytest.mark.parametrize("name", NETWORKS)
def test_eigen_smooth_equals_pytorch_grad_cam(record_property: Record, name: str, method: str) -> None:
    expected = theirs(name, method, eigen_smooth=True)
    found = either_sign(name, method, expected, eigen_smooth=True)
    conventions = dict.fromkeys([*([CONVENTIONS[method]] if method in CONVENTIONS else []), CONVENTIONS["eigencam"]])
    hold(record_property, f"{method} (eigen)", name, found, expected, "; ".join(conventions))


@pytest.mark.parametrize("name", NETWORKS)
def test_shapleycam_equals_pytorch_grad_cam(record_property: Record, name: str) -> None:
    subject = WIDE[name]
    if name in LINEAR:
        expected, convention = theirs(name, "gradcam"), "the library raises where the head is linear; its Grad-CAM"
    else:
        # It does not reshape the activations that it weighs: the grid is brought to it channels first.
        module, layer = channels_first(subject.module, subject.layer, subject.reshape)
        targets = [ClassifierOutputTarget(subject.class_id)] * len(SEEDS)
        expected = library(library_of.ShapleyCAM, module, [layer], subject.images(*SEEDS), targets=targets)
        convention = "" if layer == subject.layer else "the library cannot reshape here; the grid brought to it channels first"
        if name in CURVED:
            assert np.abs(expected - theirs(name, "gradcam")).max() > 1e-3, "no second derivative, nothing but Grad-CAM"
    hold(record_property, "shapleycam", name, ours(name, "shapleycam"), expected, convention)


@pytest.mark.parametrize("name", NETWORKS)
def test_finercam_equals_pytorch_grad_cam(record_property: Record, name: str) -> None:
    """Of the best class: rivals of an improbable one are improbable, and there the library's eps takes over."""
    subject, eps = WIDE[name], "1e-9"
    convention = ""
    if name == "resnet50":  # random as it is, so sure of its best class that all others are improbable
        eps, convention = "0", "the library's eps of 1e-9 set to 0"
    with mock.patch.object(FinerWeightedTarget, "__call__", edited(FinerWeightedTarget.__call__, "1e-9", eps)):
        expected = library(
            library_of.FinerCAM, subject.module, [subject.layer], subject.images(*SEEDS), subject.reshape, targets=None
        )
    found = subject.rendered(subject.explained("finercam", *SEEDS, best=1))
    hold(record_property, "finercam", name, found, expected, convention)

"""The oracle matrix: every class activation map that pytorch-grad-cam 1.5 has too, on every kind of network.

The same seeded weights, two pictures, one class; the maps a client gets, min-max scaled at the network's input size, which is
not square. The figures are the largest differences, written as a table (see `report`); the contract is 1e-4. Where the service
follows another convention (the docstring of the method says so) the library is asked by its own means to follow it too.
"""

from __future__ import annotations

import functools
import inspect
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import pytest
import pytorch_grad_cam as library_of
import torch
from numpy.typing import NDArray
from pytorch_grad_cam import grad_cam_plusplus
from pytorch_grad_cam.ablation_layer import AblationLayer
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor

from service.engine.methods import METHODS
from service.engine.network import Network
from service.engine.sources import Loaded, Preprocessing
from service.engine.work import Outcome, Tuning, Work
from service.imaging.heatmap import Polarity, render_maps
from tests.engine.methods.probing import normalised, picture
from tests.networks import VIT_SIDE, known
from tests.parity.oracle import Maps, channels_last, library, report, tokens

TOLERANCE = 1e-4


@dataclass(frozen=True)
class Net:
    """Where a network is explained, at what size (height, width), and how its activations become channels first."""

    layer: str
    size: tuple[int, int] = (96, 128)
    reshape: Callable[[Tensor], Tensor] | None = None
    class_id: int = 281


NETWORKS = {
    "resnet18": Net("layer4"),
    "resnet50": Net("layer4"),
    "vgg16": Net("features", class_id=1),
    "timm:tf_efficientnet_lite0": Net("bn2"),
    "densenet121": Net("features"),
    "mobilenet_v3_large": Net("features"),
    "convnext_tiny": Net("features"),
    "swin_t": Net("features.7.1.norm1", reshape=channels_last),
    "vit_b_16": Net("encoder.layers.encoder_layer_11.ln_1", (VIT_SIDE, VIT_SIDE), tokens(1, 6, 6)),
}
# The library's class, and whether the sign of its map is arbitrary: a singular vector's is.
SHARED = {
    "gradcam": (library_of.GradCAM, False),
    "hirescam": (library_of.HiResCAM, False),
    "gradcam_elementwise": (library_of.GradCAMElementWise, False),
    "gradcam_plusplus": (library_of.GradCAMPlusPlus, False),
    "xgradcam": (library_of.XGradCAM, False),
    "layercam": (library_of.LayerCAM, False),
    "eigengradcam": (library_of.EigenGradCAM, True),
    "shapleycam": (library_of.ShapleyCAM, False),
    "eigencam": (library_of.EigenCAM, True),
    "kpca_cam": (library_of.KPCA_CAM, False),
    "fem": (library_of.FEM, False),
    "random_cam": (library_of.RandomCAM, False),
    "finercam": (library_of.FinerCAM, False),
}
# The library's ShapleyCAM raises where the head is linear and there is no second derivative, and where there is a reshape.
LINEAR = ("resnet18", "resnet50", "timm:tf_efficientnet_lite0")
RESHAPED = ("swin_t", "vit_b_16")
SMOOTHABLE = [
    name for name in SHARED if METHODS[name].defaults.eigen_smooth is not None and name not in {"finercam", "shapleycam"}
]


@functools.cache
def ours(name: str) -> Network:
    height, width = NETWORKS[name].size
    preprocessing = Preprocessing(height, width, min(height, width), "bilinear", (0.5,) * 3, (0.5,) * 3)
    loaded = Loaded(known(name), preprocessing, "sha256:test")
    return Network(name.rpartition(":")[2], loaded, (NETWORKS[name].layer,), torch.device("cpu"))


def pictures(name: str) -> list[NDArray[np.uint8]]:
    height, width = NETWORKS[name].size
    return [np.ascontiguousarray(picture(width, seed)[:height]) for seed in (7, 8)]


def images(name: str) -> Tensor:
    return torch.cat([normalised(pixels) for pixels in pictures(name)])


def rendered(name: str, method: str, polarity: Polarity = "positive", **tuning: Any) -> Maps:
    tuned = METHODS[method].tune(Tuning(**tuning))
    # Finer-CAM of the best class: rivals of an improbable one are improbable, and there the library's eps takes over.
    classes, best = ((), 1) if method == "finercam" else ((NETWORKS[name].class_id,), 0)
    maps = []
    for outcome in ours(name).run([Work(p, classes, best, method=method, tuning=tuned) for p in pictures(name)]):
        assert isinstance(outcome, Outcome), outcome
        (heat,) = render_maps(outcome.maps, polarity=polarity, scale="minmax", input_size=NETWORKS[name].size)
        maps.append(heat.values)
    return np.stack(maps)


class EpsFree(library_of.GradCAMPlusPlus):  # type: ignore[misc]  # the library has no types
    """The library's own text with one constant set to 0: nothing but the paper's equation is left."""

    def get_cam_weights(self, *args: Any) -> Any:
        text = textwrap.dedent(inspect.getsource(library_of.GradCAMPlusPlus.get_cam_weights))
        assert text.count("eps = 0.000001") == 1
        scope = dict(vars(grad_cam_plusplus))
        exec(text.replace("eps = 0.000001", "eps = 0"), scope)
        with np.errstate(invalid="ignore"):
            return scope["get_cam_weights"](self, *args)


class Double(library_of.KPCA_CAM):  # type: ignore[misc]  # the library has no types
    """In double precision: a kernel that is almost constant loses half its digits when it is centred."""

    def get_cam_image(self, *args: Any) -> Any:
        images, layer, category, activations, *rest = args
        return super().get_cam_image(images, layer, category, activations.astype(np.float64), *rest)


def uniform(low: float, high: float, size: tuple[int, int]) -> NDArray[np.float32]:
    """The service's draws in place of numpy's."""
    draws = torch.rand(size[1], generator=torch.Generator().manual_seed(0)) * (high - low) + low
    return np.tile(draws.numpy(), (size[0], 1))


def theirs(name: str, method: str, **asked: Any) -> Maps:
    net = NETWORKS[name]
    kind = {"gradcam_plusplus": EpsFree, "kpca_cam": Double}.get(method, SHARED[method][0])
    asked["targets"] = None if method == "finercam" else [ClassifierOutputTarget(net.class_id)] * 2
    # All of V, of which one row is looked at, takes seconds.
    with mock.patch.object(np.random, "uniform", uniform), mock.patch.object(np.linalg, "svd", thin_svd):
        return library(kind, known(name), [net.layer], images(name), net.reshape, **asked)


full_svd = np.linalg.svd


def thin_svd(cells: NDArray[Any], *, full_matrices: bool) -> Any:
    assert full_matrices
    return full_svd(cells, full_matrices=False)


@pytest.fixture(scope="module")
def table() -> Iterator[dict[tuple[str, str], float]]:
    rows: dict[tuple[str, str], float] = {}
    yield rows
    report("pytorch-grad-cam", rows, NETWORKS)


def hold(row: dict[tuple[str, str], float], method: str, name: str, found: Maps, expected: Maps) -> None:
    """Holds one cell of the table to the contract."""
    row[method, name] = float(np.abs(found - expected).max())
    assert expected.std() > 0.01, "blank maps would agree with anything"
    assert row[method, name] <= TOLERANCE


def either_sign(name: str, method: str, expected: Maps, **tuning: Any) -> Maps:
    """Our maps, each of the polarity that the library's arbitrary sign gave its own."""
    both = [rendered(name, method, "positive", **tuning), rendered(name, method, "negative", **tuning)]
    return np.stack([min(pair, key=lambda one: np.abs(one - e).max()) for *pair, e in zip(*both, expected, strict=True)])


# Random ResNet-50 is so sure of its best class that the library's eps outweighs the rivals' probabilities.
APART = {("resnet50", "finercam"), *((name, "shapleycam") for name in LINEAR + RESHAPED)}
CELLS = [(name, method) for name in NETWORKS for method in SHARED if (name, method) not in APART]


@pytest.mark.parametrize(("name", "method"), CELLS)
def test_equals_pytorch_grad_cam(table: dict[tuple[str, str], float], name: str, method: str) -> None:
    expected = theirs(name, method)
    found = either_sign(name, method, expected) if SHARED[method][1] else rendered(name, method)
    hold(table, method, name, found, expected)


@pytest.mark.parametrize("method", SMOOTHABLE)
@pytest.mark.parametrize("name", ["resnet18", "convnext_tiny"])
def test_eigen_smooth_equals_pytorch_grad_cam(table: dict[tuple[str, str], float], name: str, method: str) -> None:
    expected = theirs(name, method, eigen_smooth=True)
    found = either_sign(name, method, expected, eigen_smooth=True)
    hold(table, f"{method} (eigen)", name, found, expected)


@pytest.mark.parametrize("name", LINEAR)
def test_shapleycam_is_gradcam_where_the_head_is_linear(table: dict[tuple[str, str], float], name: str) -> None:
    hold(table, "shapleycam", name, rendered(name, "shapleycam"), theirs(name, "gradcam"))


class Zeroing(AblationLayer):  # type: ignore[misc]  # the library has no types
    """The paper's ablation, whatever the layer's lowest value; and all channels of a batch at once."""

    def __call__(self, _: Tensor) -> Tensor:
        rows: Tensor = self.activations
        rows[torch.arange(len(rows)), torch.from_numpy(self.indices[: len(rows)]).long()] = 0
        return rows


@pytest.mark.parametrize("name", ["resnet18"])
def test_ablationcam_equals_pytorch_grad_cam(table: dict[tuple[str, str], float], name: str) -> None:
    pixels = pictures(name)[:1]
    (outcome,) = ours(name).run([Work(pixels[0], best=1, method="ablationcam", tuning=METHODS["ablationcam"].defaults)])
    assert isinstance(outcome, Outcome), outcome
    (best,) = outcome.classes
    assert outcome.logits[best] > 0, "where the score is negative theirs is the other polarity"
    (heat,) = render_maps(outcome.maps, polarity="positive", scale="minmax", input_size=NETWORKS[name].size)
    kind = functools.partial(library_of.AblationCAM, ablation_layer=Zeroing(), batch_size=64)
    expected = library(kind, known(name), [NETWORKS[name].layer], images(name)[:1], targets=[ClassifierOutputTarget(best)])
    hold(table, "ablationcam", name, heat.values[None], expected)

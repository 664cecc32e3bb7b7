"""The libraries that camserve is measured against, on the very network it serves."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from captum.attr import LayerGradCam
from numpy.typing import NDArray
from pytorch_grad_cam import AblationCAM, GradCAM
from torch import Tensor, nn

from service.engine.cards.card import Card
from service.engine.cards.repository import read_cards
from service.engine.sources import LoadedNetwork, load
from service.settings import Settings
from service.vocabulary import Preprocessing


class Explains(Protocol):
    """A batch, float32 ``[N, 3, h, w]``, normalised -> maps of the best classes."""

    def __call__(self, images: Tensor) -> object: ...


def card(name: str) -> Card:
    """A card of this repository."""
    return read_cards(Settings().models_dir)[name]


def loaded(name: str) -> LoadedNetwork:
    """A card's network, with random weights where a hub has the real ones."""
    return load(card(name), random_weights=True)


def fresh(network: nn.Module) -> nn.Module:
    """A network of its own for one peer, whose hooks stay on it; parameters are not frozen, as the libraries' users have it."""
    return copy.deepcopy(network).requires_grad_(requires_grad=True)


def normalised(pixels: NDArray[np.uint8], preprocessing: Preprocessing) -> Tensor:
    """uint8 ``[N, h, w, 3]`` -> what a network takes, float32 ``[N, 3, h, w]``."""
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div(255)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    return images.sub(mean).div(std).contiguous()


def grad_cam(network: nn.Module, layer: str) -> Explains:
    """pytorch-grad-cam: maps ``[N, h, w]`` at the input's size, 0..1."""
    cam: Callable[..., Any] = GradCAM(model=network, target_layers=[network.get_submodule(layer)])
    return lambda images: cam(input_tensor=images, targets=None)


def ablation_cam(network: nn.Module, layer: str) -> Explains:
    """pytorch-grad-cam's, all channels, in its own batches of 32."""
    cam: Callable[..., Any] = AblationCAM(model=network, target_layers=[network.get_submodule(layer)])
    return lambda images: cam(input_tensor=images, targets=None)


def captum(network: nn.Module, layer: str) -> Explains:
    """captum: grids ``[N, 1, gh, gw]``. It must be told the class, so the prediction is another pass."""
    attribute: Any = LayerGradCam(network, network.get_submodule(layer))

    def explain(images: Tensor) -> object:
        with torch.no_grad():
            best = network(images).argmax(1)
        return attribute.attribute(images, target=best, relu_attributions=True)

    return explain

"""pytorch-grad-cam on whole modules, kept from corrupting what it looks at."""

from __future__ import annotations

import copy
import functools
import inspect
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_grad_cam.activations_and_gradients import ActivationsAndGradients
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.parity.matrix import Record, record

Maps = NDArray[np.float32]
TOLERANCE = 1e-4


def tokens(prefix: int, rows: int, columns: int) -> Callable[[Tensor], Tensor]:
    """The library's recipe for vision transformers."""
    return lambda x: x[:, prefix:, :].reshape(len(x), rows, columns, x.shape[2]).permute(0, 3, 1, 2)


def channels_last(x: Tensor) -> Tensor:
    """The library's recipe for Swin."""
    return x.permute(0, 3, 1, 2)


def twin(module: nn.Module) -> nn.Module:
    """A copy whose parts can be exchanged; its weights are the module's own."""
    weights = [*module.parameters(), *module.buffers()]
    return copy.deepcopy(module, {id(weight): weight for weight in weights})


@functools.cache
def ready(module: nn.Module) -> nn.Module:
    """A twin whose activation functions do not write in place.

    The library's hooks keep a layer's output without copying it, and a ReLU behind it would overwrite what was kept.
    """
    copied = twin(module)
    for part in copied.modules():
        if hasattr(part, "inplace"):
            setattr(part, "inplace", False)  # noqa: B010 (a module's attributes are typed as tensors)
    return copied


class ChannelsFirst(nn.Module):
    """A layer whose grid passes through `grid` with its channels first, for libraries that look for it there.

    Tokens that are no place of the grid pass by.
    """

    def __init__(self, own: nn.Module, reshape: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.own = own
        self.grid = nn.Identity()
        self.reshape = reshape

    def forward(self, x: Tensor) -> Tensor:
        own = self.own(x)
        grid: Tensor = self.grid(self.reshape(own).clone())
        if own.ndim == 4:
            return grid.permute(0, 2, 3, 1).contiguous()
        places = grid.flatten(2).transpose(1, 2)
        return torch.cat([own[:, : own.shape[1] - places.shape[1]], places], dim=1)


def channels_first(module: nn.Module, layer: str, reshape: Callable[[Tensor], Tensor] | None) -> tuple[nn.Module, str]:
    """A twin, and where its layer's output has its channels first."""
    if reshape is None:
        return module, layer
    copied = twin(module)
    copied.set_submodule(layer, ChannelsFirst(copied.get_submodule(layer), reshape))
    return copied, f"{layer}.grid"


def edited(function: Callable[..., Any], old: str, new: str) -> Callable[..., Any]:
    """A library's own text with one thing changed."""
    text = textwrap.dedent(inspect.getsource(function))
    assert text.count(old) == 1
    scope = dict(inspect.getmodule(function).__dict__)
    exec(text.replace(old, new), scope)
    changed: Callable[..., Any] = scope[function.__name__]
    return changed


@contextmanager
def functional() -> Iterator[None]:
    """The functional ReLU never works in place (DenseNet asks for it by name), and attention can be differentiated twice."""
    relu = nn.functional.relu
    with mock.patch.object(nn.functional, "relu", lambda x, inplace=False: relu(x)), sdpa_kernel(SDPBackend.MATH):  # noqa: ARG005
        yield


@contextmanager
def released() -> Iterator[None]:
    """What was kept is forgotten; the library would first detach it in place, which a gradient that is a view refuses."""

    def clear(kept: ActivationsAndGradients) -> None:
        kept.activations, kept.gradients = [], []

    with mock.patch.object(ActivationsAndGradients, "clear", clear):
        yield


def library(
    method: Callable[..., Any],
    module: nn.Module,
    layers: Sequence[str],
    images: Tensor,
    reshape: Callable[[Tensor], Tensor] | None = None,
    **asked: Any,
) -> Maps:
    """What a class of the library says at layers of normalised images ``[N, 3, h, w]``: ``[N, h, w]``, 0..1."""
    whole = ready(module)
    targets = [whole.get_submodule(layer) for layer in layers]
    with functional(), released(), method(model=whole, target_layers=targets, reshape_transform=reshape) as cam:
        # Gradients with respect to the image: those of the parameters cost as much again and nobody looks at them.
        maps: Maps = cam(input_tensor=images.clone().requires_grad_(), **asked)
    return maps


def hold(to: Record, method: str, name: str, found: Maps, expected: Maps, convention: str = "") -> None:
    """Holds scaled maps to pytorch-grad-cam's."""
    difference = float(np.abs(found - expected).max())
    record(to, "pytorch-grad-cam", method, name, difference, convention)
    assert expected.std() > 0.01, "blank maps would agree with anything"
    assert difference <= TOLERANCE


def hold_raw(to: Record, library: str, method: str, name: str, found: Tensor, expected: Tensor, convention: str = "") -> None:
    """Holds a map to another library's, relative to its peak."""
    peak = expected.abs().max()
    assert found.shape == expected.shape
    difference = float((found - expected).abs().max() / peak)
    record(to, library, method, name, difference, convention)
    assert expected.std() > 1e-3 * peak, "a flat map would agree with anything"
    assert difference <= TOLERANCE
    assert found.argmax() == expected.argmax()

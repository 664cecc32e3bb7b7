"""pytorch-grad-cam on whole modules, kept from corrupting what it looks at."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

Maps = NDArray[np.float32]


@functools.cache
def ready(module: nn.Module) -> nn.Module:
    """A frozen copy whose activation functions do not write in place.

    The library's hooks keep a layer's output without copying it, and a ReLU behind it would overwrite what was kept.
    """
    copied = copy.deepcopy(module)
    for part in copied.modules():
        if hasattr(part, "inplace"):
            setattr(part, "inplace", False)  # noqa: B010 (a module's attributes are typed as tensors)
    return copied


@contextmanager
def functional() -> Iterator[None]:
    """The functional ReLU never works in place (DenseNet asks for it by name), and attention can be differentiated twice."""
    relu = nn.functional.relu
    with mock.patch.object(nn.functional, "relu", lambda x, inplace=False: relu(x)), sdpa_kernel(SDPBackend.MATH):  # noqa: ARG005
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
    with functional(), method(model=whole, target_layers=targets, reshape_transform=reshape) as cam:
        # Gradients with respect to the picture: those of the parameters cost as much again and nobody looks at them.
        maps: Maps = cam(input_tensor=images.clone().requires_grad_(), **asked)
    return maps

"""pytorch-grad-cam on whole modules, kept from corrupting what it looks at."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

Maps = NDArray[np.float32]


def tokens(prefix: int, rows: int, columns: int) -> Callable[[Tensor], Tensor]:
    """The library's recipe for vision transformers."""
    return lambda x: x[:, prefix:, :].reshape(len(x), rows, columns, x.shape[2]).permute(0, 3, 1, 2)


def channels_last(x: Tensor) -> Tensor:
    """The library's recipe for Swin."""
    return x.permute(0, 3, 1, 2)


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


def report(library_name: str, rows: Mapping[tuple[str, str], float], networks: Iterable[str]) -> None:
    """Writes what was measured, by method and network, to `build/parity/<library>.txt`, and prints it (`pytest -s`)."""
    columns = {name: f"{name.rpartition(':')[2][:18]:>18}" for name in networks}
    lines = [f"largest difference from {library_name}", " " * 28 + " ".join(columns.values())]
    for method in dict.fromkeys(method for method, _ in rows):
        cells = (f"{rows[method, name]:18.1e}" if (method, name) in rows else " " * 18 for name in columns)
        lines.append(f"{method:28}" + " ".join(cells))
    text = "\n".join(lines) + "\n"
    print("\n" + text)  # noqa: T201 (the report)
    folder = Path(__file__).parents[2] / "build" / "parity"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{library_name}.txt").write_text(text)

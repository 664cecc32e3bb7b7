"""The trunk in torch: eager in float32, as it is cut; or a copy of it in bfloat16. Knows nothing of other runtimes."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Protocol, Self

import torch
from torch import Tensor, fx

from service.engine.device import BUILD_LOCK
from service.vocabulary import Engine, Precision


class Trunk(Protocol):
    """A network up to its cut. May be called from several threads at once.

    Attributes:
        engine, precision: what computes it, and in which arithmetic; answers say so.
    """

    engine: Engine
    precision: Precision

    def __call__(self, images: Tensor) -> Sequence[Tensor]:
        """Normalised float32 images ``[N, C, h, w]`` -> the crossing values; those of floating point are float32."""


class TorchTrunk:
    """A trunk that torch runs.

    Attributes:
        module: the graph, from images to a tuple of the crossing values.
    """

    engine: Engine = "torch"

    def __init__(self, module: fx.GraphModule, precision: Precision = "fp32") -> None:
        self.module = module
        self.precision = precision

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        """See `Trunk`."""
        if self.precision == "fp32":
            return tuple(self.module(images))
        found = self.module(images.to(torch.bfloat16, memory_format=torch.channels_last))
        return tuple(value.float() if value.is_floating_point() else value for value in found)

    def halved(self) -> Self:
        """A copy in bfloat16; where the graph itself names float32, running it fails."""
        with BUILD_LOCK:
            module = copy.deepcopy(self.module).to(torch.bfloat16).to(memory_format=torch.channels_last)
        return type(self)(module, "bf16")


def has_bf16(device: torch.device) -> bool:
    """Whether the device computes in bfloat16, and does not only imitate it."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))

"""The trunk in torch: eager in float32, as `split` builds it, or a copy in bfloat16. This module knows no other runtime."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Protocol, Self

import torch
from torch import Tensor, fx

from service.engine.device import BUILD_LOCK
from service.vocabulary import Engine, Precision


class Trunk(Protocol):
    """A network up to its split. Several threads may call it at once.

    Attributes:
        engine, precision: the engine that runs it, and the precision of its arithmetic; every response names both.
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
        outputs = self.module(images.to(torch.bfloat16, memory_format=torch.channels_last))
        return tuple(value.float() if value.is_floating_point() else value for value in outputs)

    def halved(self) -> Self:
        """A copy in bfloat16; calling it raises an error where the graph itself names float32."""
        with BUILD_LOCK:
            module = copy.deepcopy(self.module).to(torch.bfloat16).to(memory_format=torch.channels_last)
        return type(self)(module, "bf16")


def has_bf16(device: torch.device) -> bool:
    """Whether the device computes in bfloat16 natively rather than by emulation."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))

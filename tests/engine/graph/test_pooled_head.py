"""The closed form of a head: found where it is one, and equal to autograd's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from service.engine.batch import EngineRequest
from service.engine.graph.export import export
from service.engine.graph.split import split
from service.engine.methods import METHODS
from service.engine.methods.method import BatchedMethod
from service.engine.types import EngineResult
from tests.networks import Pooled, known, network, seeded


class Tail(Pooled):
    """`Pooled` with something else between the grid and the linear layer."""

    def __init__(self, tail: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.tail = tail

    def forward(self, x: Tensor) -> Tensor:
        """Float ``[N, 3, h, w]`` -> ``[N, 5]``."""
        logits: Tensor = self.head(self.tail(self.block(self.stem(x))))
        return logits


def pooled(module: nn.Module, layer: str, size: int = 32) -> bool:
    return split(export("test", module, (3, size, size)), [layer]).pooled is not None


@pytest.mark.parametrize(
    ("tail", "closed"),
    [
        (lambda a: a.mean((2, 3)), True),
        (lambda a: a.mean((-1, -2), keepdim=True).flatten(1), True),
        (lambda a: nn.functional.adaptive_avg_pool2d(a, 1)[:, :, 0, 0].clone(), False),  # a way that is left to autograd
        (lambda a: nn.functional.dropout(nn.functional.adaptive_avg_pool2d(a, 1).squeeze((2, 3)), training=False), True),
        (lambda a: a.relu().mean((2, 3)), False),
        (lambda a: a.mean((2, 3)).relu(), False),
        (lambda a: a.amax((2, 3)), False),
        (lambda a: a.sum((2, 3)), False),
        (lambda a: a.transpose(1, 2).mean((1, 3)), False),
        (lambda a: a.mean((2, 3)) * 2, False),
        (lambda a: nn.functional.adaptive_avg_pool2d(a, (2, 1)).flatten(1)[:, :16], False),
    ],
)
def test_what_has_a_closed_form(tail: Callable[[Tensor], Tensor], closed: bool) -> None:
    assert pooled(seeded(Tail, tail), "block") is closed


def test_the_cards_networks() -> None:
    assert pooled(timm.create_model("tf_efficientnet_lite0").eval(), "bn2", 64)
    assert pooled(known("resnet18").eval(), "layer4", 64)
    assert not pooled(known("resnet18").eval(), "layer3", 64)


def test_it_equals_autograd_for_every_batched_method() -> None:
    closed = network(seeded(Pooled), "block")
    autograd = network(seeded(Pooled), "block")
    assert closed._default_split.pooled is not None
    autograd._default_split = replace(autograd._default_split, pooled=None)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    methods = [method for method in METHODS.values() if isinstance(method, BatchedMethod)]
    assert len(methods) > 6
    for method in methods:
        parameters = method.defaults
        requests = [
            EngineRequest(pixels=pixels[0], best=3, method=method, parameters=parameters),
            EngineRequest(pixels=pixels[1], classes=(4, 0), versus=2, method=method, parameters=parameters),
            EngineRequest(pixels=pixels[2], method=method, parameters=parameters),
            EngineRequest(pixels=pixels[3], classes=(1,), method=method, parameters=parameters),
        ]
        for one, other in zip(closed.run(requests), autograd.run(requests), strict=True):
            assert isinstance(one, EngineResult)
            assert isinstance(other, EngineResult)
            assert one.classes == other.classes
            np.testing.assert_allclose(one.logits, other.logits, atol=1e-6)
            for grid, expected in zip(one.maps, other.maps, strict=True):
                np.testing.assert_allclose(grid[0], expected[0], atol=1e-6)


def test_without_a_bias() -> None:
    module = seeded(Pooled)
    module.head = nn.Linear(16, 5, bias=False).requires_grad_(requires_grad=False)
    parts = split(export("test", module, (3, 32, 32)), ["block"])
    assert parts.pooled is not None
    assert parts.pooled.bias is None
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(parts.pooled.logits(parts.trunk(images)[0]), module(images), atol=1e-6, rtol=1e-6)

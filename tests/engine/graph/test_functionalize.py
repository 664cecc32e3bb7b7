"""What writes in place is rewritten where nobody else can see it, and left to torch.export where somebody may."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from service.engine.graph.export import export
from service.engine.graph.functionalize import functionalize

Step = Callable[[Tensor], Tensor]


class Network(nn.Module):
    """A convolution, a step, and a linear head."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, 5)
        self.step = step

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.step(self.conv(images)).mean((2, 3)))
        return logits


def relu_over_a_view(x: Tensor) -> Tensor:
    x.flatten(2).relu_()
    return x


def relu_under_a_view(x: Tensor) -> Tensor:
    seen = x.flatten(2)
    x.relu_()
    return seen.reshape(x.shape)


def relu_under_a_dropout(x: Tensor) -> Tensor:
    same = nn.functional.dropout(x, training=False)
    x.relu_()
    return same


def relu_after_a_look(x: Tensor) -> Tensor:
    before = x * 2
    return x.relu_() + before + x


def sum_of_two_types(x: Tensor) -> Tensor:
    return x.to(torch.bfloat16).mul(2).add_(x).float()


def part_filled(x: Tensor) -> Tensor:
    y = x * 2
    y[:, 0] = 1
    return y


STEPS: dict[str, tuple[Step, bool]] = {
    "nothing": (lambda x: x, True),
    "relu": (lambda x: x.relu_(), True),
    "chain": (lambda x: nn.functional.hardswish(x.add_(1).mul_(2), inplace=True).clamp(max=4), True),
    "sum": (lambda x: x.relu_().add_(x * 3), True),
    "dropout": (lambda x: nn.functional.dropout(x.relu_(), training=False, inplace=True), True),
    "dropout of a view": (lambda x: nn.functional.dropout(x.flatten(2), training=False, inplace=True).reshape(x.shape), True),
    "after a look": (relu_after_a_look, True),
    "over a view": (relu_over_a_view, False),
    "under a view": (relu_under_a_view, False),
    "under a dropout": (relu_under_a_dropout, True),
    "two types": (sum_of_two_types, False),
    "part": (part_filled, False),
}


@pytest.mark.parametrize("name", STEPS)
def test_it_is_sure_only_where_nobody_else_sees(name: str) -> None:
    step, sure = STEPS[name]
    with torch.no_grad():
        program = torch.export.export(Network(step).eval(), (torch.zeros(2, 3, 8, 8),))
    assert functionalize(program.module(check_guards=False).graph) == sure


@pytest.mark.parametrize("name", STEPS)
def test_an_export_writes_nowhere_and_computes_the_same(name: str) -> None:
    torch.manual_seed(0)
    module = Network(STEPS[name][0]).eval()
    exported = export("net", module, (3, 8, 8)).module
    images = torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(exported(images), module(images), rtol=0, atol=0)
    schemas = [node.target._schema for node in exported.graph.nodes if isinstance(node.target, torch._ops.OpOverload)]
    assert schemas
    assert not any(schema.is_mutable for schema in schemas)


def test_a_image_is_not_written_to() -> None:
    class Writes(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.relu_().mean((2, 3))

    images = torch.randn(2, 3, 8, 8)
    expected = images.relu().mean((2, 3))
    with torch.no_grad():
        torch.testing.assert_close(export("net", Writes(), (3, 8, 8)).module(images), expected)


def test_an_assignment_to_a_part_has_a_gradient() -> None:
    """torch.export makes a copy of it, of which there is no derivative."""

    def add_to_part(x: Tensor) -> Tensor:
        y = x * 2
        y[:, 1:] = y[:, 1:].view(y.shape[0], 3, -1).view(y.shape[0], 3, 6, 6) + x[:, :1].double()
        return y

    torch.manual_seed(0)
    module = Network(add_to_part).eval()
    exported = export("net", module, (3, 8, 8)).module
    gradients: list[Tensor] = []
    for network in (exported, module):
        images = torch.arange(2 * 3 * 8 * 8.0).view(2, 3, 8, 8).requires_grad_()
        gradients += torch.autograd.grad(network(images)[:, 1].sum(), images)
    torch.testing.assert_close(*gradients)

"""The direct reading of a trunk against the slow one, which exports the trunk anew: the same numbers come out.

This fails when a new version of OpenVINO or torch changes what the direct reading relies on.
"""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from structlog.testing import capture_logs
from torch import Tensor, fx, nn

from service.engine.graph.export import export
from service.engine.graph.split import split
from service.engine.runtimes import openvino
from service.engine.runtimes.lowering import RULES
from service.engine.runtimes.torch import TorchTrunk
from tests.engine.runtimes.test_openvino import SMALL
from tests.networks import seeded

pytest.importorskip("openvino")

# torch.export says so of each LSTM, which keeps its weights in a list beside its parameters.
pytestmark = pytest.mark.filterwarnings("ignore:The tensor attributes:UserWarning")


class Mixed(nn.Module):
    """The operations that the other networks do not have."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=8)
        self.block = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Float ``[N, 3, 64, 64]`` -> ``[N, 5]``."""
        first, second = self.stem(nn.functional.pad(x, (1, 2, 2, 1), value=0.5)).chunk(2, dim=1)
        grid = torch.subtract(first, second)
        grid = grid + nn.functional.adaptive_avg_pool2d(grid, 1).expand_as(grid)
        heads = torch.unflatten(grid.flatten(2), 1, (2, 4))
        places = heads.transpose(2, 3).contiguous()
        mixed = torch.matmul(torch.matmul(places, heads).softmax(dim=-1), places).transpose(2, 3).reshape(grid.shape)
        logits: Tensor = self.head(self.block(mixed).mean(dim=(2, 3)))
        return logits


class Recurrent(nn.Module):
    """LSTMs over rows in both directions and in one, as in Sequencer; a mask and an uneven split, as in EdgeNeXt."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 10, 3, stride=8, padding=1)
        self.same = nn.Conv2d(10, 10, (3, 5), padding="same", dilation=2)
        self.valid = nn.Conv2d(10, 10, 1, padding="valid")
        self.both = nn.LSTM(10, 6, batch_first=True, bidirectional=True)
        self.one = nn.LSTM(12, 10, batch_first=True)
        self.block = nn.Conv2d(10, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Float ``[N, 3, 64, 64]`` -> ``[N, 5]``."""
        grid = self.valid(self.same(self.stem(x)))
        mask = torch.zeros(x.shape[0], 8, 8).to(torch.device("cpu"), torch.bool)
        places = (~mask).to(torch.float32).cumsum(2, dtype=torch.float32).unsqueeze(1)
        parts = torch.split(grid + 0.1 * places, 4, dim=1)
        chunks = torch.cat([parts[1], parts[0], parts[2]], dim=1).chunk(4, dim=1)
        grid = torch.cat([chunks[3], chunks[0], chunks[1], chunks[2]], dim=1)
        rows = grid.permute(0, 2, 3, 1).reshape(-1, 8, 10)
        states, _ = self.one(self.both(rows)[0])
        grid = states.reshape(-1, 8, 8, 10).permute(0, 3, 1, 2)
        logits: Tensor = self.head(self.block(grid).mean(dim=(2, 3)))
        return logits


SIDE = 64
CLOSE = 1e-5  # of the largest value
READ_DIRECTLY = {name: SMALL[name] for name in ("pooled", "dense", "resnet", "efficientnet")} | {
    # Its position embedding has the size of its input. Where it is fitted to it, the slow way cannot read the resampling.
    "vit": (lambda: timm.create_model("test_vit", img_size=SIDE, num_classes=10, dynamic_img_size=False), ""),
    "mixed": (Mixed, "block"),
    "recurrent": (Recurrent, "block"),
}


def trunk_of(name: str) -> fx.GraphModule:
    build, layer = READ_DIRECTLY[name]
    graph = export(name, seeded(build), (3, SIDE, SIDE))
    trunk = split(graph, [layer or graph.default_layer() or ""]).trunk
    assert isinstance(trunk, TorchTrunk)
    return trunk.module


def converted(trunk: fx.GraphModule) -> tuple[openvino.OpenVINOTrunk, list[str]]:
    """The trunk in OpenVINO, and the reasons for which it was exported anew on the way."""
    with capture_logs() as logs:
        model = openvino.convert(trunk, torch.zeros(2, 3, SIDE, SIDE))
    reasons = [log["reason"] for log in logs if log["event"] == "openvino_export"]
    return openvino.OpenVINOTrunk(model, "fp32", 2), reasons


def refuse(_: fx.GraphModule) -> fx.GraphModule:
    raise NotImplementedError("refused by the test")


def difference(found: Tensor, expected: Tensor) -> float:
    """Largest absolute difference over largest absolute value."""
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    return float(np.abs(found.numpy() - expected.numpy()).max() / np.abs(expected.numpy()).max())


@pytest.mark.parametrize("name", READ_DIRECTLY)
def test_both_ways_give_the_same_numbers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trunk = trunk_of(name)
    direct, reasons = converted(trunk)
    assert reasons == []
    monkeypatch.setattr(openvino, "lowered", refuse)
    slow, reasons = converted(trunk)
    assert reasons == ["refused by the test"]
    for count in (1, 3):
        images = torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(count))
        found, expected = direct(images), slow(images)
        assert len(found) == len(expected) > 0
        for one, other in zip(found, expected, strict=True):
            assert difference(one, other) < CLOSE


def test_every_rule_is_put_to_the_test() -> None:
    nodes = [node for name in READ_DIRECTLY for node in trunk_of(name).graph.nodes]
    assert set(RULES) - {node.target for node in nodes} == set()

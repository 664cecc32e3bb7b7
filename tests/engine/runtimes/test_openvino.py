"""OpenVINO's trunk against torch's: kinds of networks, batch sizes, several threads at once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import timm
import torch
from structlog.testing import capture_logs
from torch import Tensor, nn

from service.engine.batch import EngineRequest
from service.engine.graph.export import export
from service.engine.graph.split import Split, split
from service.engine.network import Network
from service.engine.runtimes import RuntimeOptions, openvino
from service.engine.runtimes.torch import TorchTrunk
from service.engine.types import EngineResult
from tests.networks import Pooled, network, seeded

pytest.importorskip("openvino")

OPENVINO = RuntimeOptions(engine="openvino", precision="fp32", threads=2)
BATCHES = range(1, 10)


class Dense(nn.Module):
    """As DenseNet: each layer reads all that came before, and norm and activation stand between the cut and the pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.MaxPool2d(2, ceil_mode=True))
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(8 * n), nn.ReLU(inplace=True), nn.Conv2d(8 * n, 8, 3, padding=1)) for n in (1, 2, 3)
        )
        self.block = nn.Conv2d(32, 16, 1)
        self.norm = nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Float ``[N, 3, h, w]`` -> ``[N, 5]``."""
        seen = [self.stem(x)]
        for layer in self.layers:
            seen.append(layer(torch.cat(seen, 1)))
        logits: Tensor = self.head(self.norm(self.block(torch.cat(seen, 1))).relu().mean((2, 3)))
        return logits


class Unusual(Pooled):
    """What the direct reading does not know, so that the trunk is exported anew."""

    def forward(self, x: Tensor) -> Tensor:
        """Float ``[N, 3, h, w]`` -> ``[N, 5]``."""
        grid = self.block(nn.functional.pixel_unshuffle(nn.functional.pad(self.stem(x), (1, 1, 1, 1), mode="reflect"), 1))
        logits: Tensor = self.head(grid.mean(dim=(2, 3)))
        return logits


SMALL = {
    "pooled": (Pooled, "block"),
    "dense": (Dense, "block"),
    "unusual": (Unusual, "block"),
    "resnet": (lambda: timm.create_model("test_resnet", num_classes=10), "layer3"),
    "efficientnet": (lambda: timm.create_model("test_efficientnet", num_classes=10), "bn2"),
    "vit": (lambda: timm.create_model("test_vit", img_size=64, num_classes=10), ""),
}


def module_of(name: str) -> nn.Module:
    return seeded(SMALL[name][0])


def requests_of(count: int, size: int) -> list[EngineRequest]:
    pixels = np.random.default_rng(3).integers(0, 256, (count, size, size, 3), np.uint8)
    return [EngineRequest(pixels=image, best=2) for image in pixels]


def results_of(net: Network, requests: list[EngineRequest]) -> list[EngineResult]:
    return [result for result in net.run(requests) if isinstance(result, EngineResult)]


def parts_of(name: str, calls: int = 1) -> tuple[Split, openvino.OpenVINOTrunk]:
    graph = export(name, module_of(name), (3, 64, 64))
    parts = split(graph, [SMALL[name][1] or graph.default_layer() or ""])
    assert isinstance(parts.trunk, TorchTrunk)
    return parts, openvino.OpenVINOTrunk(openvino.convert(parts.trunk.module, torch.zeros(2, 3, 64, 64)), "fp32", 2, calls)


@pytest.mark.parametrize("name", SMALL)
def test_maps_are_those_of_torch_for_every_batch_size(name: str) -> None:
    layers = [SMALL[name][1]] if SMALL[name][1] else []
    exact = network(module_of(name), *layers, size=64)
    fast = network(module_of(name), *layers, size=64, options=OPENVINO)
    for count in BATCHES:
        requests = requests_of(count, 64)
        expected, found = results_of(exact, requests), results_of(fast, requests)
        assert len(expected) == len(found) == count
        assert {(one.engine, one.precision) for one in expected} == {("torch", "fp32")}
        assert {(one.engine, one.precision) for one in found} == {("openvino", "fp32")}
        for one, other in zip(expected, found, strict=True):
            np.testing.assert_allclose(one.logits, other.logits, atol=1e-4)
            assert one.classes == other.classes
            for grid, own in zip(one.maps, other.maps, strict=True):
                peak = np.abs(grid[0]).max()
                np.testing.assert_allclose(own[0] / peak, grid[0] / peak, atol=1e-4)


@pytest.mark.parametrize("name", ["pooled", "vit"])
def test_crossing_values_keep_order_types_and_shapes(name: str) -> None:
    parts, fast = parts_of(name)
    images = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        expected = parts.trunk(images)
    found = fast(images)
    assert [(value.dtype, value.shape) for value in found] == [(value.dtype, value.shape) for value in expected]
    assert len(found) == (2 if name == "vit" else 1)
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(other, one, atol=1e-4, rtol=1e-4)


def test_only_what_cannot_be_read_directly_is_exported_anew() -> None:
    told = {}
    for name in ("pooled", "dense", "vit", "unusual"):
        with capture_logs() as logs:
            parts_of(name)
        told[name] = [log["reason"] for log in logs if log["event"] == "openvino_export"]
    assert [name for name, reasons in told.items() if reasons] == ["unusual"]
    assert "aten.pad.default" in told["unusual"][0]


def test_an_answer_is_not_overwritten_by_the_next() -> None:
    _, fast = parts_of("pooled")
    first = fast(torch.ones(2, 3, 64, 64))
    before = [value.clone() for value in first]
    fast(torch.zeros(2, 3, 64, 64))
    assert all(torch.equal(value, kept) for value, kept in zip(first, before, strict=True))


@pytest.mark.parametrize("calls", [1, 2])
def test_threads_do_not_disturb_each_other(calls: int) -> None:
    parts, fast = parts_of("resnet", calls)
    images = [torch.randn(1 + number % 4, 3, 64, 64) for number in range(32)]
    with torch.no_grad():
        expected = [parts.trunk(batch)[0] for batch in images]
    start = threading.Barrier(4)

    def ask(first: int) -> list[Tensor]:
        start.wait()
        return [fast(batch)[0] for batch in images[first::4]]

    with ThreadPoolExecutor(4) as pool:
        for first, found in enumerate(pool.map(ask, range(4))):
            for one, other in zip(expected[first::4], found, strict=True):
                torch.testing.assert_close(other, one, atol=1e-4, rtol=1e-4)

"""An exported graph written and read again is the same graph: its layers, their meaning, and every bit that it computes."""

from __future__ import annotations

import json

import pytest
import timm
import torch
from torch import Tensor, nn

from service.engine.graph.export import NetworkGraph, export, network_graph
from service.engine.graph.serialization import NotSerializable, deserialize, serialize
from service.engine.graph.split import split
from service.errors import ConfigurationError
from tests.networks import Pooled, known, seeded


class Buffered(nn.Module):
    """Adds a buffer that is no part of the state, and a constant that the export lifts out of the code."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.register_buffer("shift", torch.arange(4.0).view(1, 4, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Float ``[N, 3, h, w]`` -> ``[N, 4]``."""
        result: Tensor = ((self.conv(x) + self.shift) * torch.tensor([0.5, 2.0])[1]).mean(dim=(2, 3))
        return result


class Halved(nn.Module):
    """Its second half of the batch has a size that is no multiple of the batch size."""

    def forward(self, x: Tensor) -> Tensor:
        """Float ``[N, 3, h, w]`` -> ``[N, 3]``."""
        half = x[: x.shape[0] // 2].mean()
        return x.mean(dim=(2, 3)) + half


def module_of(name: str) -> nn.Module:
    if name == "pooled":
        return seeded(Pooled)
    if name == "buffered":
        return seeded(Buffered)
    if name == "vit":
        return seeded(timm.create_model, "vit_tiny_patch16_224", img_size=64, depth=2, num_classes=10)
    return known(name)


def again(graph: NetworkGraph, module: nn.Module) -> NetworkGraph:
    return network_graph("again", deserialize(serialize(graph.module, module), module), {})


@pytest.mark.parametrize("name", ["pooled", "buffered", "vit", "timm:test_resnet", "timm:test_vit"])
def test_the_graph_is_the_same(name: str) -> None:
    module = module_of(name)
    size = 160 if name.startswith("timm") else 64
    graph = export(name, module, (3, size, size))
    read = again(graph, module)
    assert [node.format_node() for node in read.module.graph.nodes][:-1] == [
        node.format_node() for node in graph.module.graph.nodes
    ][:-1]
    assert read.layers() == graph.layers()
    assert read.default_layer() == graph.default_layer()
    assert {node.name: found for node, found in read.dimensions.items()} == {
        node.name: found for node, found in graph.dimensions.items()
    }
    images = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(0))
    assert torch.equal(read.module(images), graph.module(images))
    layer = graph.default_layer()
    assert layer is not None
    for one, other in zip(split(graph, [layer]).trunk(images), split(read, [layer]).trunk(images), strict=True):
        assert torch.equal(one, other)


def test_parameters_are_those_of_the_network_and_are_not_written() -> None:
    module = seeded(Pooled)
    graph = export("pooled", module, (3, 32, 32))
    content = serialize(graph.module, module)
    read = deserialize(content, module)
    assert read.get_parameter("head.weight") is module.get_parameter("head.weight")
    with torch.no_grad():
        module.get_parameter("head.bias").add_(1)
    images = torch.zeros(1, 3, 32, 32)
    assert torch.equal(read(images), module(images))
    assert b'"references": {' in content
    assert json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["references"]["head.bias"] == "head.bias"


def test_a_size_that_is_no_multiple_of_the_batch_size_has_no_written_form() -> None:
    module = Halved().eval()
    graph = export("halved", module, (3, 8, 8))
    with pytest.raises(NotSerializable, match="no multiple of the batch size"):
        serialize(graph.module, module)


def test_what_is_not_a_graph_is_refused() -> None:
    module = seeded(Pooled)
    content = serialize(export("pooled", module, (3, 32, 32)).module, module)
    for broken in (b"", content[:100], content.replace(b'"python"', b'"object"').replace(b"conv2d", b"convxx")):
        with pytest.raises((ValueError, AttributeError, KeyError, StopIteration, ConfigurationError)):
            network_graph("pooled", deserialize(broken, module), {})

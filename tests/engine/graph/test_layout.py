"""Layouts: told from the graph for every kind of network, brought to channels first and back; a layer chosen without help."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from timm.models.hiera import Unroll
from torch import Tensor, nn

from service.engine.batch import EngineRequest
from service.engine.graph.dimensions import Tokens
from service.engine.graph.export import export
from service.engine.graph.layout import Layout, LayoutOverride, layout_of
from service.engine.graph.split import split
from service.engine.network import Network
from service.engine.sources import LoadedNetwork
from service.engine.types import EngineResult, LayerInfo
from service.errors import ConfigurationError
from service.vocabulary import LayoutKind, Preprocessing
from tests.networks import Pooled, network, seeded

SIZE = (64, 96)
PREPROCESSING = Preprocessing(
    height=SIZE[0], width=SIZE[1], resize=64, interpolation="bilinear", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
)


class ChannelsLast(nn.Module):
    """As Keras nets run on torch: images and activations channels last, convolutions between permutations."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Block()
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Float ``[N, 3, h, w]`` -> ``[N, 5]``."""
        logits: Tensor = self.head(self.block(x.permute(0, 2, 3, 1)).mean(dim=(1, 2)))
        return logits


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=8)

    def forward(self, x: Tensor) -> Tensor:
        """Float ``[N, h, w, 3]`` -> ``[N, h / 8, w / 8, 8]``."""
        grid: Tensor = self.conv(x.permute(0, 3, 1, 2))
        return grid.permute(0, 2, 3, 1).relu()


def made(name: str, **arguments: Any) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, num_classes=10, **arguments)


def swin() -> nn.Module:
    module: nn.Module = torchvision.models.SwinTransformer([4, 4], 24, [2, 2], [1, 2], [4, 4], num_classes=10)
    return module


def info(name: str, channels: int, grid: tuple[int, int], layout: LayoutKind = "nchw") -> LayerInfo:
    return LayerInfo(name=name, channels=channels, grid=grid, layout=layout)


DEFAULTS: dict[str, tuple[Callable[[], nn.Module], LayerInfo]] = {
    "resnet": (made("resnet10t"), info("layer4", 512, (2, 3))),
    "last activation": (made("resnetv2_18", layers=(1, 1, 1, 1)), info("norm", 512, (2, 3))),
    "densenet": (made("densenet121", block_config=(1, 1, 1, 1)), info("features", 68, (2, 3))),
    "before the pool that keeps a grid": (
        lambda: torchvision.models.alexnet(num_classes=10), info("features", 256, (1, 2)),
    ),
    "permutes within its blocks": (
        lambda: torchvision.models.ConvNeXt(
            [torchvision.models.convnext.CNBlockConfig(16, 32, 1), torchvision.models.convnext.CNBlockConfig(32, None, 1)],
            num_classes=10,
        ),
        info("features", 32, (8, 12)),
    ),
    "mixer": (made("mixer_s32_224", img_size=SIZE), info("norm", 512, (2, 3), "tokens")),
    "channels last": (ChannelsLast, info("block", 8, (8, 12), "nhwc")),
    "swin": (swin, info("features.3.1.norm1", 48, (8, 12), "nhwc")),
    "class token": (
        made("vit_tiny_patch16_224", img_size=SIZE, depth=2),
        info("blocks.1.norm1", 192, (4, 6), "tokens"),
    ),
    "as wide as it has patches": (
        made("vit_tiny_patch16_224", img_size=SIZE, depth=2, embed_dim=24, num_heads=2),
        info("blocks.1.norm1", 24, (4, 6), "tokens"),
    ),
    "rotary positions and registers": (
        made("vit_small_patch16_dinov3", img_size=SIZE, depth=2),
        info("blocks.1.norm1", 384, (4, 6), "tokens"),
    ),
    "attention that pools": (
        made("vit_base_patch16_siglip_224", img_size=SIZE, depth=1),
        info("norm", 768, (4, 6), "tokens"),
    ),
    "tokens in another order until they are pooled": (
        made("hiera_tiny_224", img_size=SIZE, stages=(1, 1, 1, 2)),
        info("blocks.4.norm1", 768, (2, 3), "tokens"),
    ),
    "tokens made of windows": (
        made("tnt_s_patch16_224", img_size=SIZE, depth=2),
        info("blocks.1.norm_out", 384, (4, 6), "tokens"),
    ),
    "convolutions after attention": (made("mobilevitv2_050"), info("stages", 256, (2, 4))),
}  # fmt: skip


@pytest.mark.parametrize("name", DEFAULTS)
def test_the_layer_chosen_without_help(name: str) -> None:
    build, expected = DEFAULTS[name]
    graph = export("test", seeded(build), (3, *SIZE))
    chosen = graph.default_layer()
    assert chosen == expected.name
    assert graph.layers()[chosen] == expected


@pytest.mark.parametrize("name", ["channels last", "swin", "class token", "rotary positions and registers"])
def test_cut_at_any_layer_the_head_gives_the_whole_networks_logits(name: str) -> None:
    """Residual streams, sizes and windows that cross are repeated with the rows; the way to channels first loses nothing."""
    module = seeded(DEFAULTS[name][0])
    graph = export("test", module, (3, *SIZE))
    images = torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = module(images)[[1, 0, 1]]
        for layer, info in graph.layers().items():
            parts = split(graph, [layer])
            values = parts.enter(parts.trunk(images), torch.tensor([1, 0, 1]))
            (leaf,) = parts.leaves
            grid = parts.layouts[0].to_nchw(values[leaf])
            assert tuple(grid.shape) == (3, info.channels, *info.grid)
            values[leaf] = parts.layouts[0].from_nchw(grid, values[leaf])
            torch.testing.assert_close(parts.head(*values)[0], expected, atol=1e-4, rtol=1e-4, msg=layer)


def test_a_place_keeps_its_place() -> None:
    """A bright patch lights up its own cell, of tokens with prefixes and of channels last alike."""
    for name in ("class token", "channels last", "swin"):
        module = seeded(DEFAULTS[name][0])
        graph = export("test", module, (3, *SIZE))
        layer = next(path for path, info in graph.layers().items() if info.layout != "nchw")
        rows, columns = graph.layers()[layer].grid
        dark, lit = torch.zeros(2, 1, 3, *SIZE)
        lit[:, :, 16:32, 64:80] = 1
        parts = split(graph, [layer])
        with torch.no_grad():
            seen = [parts.layouts[0].to_nchw(parts.trunk(image)[parts.leaves[0]]) for image in (dark, lit)]
        change = (seen[1] - seen[0]).abs().sum(dim=1)[0]
        row, column = divmod(int(change.argmax()), columns)
        assert (row * 64 // rows // 16, column * 96 // columns // 16) == (1, 4), name


class Unrolled(nn.Module):
    """Patches in the order of Hiera, and their maximum over each window, twice."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, stride=4)
        self.unroll = Unroll(SIZE, (4, 4), [(2, 2), (2, 2)])
        self.once = Pool()
        self.twice = Pool()
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Float ``[N, 3, h, w]`` -> ``[N, 5]``."""
        logits: Tensor = self.head(self.twice(self.once(self.unroll(self.patches(x).flatten(2).transpose(1, 2)))).mean(dim=1))
        return logits


class Pool(nn.Module):
    def forward(self, tokens: Tensor) -> Tensor:
        """``[N, 4 T, K]`` -> ``[N, T, K]``."""
        return tokens.view(tokens.shape[0], 4, -1, tokens.shape[2]).amax(dim=1)


def test_tokens_in_another_order_are_no_grid_until_their_windows_have_been_pooled() -> None:
    """`unroll` and `once` have as many tokens as a grid would have; only behind `twice` are they its cells, row by row."""
    module = seeded(Unrolled)
    graph = export("test", module, (3, *SIZE))
    grids = {path: info.grid for path, info in graph.layers().items()}
    assert grids == {"patches": (16, 24), "twice": (4, 6)}
    images = torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    parts = split(graph, ["twice"])
    with torch.no_grad():
        found = parts.layouts[0].to_nchw(parts.trunk(images)[parts.leaves[0]])
        expected = nn.functional.max_pool2d(module.get_submodule("patches")(images), 4)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("layout", [Layout(), Layout("nhwc"), Layout("tokens", (3, 4), 2)])
def test_to_channels_first_and_back(layout: Layout) -> None:
    own = {"nchw": torch.randn(2, 5, 3, 4), "nhwc": torch.randn(2, 3, 4, 5), "tokens": torch.randn(2, 14, 5)}[layout.kind]
    leaf = own.requires_grad_()
    grid = layout.to_nchw(leaf)
    assert tuple(grid.shape) == (2, 5, 3, 4)
    assert torch.equal(layout.from_nchw(grid, own), own)
    (gradient,) = torch.autograd.grad(grid[:, :, 1, 2].sum(), leaf)
    assert int(gradient.count_nonzero()) == 2 * 5


def test_what_is_no_grid_has_no_layout() -> None:
    assert layout_of(("batch", None, Tokens(4, 4), "channels"), (0, 3, 16, 8)) is None  # heads
    assert layout_of((None, "rows", "columns", "channels"), (0, 4, 4, 8)) is None  # windows
    assert layout_of(("batch", "channels"), (0, 8)) is None
    assert layout_of((), ()) is None


def test_a_network_without_any_grid_says_so() -> None:
    with pytest.raises(ConfigurationError, match="no layer with a grid"):
        network(seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4))), size=8)


class Shuffled(nn.Module):
    """Its tokens come out of a gather: from there on the graph does not tell which are places."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 16, stride=16)
        self.pick = Picked()
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Float ``[N, 3, h, w]`` -> ``[N, 5]``."""
        logits: Tensor = self.head(self.pick(self.patches(x).flatten(2).transpose(1, 2)).mean(dim=1))
        return logits


class Picked(nn.Module):
    def forward(self, tokens: Tensor) -> Tensor:
        """``[N, T, K]`` -> ``[N, T + 1, K]``, the first token twice."""
        return tokens[:, torch.tensor([0, *range(24)])]


def test_a_card_states_a_layout_that_the_graph_does_not_tell() -> None:
    loaded = LoadedNetwork(module=seeded(Shuffled), preprocessing=PREPROCESSING, digest="sha256:test")
    cpu = torch.device("cpu")
    assert "pick" not in Network("test", loaded, ["patches"], cpu).layers
    net = Network("test", loaded, ["pick"], cpu, LayoutOverride("tokens", 1))
    assert net.layers["pick"] == LayerInfo(name="pick", channels=8, grid=(4, 6), layout="tokens")
    (found,) = net.run([EngineRequest(pixels=np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8), best=1)])
    assert isinstance(found, EngineResult)
    assert found.maps[0][0].shape == (4, 6)
    for wrong in (LayoutOverride("tokens", 0), LayoutOverride("tokens", 30), LayoutOverride("nhwc")):
        with pytest.raises(ConfigurationError, match=r"card test: explain\.layout: pick cannot be .*'N', 25, 8"):
            Network("test", loaded, ["pick"], cpu, wrong)


def test_a_layout_that_a_card_states_is_of_its_own_graph_alone() -> None:
    module = seeded(Shuffled)
    plain = export("test", module, (3, *SIZE))
    known = dict(plain.dimensions)
    stated = export("test", module, (3, *SIZE), {"pick": LayoutOverride("tokens", 1)})
    assert "pick" not in plain.layers()
    assert stated.layers() == {**plain.layers(), "pick": LayerInfo(name="pick", channels=8, grid=(4, 6), layout="tokens")}
    assert plain.dimensions == known
    assert export("test", module, (3, *SIZE)).layers() == plain.layers()  # nothing was left on the module
    picked, in_plain = stated.layer_nodes()["pick"], plain.layer_nodes()["pick"]
    assert stated.dimensions[picked] == ("batch", Tokens(4, 6, 1), "channels")
    assert plain.dimensions.get(in_plain) != stated.dimensions[picked]
    with pytest.raises(FrozenInstanceError):
        stated.dimensions = plain.dimensions  # type: ignore[misc]  # the very thing that is refused


def test_a_transformer_is_explained_in_one_batch_with_mixed_layers() -> None:
    module = seeded(DEFAULTS["class token"][0])
    net = Network(
        "test", LoadedNetwork(module=module, preprocessing=PREPROCESSING, digest="sha256:test"), (), torch.device("cpu")
    )
    images = np.random.default_rng(0).integers(0, 256, (2, *SIZE, 3), np.uint8)
    requests = [
        EngineRequest(pixels=images[0], classes=(1, 2)),
        EngineRequest(pixels=images[1], best=1, layers=("blocks.0", "patch_embed.proj")),
    ]
    for request, together in zip(requests, net.run(requests), strict=True):
        (alone,) = net.run([request])
        assert isinstance(together, EngineResult)
        assert isinstance(alone, EngineResult)
        for maps, own in zip(together.maps, alone.maps, strict=True):
            for grid, own_grid in zip(maps, own, strict=True):
                assert grid.shape == (4, 6)
                assert grid.any()
                np.testing.assert_allclose(grid, own_grid, atol=1e-6)


def test_the_pooled_networks_layers_are_what_they_were() -> None:
    assert network(seeded(Pooled)).default_layers == ("block",)

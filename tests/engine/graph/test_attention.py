"""Attention against what hooks see in the module itself, and against small references written from the papers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from numpy.typing import NDArray
from torch import Tensor, nn

from service.engine.batch import EngineRequest
from service.engine.graph.attention import attention_graph
from service.engine.graph.export import NetworkGraph, export
from service.engine.methods import METHODS
from service.engine.methods.attention import discard, fuse, rollout
from service.engine.network import Network
from service.engine.types import EngineResult, MethodParameters
from service.errors import CamserveError, MethodNotApplicable, ParameterInvalid
from tests.networks import Pooled, network, seeded

SIDE, CLASS = 64, 3


def vit(name: str = "vit_tiny_patch16_224", **arguments: Any) -> nn.Module:
    return seeded(timm.create_model, name, img_size=SIDE, depth=3, num_classes=10, **arguments)


def random_image() -> NDArray[np.uint8]:
    return np.random.default_rng(5).integers(0, 256, (SIDE, SIDE, 3), np.uint8)


def tensor() -> Tensor:
    return (torch.from_numpy(random_image()).permute(2, 0, 1)[None].float() - 127.5) / 127.5


@dataclass
class Watched:
    """What hooks saw: attention ``[1, heads, T, T]`` and output ``[1, T, K]`` of each block, logits ``[1, classes]``."""

    attention: list[Tensor]
    outputs: list[Tensor]
    logits: Tensor


def watch(module: nn.Module) -> Watched:
    """A timm transformer run with its attention written out, as its authors do for looking inside."""
    attention: list[Tensor] = []
    outputs: list[Tensor] = []

    def keep(found: list[Tensor]) -> Callable[..., None]:
        return lambda _module, _inputs, output: found.append(output)

    handles = []
    blocks: Any = module.get_submodule("blocks")
    for block in blocks:
        block.attn.fused_attn = False
        handles += [block.attn.attn_drop.register_forward_hook(keep(attention)), block.register_forward_hook(keep(outputs))]
    try:
        return Watched(attention, outputs, module(tensor().requires_grad_()))
    finally:
        for handle in handles:
            handle.remove()
        for block in blocks:
            block.attn.fused_attn = True


def grid(module: nn.Module, size: int = SIDE, layer: str = "blocks.2.norm1") -> Network:
    return network(module, layer, size=size)


def explained(net: Network, method: str, **asked: Any) -> NDArray[np.float32]:
    parameters = METHODS[method].with_defaults(MethodParameters(**asked))
    (result,) = net.run([EngineRequest(pixels=random_image(), classes=(CLASS,), method=METHODS[method], parameters=parameters)])
    if isinstance(result, CamserveError):
        raise result
    assert isinstance(result, EngineResult)
    assert result.layers == ()
    return result.maps[0][0]


@pytest.fixture(scope="module")
def module() -> nn.Module:
    return vit()


@pytest.fixture(scope="module")
def net(module: nn.Module) -> Network:
    return grid(module)


@pytest.fixture(scope="module")
def seen(module: nn.Module) -> Watched:
    return watch(module)


def graph_of(module: nn.Module) -> NetworkGraph:
    return export("test", module, (3, SIDE, SIDE))


@pytest.mark.parametrize(
    ("name", "before", "read"),
    [
        ("vit_tiny_patch16_224", 1, (0,)),
        ("deit_tiny_distilled_patch16_224", 2, (0, 1)),
        ("vit_small_patch16_dinov3", 5, ()),
        ("vit_base_patch16_siglip_224", 0, ()),
    ],
)
def test_written_out_the_network_gives_the_same_logits_and_rows_sum_to_one(
    name: str, before: int, read: tuple[int, ...]
) -> None:
    module = vit(name)
    made = attention_graph(graph_of(module))
    assert (made.blocks, made.tokens.before, made.read) == (3, before, read)
    with torch.no_grad():
        found = made.look(tensor())
        torch.testing.assert_close(found.logits, module(tensor()), atol=1e-5, rtol=0)
    for one in found.matrices:
        torch.testing.assert_close(one.sum(-1), torch.ones_like(one.sum(-1)), atol=1e-5, rtol=0)


def test_torchvisions_attention_is_that_of_its_own_layer() -> None:
    module = seeded(torchvision.models.VisionTransformer, SIDE, 16, 2, 3, 48, 96)
    made = attention_graph(graph_of(module))
    inputs: list[Tensor] = []
    layer: Any = module.get_submodule("encoder.layers.encoder_layer_1.self_attention")
    handle = layer.register_forward_hook(lambda _module, args, _output: inputs.append(args[0]))
    with torch.no_grad():
        module(tensor())
        handle.remove()
        expected = layer(inputs[0], inputs[0], inputs[0], need_weights=True, average_attn_weights=False)[1]
        torch.testing.assert_close(made.look(tensor()).matrices[1], expected, atol=1e-5, rtol=0)


def test_transformers_attention_as_its_own_answer_gives_it() -> None:
    """The seed's way: attention of the first block, mean over heads, toward the class token."""
    transformers = pytest.importorskip("transformers")

    def built(implementation: str) -> nn.Module:
        config = transformers.ViTConfig(
            hidden_size=48, num_hidden_layers=2, num_attention_heads=3, intermediate_size=96, image_size=SIDE, patch_size=16,
            num_labels=10, attn_implementation=implementation,
        )  # fmt: skip
        return seeded(transformers.ViTForImageClassification, config)

    class Unwrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = built("sdpa")

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.model(x).logits
            return logits

    with torch.no_grad():
        attentions = built("eager")(tensor(), output_attentions=True).attentions
    expected = attentions[0].squeeze(0)[:, :, 0].mean(0)[1:].reshape(4, 4)
    found = explained(grid(Unwrapped().eval(), layer="model.vit.layers.1.layernorm_before"), "attention", block=0,
                      toward="to_class")  # fmt: skip
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-6)


@pytest.mark.parametrize("head_fusion", ["mean", "max", "min"])
def test_attention_of_a_block(net: Network, seen: Watched, head_fusion: str) -> None:
    for block in (0, -1):
        heads = seen.attention[block][0].detach()
        fused = {"mean": heads.mean(0), "max": heads.max(0).values, "min": heads.min(0).values}[head_fusion]
        found = explained(net, "attention", block=block, head_fusion=head_fusion)
        np.testing.assert_allclose(found, fused[0, 1:].reshape(4, 4).numpy(), atol=1e-6)
        found = explained(net, "attention", block=block, head_fusion=head_fusion, toward="to_class")
        np.testing.assert_allclose(found, fused[1:, 0].reshape(4, 4).numpy(), atol=1e-6)


def test_rollout_is_the_product_of_all_blocks(net: Network, seen: Watched) -> None:
    result = torch.eye(17)
    for attention in seen.attention:
        result = (0.5 * attention[0].detach().mean(0) + 0.5 * torch.eye(17)) @ result
    np.testing.assert_allclose(explained(net, "attention_rollout"), result[0, 1:].reshape(4, 4).numpy(), atol=1e-6)
    assert not np.allclose(explained(net, "attention_rollout", discard_ratio=0.9), result[0, 1:].reshape(4, 4).numpy())


def test_rollouts_rows_sum_to_one_and_of_one_block_it_is_half_the_residual() -> None:
    blocks = list(torch.rand(3, 4, 9, 9, generator=torch.Generator().manual_seed(0)).softmax(-1))
    fused = [fuse(one, "mean") for one in blocks]
    torch.testing.assert_close(rollout(fused).sum(-1), torch.ones(9))
    torch.testing.assert_close(rollout(fused[:1]), 0.5 * (fused[0] + torch.eye(9)))
    kept = discard(fused[0], 0.5, keep_first=True)
    assert int((kept == 0).sum()) in {39, 40}  # 0.5 * 81 entries, of which the class token's own is spared
    torch.testing.assert_close(rollout([fuse(one, "max") for one in blocks]).sum(-1), torch.ones(9))


def test_chefer_against_the_papers_rule(net: Network, seen: Watched) -> None:
    gradients = torch.autograd.grad(seen.logits[0, CLASS], seen.attention, retain_graph=True)
    relevance = torch.eye(17)
    for attention, gradient in zip(seen.attention, gradients, strict=True):
        heads = [(gradient[0, head] * attention[0, head]).clamp(min=0) for head in range(3)]
        relevance = relevance + torch.stack(heads).mean(0) @ relevance
    expected = relevance[0, 1:].reshape(4, 4).detach().numpy()
    assert expected.max() > 0
    np.testing.assert_allclose(explained(net, "chefer") / expected.max(), expected / expected.max(), atol=1e-4)


@pytest.mark.parametrize("first", [0, -2])
def test_legrad_against_the_papers_formula(module: nn.Module, net: Network, seen: Watched, first: int) -> None:
    total = torch.zeros(17)
    chosen = list(zip(seen.attention, seen.outputs, strict=True))[first:]
    for attention, tokens in chosen:
        score = module.get_submodule("head")(module.get_submodule("norm")(tokens.mean(dim=1)))[0, CLASS]
        (gradient,) = torch.autograd.grad(score, attention, retain_graph=True)
        total += gradient[0].clamp(min=0).mean(dim=(0, 1)) / len(chosen)
    expected = total[1:].reshape(4, 4).numpy()
    assert expected.max() > 0
    np.testing.assert_allclose(explained(net, "legrad", block=first) / expected.max(), expected / expected.max(), atol=1e-4)


def test_where_the_classifier_reads_the_mean_every_row_counts() -> None:
    module = vit(class_token=False, global_pool="avg")
    net, seen = grid(module), watch(module)
    expected = seen.attention[-1][0].detach().mean(0).mean(0).reshape(4, 4)
    np.testing.assert_allclose(explained(net, "attention"), expected.numpy(), atol=1e-6)
    with pytest.raises(MethodNotApplicable, match="no class token"):
        explained(net, "attention", toward="to_class")
    assert explained(net, "chefer").max() > 0


def test_a_class_and_what_it_is_contrasted_with_change_the_weighted_maps_alone(net: Network) -> None:
    for name, differs in {"attention_rollout": False, "chefer": True, "legrad": True}.items():
        method = METHODS[name]
        requests = [
            EngineRequest(pixels=random_image(), classes=(0, 1), method=method, parameters=method.defaults),
            EngineRequest(pixels=random_image(), classes=(0,), versus=1, method=method, parameters=method.defaults),
        ]
        plain, contrast = (result for result in net.run(requests) if isinstance(result, EngineResult))
        zero, one, against = plain.maps[0][0], plain.maps[1][0], contrast.maps[0][0]
        assert (not np.allclose(zero, one, atol=1e-7)) == differs
        assert (not np.allclose(zero, against, atol=1e-7)) == differs


def test_a_block_that_is_not_there_is_refused(net: Network) -> None:
    for block in (3, -4):
        with pytest.raises(ParameterInvalid, match="3 attention blocks: 0 to 2"):
            explained(net, "attention", block=block)


def test_a_network_without_such_attention_says_why() -> None:
    with pytest.raises(MethodNotApplicable, match="no attention"):
        explained(network(seeded(Pooled), "block", size=SIDE), "attention")
    swin = seeded(
        torchvision.models.SwinTransformer, patch_size=[4, 4], embed_dim=24, depths=[2], num_heads=[2], window_size=[4, 4]
    )
    with pytest.raises(MethodNotApplicable, match="in windows"):
        attention_graph(graph_of(swin))

"""What class activation maps must obey, whoever computes them: identities, a small reference, and shuffled weights."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from service.engine.methods import METHODS
from service.engine.methods.components import first_component
from service.engine.methods.head import finer_score
from service.engine.methods.method import BatchedMethod, QueryMethod
from service.engine.network import Network
from service.engine.types import MethodParameters
from service.errors import MethodNotApplicable
from tests.engine.methods.queries import normalised, random_image, request_for, run_one
from tests.networks import Pooled, network, seeded

CLASS_SPECIFIC = ("gradcam", "hirescam", "gradcam_elementwise", "gradcam_plusplus", "xgradcam", "layercam", "eigengradcam")
HEAD = ("ablationcam", "reciprocam", "shapleycam", "finercam")
FAMILIES = {"gradient at a layer", "activations of a layer", "head of the network", "fine-grained"}
CAMS = [m.name for m in METHODS.values() if m.family in FAMILIES and m.name in {*CLASS_SPECIFIC, *HEAD}]
SMOOTHED = [m.name for m in METHODS.values() if m.defaults.aug_smooth is not None]


@pytest.fixture(scope="module")
def module() -> Pooled:
    built = seeded(Pooled)
    assert isinstance(built, Pooled)
    return built


@pytest.fixture(scope="module")
def net(module: Pooled) -> Network:
    return network(module, "block")


def grid(net: Network, method: str, class_id: int = 1, versus: int | None = None, **parameters: Any) -> NDArray[np.float32]:
    request = request_for(net, method, random_image(32), class_id, versus=versus, **parameters)
    return run_one(net, request).maps[0][0]


def activations(module: Pooled) -> Tensor:
    """``[16, h, w]`` of the block."""
    found: Tensor = module.block(module.stem(normalised(random_image(32))))[0]
    return found


@pytest.mark.parametrize("method", ["gradcam", "hirescam", "xgradcam", "shapleycam", "reciprocam", "ablationcam"])
def test_behind_global_average_pooling_they_are_the_original_cam(module: Pooled, net: Network, method: str) -> None:
    seen = activations(module)
    cam = torch.einsum("k,khw->hw", module.head.weight[1], seen) / seen[0].numel()
    expected = cam
    if method == "reciprocam":
        side = torch.tensor([1.0, 2.0, 1.0])
        expected = nn.functional.conv2d(cam[None], torch.outer(side, side)[None, None] / 16, padding=1)[0]
    if method == "ablationcam":  # the score lost without a channel is all that it contributes
        expected = torch.einsum("k,khw->hw", module.head.weight[1] * seen.mean((1, 2)), seen)
    np.testing.assert_allclose(grid(net, method), expected.numpy(), atol=2e-6)


def test_finercam_with_one_rival_is_gradcam_of_the_difference(net: Network) -> None:
    np.testing.assert_allclose(grid(net, "finercam", versus=3), grid(net, "gradcam", versus=3), atol=1e-6)


def test_finer_score_with_alpha_0_is_the_logit() -> None:
    logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(finer_score(logits, 2, torch.tensor([0, 1]), alpha=0), logits[:, 2])


def test_a_constant_added_to_the_logits_changes_nothing(module: Pooled, net: Network) -> None:
    shifted = copy.deepcopy(module)
    shifted.head.bias.data += 3
    other = network(shifted, "block")
    for method in CAMS:
        np.testing.assert_allclose(grid(other, method), grid(net, method), atol=1e-5, err_msg=method)


def test_shuffled_head_weights_change_the_maps(module: Pooled, net: Network) -> None:
    def ranks(found: NDArray[np.float32]) -> NDArray[np.float64]:
        return found.ravel().argsort().argsort().astype(np.float64)

    found: dict[str, list[float]] = {method: [] for method in CAMS}
    for seed in range(4):
        shuffled = copy.deepcopy(module)
        order = torch.randperm(module.head.weight.numel(), generator=torch.Generator().manual_seed(seed))
        shuffled.head.weight.data = module.head.weight.flatten()[order].view_as(module.head.weight)
        other = network(shuffled, "block")
        for method, correlations in found.items():
            correlations.append(np.corrcoef(ranks(grid(net, method)), ranks(grid(other, method)))[0, 1])
    assert np.mean(list(found.values())) < 0.5, found
    assert max(np.mean(correlations) for correlations in found.values()) < 0.98, found


def test_shapleycam_behind_attention_differentiates_twice() -> None:
    """G - H A / 2 by finite differences in double precision, of a vision transformer whose patches are the grid."""
    vit = seeded(VisionTransformer, 32, 8, 2, 2, 16, 32, num_classes=4)
    nn.init.normal_(vit.get_parameter("heads.head.weight"))  # born zero: no class, no gradient
    layer = "encoder.layers.encoder_layer_1.ln_1"
    found = grid(network(vit, layer), "shapleycam")
    exact = copy.deepcopy(vit).double()

    def gradient(scale: float) -> tuple[Tensor, Tensor]:
        """Patches ``[16, 16]`` (place, channel) and the gradient, where the patches are so much larger."""
        kept: list[Tensor] = []

        def scaled(_: nn.Module, __: object, tokens: Tensor) -> Tensor:
            kept.append((tokens[:, 1:] * scale).requires_grad_())
            return torch.cat([tokens[:, :1], kept[0]], 1)

        with exact.get_submodule(layer).register_forward_hook(scaled):
            exact(normalised(random_image(32)).double())[0, 1].backward()
        assert kept[0].grad is not None
        return kept[0].detach()[0], kept[0].grad[0]

    (patches, first), (_, more), (_, less) = gradient(1), gradient(1 + 1e-4), gradient(1 - 1e-4)
    curvature = (more - less) / 2e-4
    assert curvature.mean(0).abs().max() > 0.05 * first.mean(0).abs().max(), "or this would be Grad-CAM"
    expected = (patches @ (first - curvature / 2).mean(0)).view(4, 4).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("method", SMOOTHED)
def test_aug_smooth_is_the_mean_over_six_views(module: Pooled, net: Network, method: str) -> None:
    batched = METHODS[method]
    assert isinstance(batched, BatchedMethod)
    image = normalised(random_image(32))
    maps = []
    for mirrored in (False, True):
        for factor in (0.9, 1.0, 1.1):
            seen = module.block(module.stem((image.flip(-1) if mirrored else image) * factor)).requires_grad_()
            (felt,) = torch.autograd.grad(module.head(seen.mean((2, 3)))[:, 1].sum(), seen)
            found = batched.cam(seen.detach(), felt, batched.defaults)[0]
            maps.append(found.flip(-1) if mirrored else found)
    expected = torch.stack(maps).mean(0).numpy()
    np.testing.assert_allclose(grid(net, method, aug_smooth=True), expected, atol=1e-4 * np.abs(expected).max())


def test_smoothed_and_plain_requests_share_a_batch(net: Network) -> None:
    plain = request_for(net, "gradcam", random_image(32), 1)
    smoothed = request_for(net, "gradcam", random_image(32), 1, aug_smooth=True)
    assert isinstance(plain.method, BatchedMethod)
    assert isinstance(smoothed.method, QueryMethod)
    together = net.run([plain, smoothed])
    for result, request in zip(together, (plain, smoothed), strict=True):
        assert not isinstance(result, Exception)
        np.testing.assert_allclose(result.maps[0][0], run_one(net, request).maps[0][0], atol=1e-6)


def test_a_component_points_where_the_sum_does() -> None:
    weighted = torch.randn(6, 5, 4, 3, generator=torch.Generator().manual_seed(2))
    sums = weighted.sum(1)
    centred = sums - sums.mean((1, 2), keepdim=True)
    assert ((first_component(weighted) * centred).sum((1, 2)) >= 0).all()


def test_one_item_that_is_not_finite_spoils_only_itself() -> None:
    weighted = torch.randn(2, 5, 4, 3, generator=torch.Generator().manual_seed(2))
    broken = weighted.clone()
    broken[0, 0, 0, 0] = torch.inf
    found = first_component(broken)
    assert found[0].isnan().all()
    torch.testing.assert_close(found[1], first_component(weighted)[1])


def test_gradcam_plusplus_is_zero_without_a_gradient() -> None:
    batched = METHODS["gradcam_plusplus"]
    assert isinstance(batched, BatchedMethod)
    seen = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(3))
    assert not batched.cam(seen, torch.zeros_like(seen), MethodParameters()).any()


def test_random_cam_depends_on_its_seed(net: Network) -> None:
    one, other = (grid(net, "random_cam", seed=seed) for seed in (1, 2))
    assert np.abs(one - other).max() > 0.01
    np.testing.assert_array_equal(one, grid(net, "random_cam", class_id=2, seed=1))


def test_kernel_pca_refuses_a_layer_with_too_many_cells(module: Pooled) -> None:
    large = network(module, "stem", size=96)
    (result,) = large.run([request_for(large, "kpca_cam", random_image(96), 1)])
    assert isinstance(result, MethodNotApplicable)
    assert "eigencam" in result.detail

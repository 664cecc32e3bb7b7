"""The engine on small networks: golden vectors, identities, mixed batches, early and fused layers, other image sizes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from service.engine.batch import EngineRequest
from service.engine.graph.export import export
from service.engine.graph.runner import HEAD_ROWS
from service.engine.graph.split import split
from service.engine.methods import METHODS
from service.engine.methods.method import BatchedMethod, QueryMethod
from service.engine.network import Network
from service.engine.types import EngineResult, MethodParameters
from service.errors import (
    ConfigurationError,
    DeadlineExceeded,
    InferenceNonFinite,
    LayerNotFound,
    MethodNotApplicable,
    ParameterInvalid,
)
from tests.networks import OneConv, Pooled, network, seeded


def random_images(count: int, size: int = 32, seed: int = 0) -> list[NDArray[np.uint8]]:
    return list(np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), np.uint8))


@pytest.fixture(scope="module")
def pooled() -> Network:
    return network(seeded(Pooled), "block")


def run(net: Network, requests: list[EngineRequest]) -> list[EngineResult]:
    found = net.run(requests)
    assert all(isinstance(result, EngineResult) for result in found)
    return [result for result in found if isinstance(result, EngineResult)]


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize(
    ("layer", "expected"), [("conv1", [[11.25, 13.5], [20.25, 22.5]]), ("relu1", [[0.0, 4.0], [28.0, 32.5]])]
)
def test_captums_golden_vectors(layer: str, expected: list[list[float]], in_place: bool) -> None:
    graph = export("golden", OneConv(in_place=in_place).eval().requires_grad_(requires_grad=False), (1, 4, 4))
    parts = split(graph, [layer])
    with torch.no_grad():
        crossing = parts.trunk(torch.arange(16.0).view(1, 1, 4, 4))
    logits, activations = parts.head(*parts.enter(crossing, None))
    (gradients,) = torch.autograd.grad(logits[0, 0], activations)
    found = (gradients.mean(dim=(2, 3), keepdim=True) * activations.detach()).sum(dim=1)
    assert found[0].tolist() == expected


def test_where_the_head_is_pooling_and_a_linear_layer_the_map_is_the_class_activation_map(pooled: Network) -> None:
    module = seeded(Pooled)
    image = random_images(1)[0]
    with torch.no_grad():
        grid = module.block(module.stem(torch.from_numpy(image).permute(2, 0, 1)[None] / 127.5 - 1))[0]  # type: ignore[operator]
    weights = module.get_parameter("head.weight")
    (found,) = run(pooled, [EngineRequest(pixels=image, classes=(0, 3))])
    for class_id, maps in zip(found.classes, found.maps, strict=True):
        cam = torch.einsum("k,khw->hw", weights[class_id], grid) / grid[0].numel()
        np.testing.assert_allclose(maps[0], cam.numpy(), atol=1e-6)


def test_a_mixed_batch_equals_each_alone(pooled: Network) -> None:
    a, b, c, d, e = random_images(5)
    requests = [
        EngineRequest(pixels=a, classes=(1,)),
        EngineRequest(pixels=b),
        EngineRequest(pixels=c, best=3),
        EngineRequest(pixels=d, classes=(4, 0, 4), layers=("stem",)),
        EngineRequest(pixels=e, classes=(2,), layers=("block", "stem"), versus=1),
    ]
    together = run(pooled, requests)
    for request, found in zip(requests, together, strict=True):
        (alone,) = run(pooled, [request])
        assert (found.classes, found.layers) == (alone.classes, alone.layers)
        np.testing.assert_allclose(found.logits, alone.logits, atol=1e-5)
        for maps, own in zip(found.maps, alone.maps, strict=True):
            for grid, own_grid in zip(maps, own, strict=True):
                np.testing.assert_allclose(grid, own_grid, atol=1e-6)
    assert [len(found.maps) for found in together] == [1, 0, 3, 3, 1]
    assert [grid.shape for grid in together[4].maps[0]] == [(8, 8), (16, 16)]


def test_the_best_classes_come_best_first(pooled: Network) -> None:
    (found,) = run(pooled, [EngineRequest(pixels=random_images(1)[0], best=5)])
    assert list(found.classes) == list(np.argsort(-found.logits))
    (by_name,) = run(pooled, [EngineRequest(pixels=random_images(1)[0], classes=found.classes)])
    np.testing.assert_allclose(found.maps, by_name.maps, atol=1e-6)


def test_more_rows_than_one_head_pass_holds(pooled: Network) -> None:
    requests = [EngineRequest(pixels=image, classes=(0, 1, 2, 3, 4)) for image in random_images(HEAD_ROWS // 4)]
    for request, found in zip(requests, run(pooled, requests), strict=True):
        np.testing.assert_allclose(found.maps, run(pooled, [request])[0].maps, atol=1e-6)


def test_permuting_the_batch_permutes_the_maps(pooled: Network) -> None:
    images = random_images(6)
    forward = run(pooled, [EngineRequest(pixels=image, classes=(1,)) for image in images])
    backward = run(pooled, [EngineRequest(pixels=image, classes=(1,)) for image in images[::-1]])
    np.testing.assert_allclose([o.maps for o in forward], [o.maps for o in backward[::-1]], atol=1e-6)


def test_contrast_is_the_difference_of_the_classes_maps(pooled: Network) -> None:
    image = random_images(1)[0]
    contrast, plain = run(
        pooled, [EngineRequest(pixels=image, classes=(0,), versus=3), EngineRequest(pixels=image, classes=(0, 3))]
    )
    np.testing.assert_allclose(contrast.maps[0][0], plain.maps[0][0] - plain.maps[1][0], atol=1e-6)


def test_a_constant_on_the_logits_changes_nothing_and_a_factor_only_the_scale() -> None:
    image = random_images(1)[0]
    plain, shifted, scaled = seeded(Pooled), seeded(Pooled), seeded(Pooled)
    shifted.get_parameter("head.bias").add_(10)
    scaled.get_parameter("head.weight").mul_(3)
    maps = [
        run(network(m, "stem"), [EngineRequest(pixels=image, classes=(2,))])[0].maps[0][0] for m in (plain, shifted, scaled)
    ]
    np.testing.assert_allclose(maps[1], maps[0], atol=1e-6)
    np.testing.assert_allclose(maps[2], 3 * maps[0], rtol=1e-4, atol=1e-6)


def test_shuffled_head_weights_change_the_map() -> None:
    image = random_images(1)[0]
    plain, shuffled = seeded(Pooled), seeded(Pooled)
    weight = shuffled.get_parameter("head.weight")
    weight.copy_(weight[:, torch.randperm(16, generator=torch.Generator().manual_seed(1))])
    one, other = (
        run(network(m, "block"), [EngineRequest(pixels=image, classes=(2,))])[0].maps[0][0] for m in (plain, shuffled)
    )
    assert np.corrcoef(one.ravel(), other.ravel())[0, 1] < 0.9


def test_images_of_several_sizes_in_one_batch(pooled: Network) -> None:
    small, large = random_images(1)[0], random_images(1, size=48)[0]
    a, b, c = run(
        pooled, [EngineRequest(pixels=small, best=1), EngineRequest(pixels=large, best=1), EngineRequest(pixels=small, best=1)]
    )
    assert [o.maps[0][0].shape for o in (a, b, c)] == [(8, 8), (12, 12), (8, 8)]
    np.testing.assert_array_equal(a.maps, c.maps)


def test_an_image_whose_numbers_are_not_finite_fails_alone() -> None:
    module = seeded(Pooled)
    module.get_parameter("stem.0.weight")[0, 0, 0, 0] = 3e38
    good, bad = np.full((32, 32, 3), 128, np.uint8), np.full((32, 32, 3), 255, np.uint8)
    net = network(module, "block")
    net._mean.fill_(128)  # what is exactly the mean stays zero through the broken weight
    first, second = net.run([EngineRequest(pixels=good, best=1), EngineRequest(pixels=bad, best=1)])
    assert isinstance(first, EngineResult)
    assert isinstance(second, InferenceNonFinite)


def test_nothing_is_kept_on_the_module(pooled: Network) -> None:
    before = {name: value.clone() for name, value in pooled._module.state_dict().items()}
    run(pooled, [EngineRequest(pixels=random_images(1)[0], best=2)])
    assert all(torch.equal(value, before[name]) for name, value in pooled._module.state_dict().items())
    assert all(p.grad is None for p in pooled._module.parameters())
    assert not any(module._forward_hooks or module._backward_hooks for module in pooled._module.modules())


def test_layers_that_can_be_explained(pooled: Network) -> None:
    assert pooled.layers["block"].channels == 16
    assert pooled.layers["block"].grid == (8, 8)
    assert "head" not in pooled.layers


def test_a_wrong_layer_lists_those_that_fit(pooled: Network) -> None:
    with pytest.raises(LayerNotFound, match=r"among others: block") as raised:
        pooled.check_layers(["blocks"])
    assert "stem.0" in raised.value.detail
    with pytest.raises(LayerNotFound):
        pooled.check_layers(["head"])
    with pytest.raises(ConfigurationError, match=r"card test: explain\.layer"):
        network(seeded(Pooled), "layer4")


def test_a_wrong_method_lists_those_that_fit(pooled: Network) -> None:
    with pytest.raises(MethodNotApplicable, match="gradcam"):
        pooled.resolve_method("tea-leaves")


def test_a_method_that_does_not_fit_is_refused_with_its_reason(pooled: Network) -> None:
    assert "chefer" not in pooled.methods
    with pytest.raises(MethodNotApplicable, match=r"no attention.*Methods that fit this model: gradcam"):
        pooled.resolve_method("chefer")


def test_a_method_is_resolved_with_all_of_its_parameters(pooled: Network) -> None:
    assert pooled.resolve_method("rise") == (METHODS["rise"], METHODS["rise"].defaults)
    method, parameters = pooled.resolve_method("rise", MethodParameters(samples=8))
    assert (method, parameters) == (METHODS["rise"], MethodParameters(samples=8, seed=0))
    with pytest.raises(ParameterInvalid, match="window: rise has no such parameter; its own: samples, seed"):
        pooled.resolve_method("rise", MethodParameters(window=8))


def test_averaged_over_views_a_method_asks_the_network_itself(pooled: Network) -> None:
    plain, _ = pooled.resolve_method("gradcam", MethodParameters(aug_smooth=False))
    averaged, parameters = pooled.resolve_method("gradcam", MethodParameters(aug_smooth=True))
    assert plain is METHODS["gradcam"]
    assert isinstance(plain, BatchedMethod)
    assert isinstance(averaged, QueryMethod)
    assert averaged is pooled.resolve_method("gradcam", MethodParameters(aug_smooth=True, eigen_smooth=True))[0]
    assert (averaged.name, averaged.lane, averaged.layered) == (plain.name, plain.lane, plain.layered)
    assert (plain.passes(plain.defaults), averaged.passes(parameters)) == (1, 6)


def test_each_request_has_its_own_checkpoint(pooled: Network) -> None:
    """What one raises fails its request alone; a request that shares its batch's pass has none to call."""
    called: list[str] = []

    def expired() -> None:
        called.append("expired")
        raise DeadlineExceeded("nobody waits")

    method, parameters = pooled.resolve_method("rise", MethodParameters(samples=20))
    rise = EngineRequest(pixels=random_images(1)[0], classes=(1,), method=method, parameters=parameters)
    gradcam = EngineRequest(pixels=random_images(1)[0], classes=(1,))
    ended, shared, whole = pooled.run([rise, gradcam, rise], [expired, expired, lambda: called.append("whole")])
    assert isinstance(ended, DeadlineExceeded)
    assert isinstance(shared, EngineResult)
    assert isinstance(whole, EngineResult)
    assert called == ["expired", "whole", "whole", "whole"]  # chunks of eight


def test_a_network_that_cannot_be_exported_says_why() -> None:
    class Undecided(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean(dim=(2, 3)) if x.sum() > 0 else x.amax(dim=(2, 3))

    class Fixed(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.reshape(2, -1)

    class Dense(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    for module in (Undecided(), Fixed()):
        with pytest.raises(ConfigurationError, match="card odd: the network cannot be exported"):
            export("odd", module, (3, 8, 8))
    with pytest.raises(ConfigurationError, match=r"\[N, classes\]"):
        export("odd", Dense(), (3, 8, 8))

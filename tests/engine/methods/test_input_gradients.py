"""What holds of input gradients whatever the network: completeness, linear networks, seeds, gates."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from service.engine.graph.export import export
from service.engine.graph.runner import ChunkedRunner
from service.engine.methods import METHODS
from service.engine.methods.guided import guide
from service.errors import MethodNotApplicable
from tests.engine.methods.queries import explain, explain_module, normalised, points_of, query_of, random_image
from tests.networks import Pooled, seeded


class Linear(nn.Module):
    """Score = sum of weight times image, plus a bias: every gradient is the weight."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3 * 8 * 8, 2)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layer(x.flatten(1))
        return logits


@pytest.fixture(scope="module")
def linear() -> nn.Module:
    return seeded(Linear)


IMAGE = normalised(random_image(8))


def weight(module: nn.Module) -> Tensor:
    return module.get_parameter("layer.weight")[1].view(3, 8, 8)


@pytest.mark.parametrize("method", ["saliency", "smoothgrad"])
def test_sensitivity_of_a_linear_network_is_its_largest_weight(linear: nn.Module, method: str) -> None:
    torch.testing.assert_close(explain_module(linear, IMAGE, method, 1), weight(linear).abs().amax(0))


@pytest.mark.parametrize("method", ["input_x_gradient", "integrated_gradients"])
def test_attribution_of_a_linear_network_is_weight_times_image(linear: nn.Module, method: str) -> None:
    torch.testing.assert_close(explain_module(linear, IMAGE, method, 1), (weight(linear) * IMAGE[0]).sum(0))


def test_integrated_gradients_are_complete() -> None:
    query = query_of(seeded(Pooled), normalised(random_image(32)), "integrated_gradients", 3, steps=200)
    gained = (query.logits - query.runner.forward(torch.zeros_like(query.image))[0])[3]
    assert abs(gained) > 0.01
    assert explain("integrated_gradients", query).sum() == pytest.approx(float(gained), rel=0.01)


def test_gradient_shap_adds_up_to_the_difference_from_its_baselines() -> None:
    query = query_of(seeded(Pooled), normalised(random_image(32)), "gradient_shap", 3, samples=2000, noise=0)
    colors = torch.randn(2000, 3, 1, 1, generator=torch.Generator().manual_seed(5)).expand(-1, -1, 32, 32)
    gained = query.logits[3] - query.runner.forward(colors)[:, 3].mean()
    assert abs(gained) > 0.01
    assert explain("gradient_shap", query).sum() == pytest.approx(float(gained), rel=0.2)


def test_smoothgrad_without_noise_is_saliency() -> None:
    module, image = seeded(Pooled), normalised(random_image(32))
    smooth = explain_module(module, image, "smoothgrad", 2, noise=0, samples=3)
    torch.testing.assert_close(smooth, explain_module(module, image, "saliency", 2))


@pytest.mark.parametrize("method", ["smoothgrad", "gradient_shap"])
def test_the_same_seed_gives_the_same_map_and_another_another(method: str) -> None:
    module, image = seeded(Pooled), normalised(random_image(32))
    one, again, other = (explain_module(module, image, method, 2, samples=4, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_the_number_of_samples_need_not_fill_a_pass() -> None:
    query = query_of(seeded(Pooled), normalised(random_image(32)), "smoothgrad", 2, samples=11)
    explain("smoothgrad", query)
    assert len(points_of(query)) == 11


class Signs(nn.Module):
    """Two paths of opposite sign through a rectifier."""

    def __init__(self, rectifier: nn.Module) -> None:
        super().__init__()
        self.rectifier = rectifier

    def forward(self, x: Tensor) -> Tensor:
        rectified = self.rectifier(2 * x)
        return torch.stack([rectified[..., 0].sum((1, 2)), -rectified[..., 1].sum((1, 2))], 1).sum(1, keepdim=True)


@pytest.mark.parametrize("rectifier", [nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU6(), nn.GELU(), nn.SiLU(), nn.Hardswish()])
def test_only_what_speaks_for_the_class_passes_a_rectifier(rectifier: nn.Module) -> None:
    image = torch.full((1, 1, 2, 2), 0.5)
    query = query_of(Signs(rectifier).eval(), image, "saliency")
    plain = query.runner.gradient(image, query.target.score)[0, 0]
    found = explain_module(Signs(rectifier).eval(), image, "guided_backprop")
    assert (plain[:, 0] > 0).all()
    assert (plain[:, 1] < 0).all()
    torch.testing.assert_close(found, plain.clamp(min=0))


def test_a_guided_copy_shares_parameters_and_leaves_the_network_alone() -> None:
    graph = export("guided", seeded(Pooled), (3, 32, 32))
    before = graph.module.code
    copy = guide(graph)
    assert graph.module.code == before
    assert {p.data_ptr() for p in copy.module.parameters()} <= {p.data_ptr() for p in graph.module.parameters()}
    image = normalised(random_image(32))
    torch.testing.assert_close(ChunkedRunner(copy).forward(image), ChunkedRunner(graph).forward(image))


def test_a_network_without_rectifiers_cannot_be_guided(linear: nn.Module) -> None:
    with pytest.raises(MethodNotApplicable, match="ReLU"):
        explain_module(linear, IMAGE, "guided_backprop")


def test_guided_methods_say_that_they_fail_the_sanity_check() -> None:
    assert all("sanity check of Adebayo" in METHODS[name].summary for name in ("guided_backprop", "guided_gradcam"))

"""Surrogates on scores whose coefficients are known, and superpixels."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from torch import Tensor, nn

from service.engine.methods.superpixels import superpixels
from service.engine.methods.surrogate import coalitions, ridge, shapley
from tests.engine.methods.queries import explain_module, normalised, random_image
from tests.networks import Pooled, seeded


class Linear(nn.Module):
    """Score = sum of weight times image, plus a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3 * 32 * 32, 2)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layer(x.flatten(1))
        return logits


IMAGE = normalised(random_image(32))


def by_segment(segments: int) -> tuple[np.ndarray, np.ndarray, nn.Module]:
    """Superpixels of the image, and what each adds to the score of a linear network, which comes too."""
    module = seeded(Linear)
    pixels = (module.get_parameter("layer.weight")[1].view(3, 32, 32) * IMAGE[0]).sum(0).numpy()
    labels = superpixels(IMAGE[0].permute(1, 2, 0).numpy(), segments)
    return labels, np.bincount(labels.ravel(), weights=pixels.ravel()), module


def test_kernel_shap_of_a_linear_score_is_exact() -> None:
    labels, expected, module = by_segment(12)
    found = explain_module(module, IMAGE, "kernel_shap", 1, segments=12, samples=64).numpy()
    np.testing.assert_allclose(found, expected[labels], atol=1e-5)


def test_lime_of_a_linear_score_ranks_as_its_weights_do() -> None:
    labels, expected, module = by_segment(12)
    found = explain_module(module, IMAGE, "lime", 1, segments=12, samples=256).numpy()
    own = [found[labels == label][0] for label in range(len(expected))]
    assert np.corrcoef(own, expected)[0, 1] > 0.999
    assert np.array_equal(np.argsort(own)[-3:], np.argsort(expected)[-3:])


def test_shapley_values_of_a_game_with_interaction() -> None:
    """All coalitions drawn often enough: the values by their definition, over all orders in which players can join."""

    def game(z: np.ndarray) -> float:
        return float(2 * z[0] - z[1] + 3 * z[0] * z[2] + z[1] * z[2] * z[3])

    expected = np.zeros(4)
    for order in itertools.permutations(range(4)):
        z = np.zeros(4)
        for player in order:
            before, z[player] = game(z), 1
            expected[player] += (game(z) - before) / math.factorial(4)
    drawn = coalitions(np.random.default_rng(0), 40_000, 4)
    found = shapley(drawn, np.array([game(z) for z in drawn.astype(float)]), game(np.ones(4)))
    np.testing.assert_allclose(found, expected, atol=0.02)


def test_coalitions_come_with_their_complements_and_are_never_trivial() -> None:
    drawn = coalitions(np.random.default_rng(0), 101, 7)
    assert drawn.shape == (101, 7)
    assert np.array_equal(drawn[0:100:2], ~drawn[1:100:2])
    assert not (drawn.all(1) | ~drawn.any(1)).any()


def test_ridge_is_scikit_learns() -> None:
    random = np.random.default_rng(0)
    shown, scores, weights = random.random((50, 6)) < 0.5, random.normal(size=50), random.random(50)
    expected = Ridge(alpha=2.0).fit(shown, scores, sample_weight=weights).coef_
    np.testing.assert_allclose(ridge(shown, scores, weights, 2.0), expected, atol=1e-9)


@pytest.mark.parametrize("method", ["lime", "kernel_shap"])
def test_the_same_seed_gives_the_same_map_and_another_another(method: str) -> None:
    one, again, other = (explain_module(seeded(Pooled), IMAGE, method, 2, samples=30, segments=9, seed=s) for s in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("method", ["lime", "kernel_shap"])
@pytest.mark.parametrize(("samples", "segments"), [(1, 2), (1, 40), (7, 500)])
def test_few_samples_or_tiny_segments_still_give_numbers(method: str, samples: int, segments: int) -> None:
    found = explain_module(seeded(Pooled), normalised(random_image(16)), method, 2, samples=samples, segments=segments)
    assert torch.isfinite(found).all()


def test_superpixels_follow_the_edge_between_two_colours() -> None:
    two = np.zeros((40, 40, 3), np.float32)
    two[:, 23:] = 2
    labels = superpixels(two, 16)
    assert not set(labels[:, :23].ravel()) & set(labels[:, 23:].ravel())
    assert set(labels.ravel()) == set(range(labels.max() + 1))
    assert 12 <= labels.max() + 1 <= 20


@pytest.mark.parametrize("shape", [(1, 1, 3), (5, 200, 1), (64, 48, 3)])
def test_superpixels_of_odd_images(shape: tuple[int, int, int]) -> None:
    labels = superpixels(np.random.default_rng(0).normal(size=shape).astype(np.float32), 30)
    assert labels.shape == shape[:2]
    assert set(labels.ravel()) == set(range(labels.max() + 1))

"""The sanity check's two parts: rank correlation as scipy has it, and parameters that are shuffled and put back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr

from service.engine.batch import EngineRequest
from service.engine.evaluation.sanity import rank_correlation, shuffled
from service.engine.types import EngineResult
from tests.image_files import scene
from tests.networks import Pooled, network, seeded

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (RANDOM.normal(size=(7, 7)), RANDOM.normal(size=(7, 7))),
        (np.maximum(RANDOM.normal(size=(9, 5)), 0), np.maximum(RANDOM.normal(size=(9, 5)), 0)),  # many ties
        (RANDOM.integers(0, 3, (6, 6)), RANDOM.integers(0, 3, (6, 6))),
    ],
)
def test_rank_correlation_is_spearman_s(a: NDArray[np.float64], b: NDArray[np.float64]) -> None:
    expected = spearmanr(a.ravel(), b.ravel()).statistic
    assert rank_correlation(a.astype(np.float32), b.astype(np.float32)) == pytest.approx(expected, abs=1e-12)


def test_rank_correlation_of_order_alone() -> None:
    grid = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert rank_correlation(grid, np.exp(grid)) == pytest.approx(1)
    assert rank_correlation(grid, -grid) == pytest.approx(-1)
    assert rank_correlation(grid, np.zeros_like(grid)) is None


def test_parameters_are_shuffled_and_put_back() -> None:
    values = [torch.arange(20.0).view(4, 5), torch.arange(7.0)]
    parameters = [value.clone() for value in values]
    with shuffled(parameters, seed=0):
        for parameter, value in zip(parameters, values, strict=True):
            assert not torch.equal(parameter, value)
            assert torch.equal(parameter.flatten().sort().values, value.flatten())
    assert all(torch.equal(parameter, value) for parameter, value in zip(parameters, values, strict=True))


def test_only_what_is_behind_the_layer_is_shuffled() -> None:
    net = network(seeded(Pooled, 5), "block", size=32)
    request = EngineRequest(pixels=scene(32, 32), classes=(1,))

    def explain() -> EngineResult:
        (result,) = net.run([request])
        assert isinstance(result, EngineResult)
        return result

    before = explain()
    with net.shuffled_head():
        during = explain()
    after = explain()
    assert not np.allclose(during.logits, before.logits)
    assert rank_correlation(during.maps[0][0], before.maps[0][0]) != pytest.approx(1)
    np.testing.assert_array_equal(after.logits, before.logits)
    np.testing.assert_array_equal(after.maps[0][0], before.maps[0][0])

"""Faithfulness on a network whose answer is known: the brightness of one square, through a sigmoid."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from service.engine.evaluation.faithfulness import (
    PASSES_PER_MAP,
    ROAD_PERCENT,
    STEPS,
    blur,
    center_map,
    random_map,
    rank_pixels,
)
from service.engine.evaluation.road import impute
from service.engine.network import Network
from service.engine.types import Evaluation, EvaluationRequest
from service.errors import DeadlineExceeded
from tests.networks import network

SIZE = 32
SQUARE = np.s_[8:24, 8:24]  # a quarter of the image
GAIN = 6.0

Map = NDArray[np.float32]


class BrightSquare(nn.Module):
    """Class 0: GAIN times the mean of the square's first channel; class 1: nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.look = nn.Conv2d(3, 1, 1, bias=False)
        self.look.weight = nn.Parameter(torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Float ``[N, 3, 32, 32]`` -> ``[N, 2]``."""
        bright = self.look(x)[:, 0, 8:24, 8:24].mean(dim=(1, 2))
        return torch.stack([GAIN * bright, torch.zeros_like(bright)], dim=1)


@pytest.fixture(scope="module")
def toy() -> Network:
    return network(BrightSquare().eval().requires_grad_(requires_grad=False), "look", size=SIZE)


def perfect() -> Map:
    heat = np.zeros((SIZE, SIZE), np.float32)
    heat[SQUARE] = 1
    return heat


def evaluate(toy: Network, pixels: NDArray[np.uint8], *maps: Map, grid: tuple[int, int] = (8, 8)) -> tuple[Evaluation, ...]:
    return toy.evaluate(EvaluationRequest(pixels=pixels, classes=(0,) * len(maps), maps=maps, grid=grid))


def white() -> NDArray[np.uint8]:
    return np.full((SIZE, SIZE, 3), 255, np.uint8)


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def test_the_areas_of_a_perfect_map_in_closed_form(toy: Network) -> None:
    (found,) = evaluate(toy, white(), perfect())
    # White is 1 after normalisation. Of the fraction f that is removed all lies in the square until the square is gone.
    gone = [round(SIZE * SIZE * step / STEPS) for step in range(STEPS + 1)]
    curve = [sigmoid(GAIN * max(0.0, 1 - count / 256)) for count in gone]
    assert found.map.deletion_curve == pytest.approx(curve, abs=1e-6)
    assert found.map.deletion == pytest.approx((sum(curve) - (curve[0] + curve[-1]) / 2) / STEPS, abs=1e-6)
    # The blur of white is white.
    assert found.map.insertion == pytest.approx(sigmoid(GAIN), abs=1e-6)
    assert found.map.average_drop == pytest.approx(0, abs=1e-6)
    assert found.probability == pytest.approx(sigmoid(GAIN), abs=1e-6)


def test_the_average_drop_in_closed_form(toy: Network) -> None:
    half = perfect() / np.float32(2)
    half[0, 0] = 1  # the peak lies elsewhere: the square shows at half its brightness
    (found,) = evaluate(toy, white(), half)
    assert found.map.average_drop == pytest.approx(1 - sigmoid(GAIN / 2) / sigmoid(GAIN), abs=1e-6)


def test_a_perfect_map_beats_a_random_one_and_its_opposite_loses(toy: Network) -> None:
    pixels = np.zeros((SIZE, SIZE, 3), np.uint8)
    pixels[SQUARE] = np.random.default_rng(0).integers(128, 256, (16, 16, 3), np.uint8)
    good, bad = evaluate(toy, pixels, perfect(), 1 - perfect())
    assert good.map.deletion < good.random.deletion < bad.map.deletion
    assert good.map.insertion > good.random.insertion > bad.map.insertion
    assert good.map.road > good.random.road > bad.map.road
    assert good.map.average_drop < good.random.average_drop < bad.map.average_drop
    assert good.random == bad.random  # the baselines know no map
    assert good.center == bad.center
    # The object is in the centre, where the bump is.
    assert good.center.deletion < good.random.deletion


def test_curves_begin_and_end_where_they_must(toy: Network) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    heat = np.random.default_rng(2).random((SIZE, SIZE), np.float32)
    found, opposite = evaluate(toy, pixels, heat, -heat)
    assert found.map.deletion_curve[0] == found.probability
    assert found.map.deletion_curve[-1] == 0.5  # all is mean
    assert found.map.insertion_curve[-1] == found.probability
    # What one map calls the hottest is the coldest of its opposite.
    assert found.map.road == pytest.approx(-opposite.map.road, abs=1e-9)
    assert found.map.road_most == opposite.map.road_least
    assert len(found.map.road_most) == len(ROAD_PERCENT)
    assert len(found.map.deletion_curve) == len(found.map.insertion_curve) == STEPS + 1


def test_it_ends_when_its_checkpoint_says_so(toy: Network) -> None:
    request = EvaluationRequest(pixels=white(), classes=(0,), maps=(perfect(),), grid=(8, 8))

    def expired() -> None:
        raise DeadlineExceeded("nobody waits")

    with pytest.raises(DeadlineExceeded):
        toy.evaluate(request, expired)


def test_order_is_a_ranking_even_of_a_map_of_zeros() -> None:
    zeros = rank_pixels(torch.zeros(16, 16))
    assert sorted(zeros.flatten().tolist()) == list(range(256))
    assert zeros.flatten().tolist() != list(range(256))  # not row by row
    heat = torch.rand(16, 16)
    assert torch.equal(heat.flatten()[rank_pixels(heat).flatten().argsort()], heat.flatten().sort(descending=True).values)


def test_baselines() -> None:
    assert random_map((32, 48), (4, 6)).shape == (32, 48)
    bump = center_map((33, 65))
    assert bump.argmax() == 16 * 65 + 32
    assert bump[16, 32] == 1
    assert PASSES_PER_MAP == 51


def test_the_blur_keeps_a_flat_image_and_the_mass_of_a_point() -> None:
    flat = torch.full((3, 20, 30), 0.7)
    assert torch.allclose(blur(flat), flat, atol=1e-6)
    point = torch.zeros(1, 31, 31)
    point[0, 15, 15] = 1
    assert blur(point).sum() == pytest.approx(1, abs=1e-5)
    assert blur(point)[0, 15, 15] == blur(point).max()


def test_imputation_comes_close_to_the_exact_solution() -> None:
    side = 24
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:side, :side] / side
    image = np.stack([np.sin(3 * rows) + columns, rows * columns, columns**2]).astype(np.float32)
    removed = rng.random((side, side)) < 0.6
    removed[6:14, 6:14] = True
    ours = impute(torch.from_numpy(image), torch.from_numpy(removed)[None])[0].numpy()
    np.testing.assert_array_equal(ours[:, ~removed], image[:, ~removed])
    exact = solved(image, removed)
    assert np.abs(ours - exact).max() < 0.06  # noise has standard deviation 0.01
    assert np.abs(ours - exact).mean() < 0.01


def solved(image: NDArray[np.float32], removed: NDArray[np.bool_]) -> NDArray[np.float64]:
    """ROAD's linear system by a direct solver; at the border over the neighbours that there are."""
    side = image.shape[1]
    index = {place: number for number, place in enumerate(zip(*np.nonzero(removed), strict=True))}
    matrix = scipy.sparse.lil_matrix((len(index), len(index)))
    right = np.zeros((len(index), 3))
    for (row, column), number in index.items():
        total = 0.0
        for down in (-1, 0, 1):
            for across in (-1, 0, 1):
                place = (row + down, column + across)
                if (down, across) == (0, 0) or not (0 <= place[0] < side and 0 <= place[1] < side):
                    continue
                weight = 1 / 6 if 0 in (down, across) else 1 / 12
                total += weight
                if removed[place]:
                    matrix[number, index[place]] -= weight
                else:
                    right[number] += weight * image[:, place[0], place[1]]
        matrix[number, number] = total
    result = image.astype(np.float64)
    result[:, removed] = scipy.sparse.linalg.spsolve(matrix.tocsr(), right).T
    return result

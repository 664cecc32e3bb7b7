"""Covering parts of images: squares, masks and channels, on networks whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from service.engine.methods import METHODS
from service.engine.types import MethodParameters
from service.errors import ParameterInvalid
from tests.engine.methods.queries import explain_module, normalised, random_image, request_for, run_one
from tests.networks import Pooled, network, seeded


class Corner(nn.Module):
    """Class 0 is the brightness of the upper left corner, class 1 its opposite."""

    def forward(self, x: Tensor) -> Tensor:
        """Float ``[N, C, h, w]`` -> ``[N, 2]``."""
        corner = x[:, :, :8, :8].mean((1, 2, 3))
        return torch.stack([corner, -corner], 1)


WHITE = torch.ones(1, 3, 32, 32)


def test_occlusion_measures_the_loss_of_what_is_covered() -> None:
    found = explain_module(Corner(), WHITE, "occlusion", window=8, stride=8)
    expected = torch.zeros(32, 32)
    expected[:8, :8] = 1
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(explain_module(Corner(), WHITE, "occlusion", 1, window=8, stride=8), -expected)


def test_overlapping_squares_are_averaged() -> None:
    found = explain_module(Corner(), WHITE, "occlusion", window=8, stride=4)
    assert found[0, 0] == pytest.approx(1.0)  # one square covers it, and takes the whole corner
    assert found[0, 4] == pytest.approx((1 + 0.5) / 2)
    assert found[0, 8] == pytest.approx((0.5 + 0) / 2)
    assert found[0, 12] == 0


def test_a_window_larger_than_the_image_covers_it_all() -> None:
    torch.testing.assert_close(explain_module(Corner(), WHITE, "occlusion", window=500, stride=500), torch.ones(32, 32))


def test_a_stride_that_leaves_gaps_is_refused() -> None:
    with pytest.raises(ParameterInvalid, match="stride: must not be larger than window"):
        explain_module(Corner(), WHITE, "occlusion", window=4, stride=5)


def test_the_squares_are_counted_before_the_image_is_known() -> None:
    assert METHODS["occlusion"].passes(MethodParameters(window=32, stride=16)) == 13 * 13


def test_rise_finds_the_corner_and_signs_it() -> None:
    found, against = (explain_module(Corner(), WHITE, "rise", class_id, samples=400) for class_id in (0, 1))
    assert found[:6, :6].min() > 4 * found[16:, 16:].abs().max()
    torch.testing.assert_close(against, -found)


def test_a_rise_of_the_same_seed_is_the_same_and_another_another() -> None:
    one, again, other = (explain_module(Corner(), WHITE, "rise", samples=9, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_rise_takes_images_that_the_grid_does_not_divide() -> None:
    assert explain_module(Corner(), torch.ones(1, 3, 33, 50), "rise", samples=9).shape == (33, 50)


def test_scorecam_of_few_channels_takes_those_that_vary_most() -> None:
    net = network(seeded(Pooled), "stem")
    pixels = random_image(32)
    few, all_, more = (
        run_one(net, request_for(net, "scorecam", pixels, 1, samples=samples)).maps[0][0] for samples in (1, 8, 9)
    )
    with torch.no_grad():
        channels = seeded(Pooled).get_submodule("stem")(normalised(pixels))[0]
    strongest = channels[channels.flatten(1).var(1).argmax()]
    np.testing.assert_allclose(few, strongest, atol=1e-5)  # alone its weight is 1
    np.testing.assert_array_equal(all_, more)
    assert not np.allclose(few, all_)


def test_scorecam_answers_for_every_layer() -> None:
    net = network(seeded(Pooled), "block")
    result = run_one(net, request_for(net, "scorecam", random_image(32), 1, layers=("stem", "block")))
    assert [grid.shape for grid in result.maps[0]] == [(16, 16), (8, 8)]

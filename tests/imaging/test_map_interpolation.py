"""How a grid is spread over an image, and which cells of it lie there."""

from typing import get_args

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from service.imaging.geometry import crop_cells, place, place_map, resize_map
from service.imaging.heatmap import scale_maps
from service.vocabulary import Fit, MapInterpolation, Preprocessing, Scale

Map = NDArray[np.float32]
SIDE = 32
PREPROCESSING = Preprocessing(
    height=SIDE, width=SIDE, resize=None, interpolation="bilinear", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
)


def grid(rows: int, columns: int) -> Map:
    return np.random.default_rng(rows * columns).normal(0, 2, (rows, columns)).astype(np.float32)


@pytest.mark.parametrize(("rows", "columns", "down", "across"), [(7, 7, 32, 32), (3, 5, 4, 1), (1, 1, 9, 8), (14, 14, 16, 3)])
def test_nearest_repeats_the_cells(rows: int, columns: int, down: int, across: int) -> None:
    cells = grid(rows, columns)

    spread = resize_map(cells, columns * across, rows * down, "nearest")

    np.testing.assert_array_equal(spread, np.kron(cells, np.ones((down, across), np.float32)))


def test_nearest_shows_the_cells_on_an_image_of_another_size_too() -> None:
    cells = grid(8, 8)
    heat = scale_maps([[cells]], polarity="both", scale="none", input_size=(SIDE, SIDE), interpolation="nearest")[0].values

    placed = place_map(heat, place(300, 200, PREPROCESSING, "squash"), 300, 200, "nearest")

    np.testing.assert_array_equal(np.unique(placed), np.unique(cells))
    rows, columns = (np.arange(200) + 0.5) * 8 // 200, (np.arange(300) + 0.5) * 8 // 300
    expected = cells[rows.astype(int)[:, None], columns.astype(int)]
    assert (placed == expected).mean() > 0.97  # a border of cells may be half a pixel of the input off


def test_bilinear_is_the_default_and_opencvs() -> None:
    cells = grid(7, 7)
    reference = cv2.resize(cells, (50, 40), interpolation=cv2.INTER_LINEAR)

    np.testing.assert_array_equal(resize_map(cells, 50, 40, "bilinear"), reference)
    np.testing.assert_array_equal(
        scale_maps([[cells]], polarity="both", scale="none", input_size=(40, 50))[0].values, reference
    )


def test_bicubic_would_overshoot_and_is_clipped() -> None:
    cells = np.zeros((5, 5), np.float32)
    cells[2:, 2:] = 1
    unclipped = cv2.resize(cells, (40, 40), interpolation=cv2.INTER_CUBIC)
    assert unclipped.min() < -0.05
    assert unclipped.max() > 1.05

    np.testing.assert_array_equal(resize_map(cells, 40, 40, "bicubic"), np.clip(unclipped, 0, 1))


@settings(max_examples=100, deadline=None)
@given(
    cells=arrays(np.float32, (3, 4), elements=st.floats(-1e6, 1e6, width=32)),
    interpolation=st.sampled_from(get_args(MapInterpolation)),
    scale=st.sampled_from(get_args(Scale)),
)
def test_no_interpolation_leaves_the_range(cells: Map, interpolation: MapInterpolation, scale: Scale) -> None:
    (heat,) = scale_maps([[cells]], polarity="both", scale=scale, input_size=(SIDE, SIDE), interpolation=interpolation)
    placed = place_map(heat.values, place(90, 60, PREPROCESSING, "squash"), 90, 60, interpolation)

    bound = (1 + 1e-6) * (np.abs(cells).max() if scale == "none" else 1)
    assert np.abs(heat.values).max() <= bound
    assert np.abs(placed).max() <= bound
    assert np.abs(heat.shades).max() <= 1 + 1e-6


@pytest.mark.parametrize(
    ("size", "fit", "cells", "expected"),
    [
        ((64, 64), "pad", (8, 8), np.s_[0:8, 0:8]),
        ((64, 32), "pad", (8, 8), np.s_[2:6, 0:8]),
        ((32, 64), "pad", (8, 8), np.s_[0:8, 2:6]),
        ((64, 20), "pad", (8, 8), np.s_[3:5, 0:8]),  # 10 rows of pixels, 11 to 20: the centres of rows 3 and 4
        ((640, 10), "pad", (8, 8), np.s_[3:4, 0:8]),  # one row of pixels, 15: between the centres of two rows
        ((10, 640), "pad", (1, 1), np.s_[0:1, 0:1]),
        ((64, 32), "crop", (8, 8), np.s_[0:8, 0:8]),
        ((64, 32), "squash", (7, 5), np.s_[0:7, 0:5]),
    ],
)
def test_cells_whose_centre_is_padding_are_left_out(
    size: tuple[int, int], fit: Fit, cells: tuple[int, int], expected: tuple[slice, slice]
) -> None:
    whole = grid(*cells)

    np.testing.assert_array_equal(crop_cells(whole, place(*size, PREPROCESSING, fit)), whole[expected])

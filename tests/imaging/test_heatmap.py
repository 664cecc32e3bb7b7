"""Maps against pytorch-grad-cam's own scaling, and every polarity, scale and clip by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from pytorch_grad_cam.base_cam import BaseCAM
from pytorch_grad_cam.utils.image import scale_cam_image

from service.imaging.heatmap import Heatmap, scale_maps
from service.vocabulary import Polarity, Scale

Map = NDArray[np.float32]


def grid(rows: int, columns: int, seed: int = 0) -> Map:
    return np.random.default_rng(seed).normal(0, 2, (rows, columns)).astype(np.float32)


def render(*layers: Map, polarity: Polarity = "positive", scale: Scale = "minmax", size: tuple[int, int] = (24, 32)) -> Heatmap:
    return scale_maps([layers], polarity=polarity, scale=scale, input_size=size)[0]


def reference(layers: list[Map], size: tuple[int, int]) -> Map:
    """The lines of `BaseCAM.compute_cam_per_layer` that follow the map, and its own `aggregate_multi_layers`."""
    height, width = size
    per_layer = [scale_cam_image(np.maximum(layer[None], 0), (width, height))[:, None, :] for layer in layers]
    aggregated: Map = BaseCAM.aggregate_multi_layers(BaseCAM.__new__(BaseCAM), per_layer)[0]
    return aggregated


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # BaseCAM.__del__ without a model
@pytest.mark.parametrize("layers", [[grid(7, 7)], [grid(7, 7, 1), grid(14, 14, 2), grid(3, 5, 3)]], ids=["one", "three"])
def test_minmax_is_pytorch_grad_cams_to_the_bit(layers: list[Map]) -> None:
    np.testing.assert_array_equal(render(*layers).values, reference(layers, (24, 32)))


def test_negative_is_positive_of_the_negated_map() -> None:
    np.testing.assert_array_equal(render(grid(5, 5), polarity="negative").values, render(-grid(5, 5)).values)


def test_both_keeps_zero_and_reaches_one_of_the_ends() -> None:
    maps = np.array([[4, -2], [0, 1]], np.float32)

    heat = render(maps, polarity="both", size=(2, 2))

    assert heat.signed
    np.testing.assert_allclose(heat.values, [[1, -0.5], [0, 0.25]])
    assert (heat.raw_min, heat.raw_max) == (-2, 4)


def test_max_keeps_the_ground_that_minmax_takes_away() -> None:
    maps = np.array([[4, 2], [2, 2]], np.float32)

    np.testing.assert_allclose(render(maps, scale="max", size=(2, 2)).values, [[1, 0.5], [0.5, 0.5]])
    np.testing.assert_allclose(render(maps, scale="minmax", size=(2, 2)).values, [[1, 0], [0, 0]], atol=1e-6)


def test_shared_keeps_an_absent_class_dark() -> None:
    present, absent = np.array([[8, 0], [0, 0]], np.float32), np.array([[0, 2], [0, 0]], np.float32)

    first, second = scale_maps([[present], [absent]], polarity="positive", scale="shared", input_size=(2, 2))

    assert first.values.max() == 1
    assert second.values.max() == 0.25
    assert second.shades.max() == 0.25


def test_none_is_raw_and_still_drawn() -> None:
    one, two = np.array([[6, 0], [0, 3]], np.float32), np.array([[2, 0], [0, 1]], np.float32)

    heat = render(one, two, scale="none", size=(2, 2))

    np.testing.assert_array_equal(heat.values, [[4, 0], [0, 2]])
    np.testing.assert_array_equal(heat.shades, [[1, 0], [0, 0.5]])
    assert (heat.raw_min, heat.raw_max, heat.grid) == (0, 6, (2, 2))


@pytest.mark.parametrize("scale", ["minmax", "max", "shared", "none"])
def test_a_map_without_the_asked_sign_is_blank(scale: Scale) -> None:
    heat = render(-np.abs(grid(4, 4)), scale=scale)

    assert heat.blank
    assert not heat.values.any()
    assert not heat.shades.any()
    assert (heat.raw_min, heat.raw_max) == (0, 0)


def test_a_flat_positive_map_is_not_blank() -> None:
    assert not render(np.full((3, 3), 2, np.float32)).blank


def test_clip_stretches_between_percentiles_and_leaves_the_delivered_values() -> None:
    maps = np.arange(101, dtype=np.float32).reshape(1, 101)

    (heat,) = scale_maps([[maps]], polarity="positive", scale="max", input_size=(1, 101), clip=(20, 60))

    np.testing.assert_allclose(heat.values[0], np.arange(101) / 100, atol=1e-6)
    np.testing.assert_allclose(heat.shades[0, [0, 20, 40, 60, 100]], [0, 0, 0.5, 1, 1], atol=1e-6)


def test_clip_of_signed_maps_goes_by_magnitude() -> None:
    maps = np.linspace(-1, 1, 201, dtype=np.float32).reshape(1, 201)

    (heat,) = scale_maps([[maps]], polarity="both", scale="max", input_size=(1, 201), clip=(50, 100))

    np.testing.assert_allclose(heat.shades[0, [0, 60, 100, 140, 200]], [-1, 0, 0, 0, 1], atol=0.01)
    assert heat.shades[0, 175] == pytest.approx(0.5, abs=0.01)


def test_clip_does_not_undo_sharing() -> None:
    strong, weak = np.full((2, 2), 8, np.float32), np.full((2, 2), 2, np.float32)

    maps = scale_maps([[strong], [weak]], polarity="positive", scale="shared", input_size=(2, 2), clip=(0, 99))

    assert maps[1].shades.max() < maps[0].shades.max()


def test_clip_within_flat_ground_shows_what_rises_above_it() -> None:
    maps = np.zeros((10, 10), np.float32)
    maps[4, 4] = 3

    (heat,) = scale_maps([[maps]], polarity="positive", scale="max", input_size=(10, 10), clip=(0, 90))

    assert heat.shades[4, 4] == 1
    assert heat.shades.sum() == 1


@settings(max_examples=200, deadline=None)
@given(
    maps=arrays(np.float32, (2, 2, 3, 4), elements=st.floats(-1e6, 1e6, width=32)),
    polarity=st.sampled_from(["positive", "negative", "both"]),
    scale=st.sampled_from(["minmax", "max", "shared", "none"]),
    clip=st.sampled_from([(0.0, 100.0), (10.0, 90.0), (0.0, 1.0), (99.0, 100.0)]),
)
def test_shades_are_always_finite_and_in_range(maps: Map, polarity: Polarity, scale: Scale, clip: tuple[float, float]) -> None:
    for heat in scale_maps([list(layers) for layers in maps], polarity=polarity, scale=scale, input_size=(9, 12), clip=clip):
        low = -1 if heat.signed else 0
        assert heat.shades.shape == heat.values.shape == (9, 12)
        assert heat.shades.dtype == heat.values.dtype == np.float32
        assert np.isfinite(heat.values).all()
        assert heat.shades.min() >= low - 1e-6
        assert heat.shades.max() <= 1 + 1e-6

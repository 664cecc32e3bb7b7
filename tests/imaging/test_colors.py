"""Every colour map a client may name, and where the middle of a signed map lies."""

from typing import get_args

import cv2
import numpy as np
import pytest

from service.imaging import overlay
from service.vocabulary import ColorMap


def test_every_name_of_the_contract_exists() -> None:
    assert set(get_args(ColorMap)) == set(overlay.NAMES)


@pytest.mark.parametrize("name", overlay.NAMES)
def test_lut_is_256_colours_that_nobody_can_change(name: str) -> None:
    table = overlay.lut(name)

    assert table.shape == (256, 3)
    assert table.dtype == np.uint8
    assert len(np.unique(table, axis=0)) > 60
    with pytest.raises(ValueError, match="read-only"):
        table[0] = 0


def test_unknown_name_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        overlay.lut("mauve")


def test_jet_is_opencvs_in_rgb() -> None:
    bgr = cv2.applyColorMap(np.array([[200]], np.uint8), cv2.COLORMAP_JET)[0, 0]

    np.testing.assert_array_equal(overlay.lut("jet")[200], bgr[::-1])


def test_none_is_grey() -> None:
    np.testing.assert_array_equal(overlay.lut("none"), np.arange(256)[:, None].repeat(3, axis=1))


def test_diverging_runs_from_blue_over_white_to_red() -> None:
    table = overlay.lut("diverging").astype(int)

    assert table[0, 2] > table[0, 0] + 100
    assert table[255, 0] > table[255, 2] + 100
    assert table[128].min() > 240
    light = table @ [0.299, 0.587, 0.114]
    assert (np.diff(light[:129]) > -1).all()
    assert (np.diff(light[128:]) < 1).all()


@pytest.mark.parametrize(("shade", "index"), [(-3.0, 0), (0.0, 0), (0.5, 128), (1.0, 255), (7.0, 255)])
def test_colorize_cuts_what_lies_beyond(shade: float, index: int) -> None:
    drawn = overlay.colorize(np.full((2, 3), shade, np.float32), "magma", signed=False)

    np.testing.assert_array_equal(drawn, np.broadcast_to(overlay.lut("magma")[index], (2, 3, 3)))


@pytest.mark.parametrize(("shade", "index"), [(-1.0, 0), (0.0, 128), (1.0, 255)])
def test_zero_of_a_signed_map_is_the_middle(shade: float, index: int) -> None:
    drawn = overlay.colorize(np.full((1, 1), shade, np.float32), "diverging", signed=True)

    np.testing.assert_array_equal(drawn[0, 0], overlay.lut("diverging")[index])

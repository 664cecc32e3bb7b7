"""The contact sheet's layout: images where they belong, text on white, and a bound on its size."""

import numpy as np
import pytest
from numpy.typing import NDArray

from service.imaging import overlay
from service.imaging.panel import PanelRow, contact_sheet


def row(width: int = 300, height: int = 200, caption: str = "tiger cat  39.3 %", note: str = "Grad-CAM at bn2") -> PanelRow:
    def flat(color: tuple[int, int, int]) -> NDArray[np.uint8]:
        return np.full((height, width, 3), color, np.uint8)

    return PanelRow(
        rgb=flat((200, 0, 0)), heat_rgb=flat((0, 200, 0)), overlay_rgb=flat((0, 0, 200)), caption=caption, note=note
    )


def pixels_of(sheet: NDArray[np.uint8], color: tuple[int, int, int]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    rows, columns = np.nonzero((sheet == color).all(axis=2))
    return rows, columns


def test_image_heatmap_and_overlay_stand_side_by_side_at_their_own_size() -> None:
    sheet = contact_sheet([row()])

    places = [pixels_of(sheet, color) for color in ((200, 0, 0), (0, 200, 0), (0, 0, 200))]
    assert [len(rows) for rows, _ in places] == [300 * 200] * 3
    assert places[0][1].max() < places[1][1].min() < places[1][1].max() < places[2][1].min()
    assert len({(rows.min(), rows.max()) for rows, _ in places}) == 1


def test_rows_stand_one_above_the_other() -> None:
    one, three = contact_sheet([row()]), contact_sheet([row()] * 3)

    assert three.shape[1] == one.shape[1]
    assert len(pixels_of(three, (200, 0, 0))[0]) == 3 * 300 * 200


def test_caption_is_dark_on_white_above_its_images() -> None:
    sheet, bare = contact_sheet([row()]), contact_sheet([row(caption="", note="")])
    top = pixels_of(sheet, (200, 0, 0))[0].min()

    assert sheet[:top].min() < 60
    assert (sheet[:top] != bare[:top]).any()
    np.testing.assert_array_equal(sheet[top:], bare[top:])
    assert (sheet[[0, -1]] == 255).all()
    assert (sheet[:, [0, -1]] == 255).all()


def test_a_long_caption_stays_on_the_sheet() -> None:
    sheet = contact_sheet([row(caption="a very long name " * 50 + "\nand a second line")])

    assert (sheet[:, -20:] == 255).all()


def test_colour_bar_shows_the_maps_ends() -> None:
    table = overlay.lut("jet")
    sheet = contact_sheet([row()], bar=table, bar_ends=("against", "for"))
    without = contact_sheet([row()])

    changed = np.nonzero((sheet != without).any(axis=(1, 2)))[0]
    assert changed.min() > pixels_of(sheet, (200, 0, 0))[0].max()
    strip = sheet[changed.min() + 5]
    colored = strip[(strip != 255).any(axis=1)]
    assert np.abs(colored[1].astype(int) - table[0]).max() < 40
    assert np.abs(colored[-2].astype(int) - table[255]).max() < 40


@pytest.mark.parametrize(("width", "height"), [(8, 8), (8, 800), (800, 8), (4000, 3000), (31, 47)])
def test_odd_images_are_brought_into_a_readable_size(width: int, height: int) -> None:
    sheet = contact_sheet([row(width, height)])

    assert 3 * 240 < sheet.shape[1] < 3 * 850
    assert sheet.shape[0] < 1500
    assert len(pixels_of(sheet, (0, 200, 0))[0]) > 100


@pytest.mark.parametrize(("count", "size"), [(16, (1600, 1200)), (300, (40, 30))])
def test_the_sheet_is_bounded(count: int, size: tuple[int, int]) -> None:
    sheet = contact_sheet([row(*size)] * count)

    assert sheet.shape[0] * sheet.shape[1] <= 16_000_000
    assert sheet.shape[0] <= 16_383
    assert len(pixels_of(sheet, (0, 0, 200))[0]) > 0

"""Charts of curves: lines where their values say, any text, the same pixels every time and in every thread."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import matplotlib as mpl
import numpy as np
import pytest
from numpy.typing import NDArray

from service.imaging.plots import GREY, OKABE_ITO, Color, Curve, CurveChart, plot_curves

BLUE, RED, GREEN = OKABE_ITO[:3]
GRID = (226, 226, 226)
DecodedImage = NDArray[np.uint8]

HOSTILE = {
    "formula": "$\\nope{x}$ $\\frac{a}{b}$",
    "broken formula": "$\\frac{$",
    "one dollar": "costs $5, \\$6",
    "underscore": "_hidden_^{2}",
    "lines": "one\ntwo\r\nthree\u2028four\ttab",
    "control": "nul\x00 escape\x1b[31m bell\x07 \x85",
    "chinese": "虎斑猫",
    "emoji": "cat \U0001f600 \U0001f468\u200d\U0001f469 \u2764\ufe0f",
    "right to left": "قط منزلي \u202eevil",
    "surrogate": "\ud800 alone",
    "marks": "e" + "\u0301" * 50,
    "private": "\ue000\U0010fffd\uffff",
    "percent": "%s %d {x} {0}",
    "empty": "",
    "long": "a very long name of a class " * 100,
    "one long word": "W" * 5000,
}  # fmt: skip


def curve(values: tuple[float, ...], color: Color = BLUE, label: str = "gradcam", note: str = "area 0.5") -> Curve:
    return Curve(label=label, note=note, values=values, color=color)


def chart(*curves: Curve, title: str = "Deletion", x_label: str = "pixels", y_label: str = "probability") -> CurveChart:
    return CurveChart(title=title, x_label=x_label, y_label=y_label, curves=curves)


def plain(title: str = "tiger cat", note: str = "39.3%", label: str = "gradcam", curve_note: str = "area 0.5") -> DecodedImage:
    return plot_curves([chart(curve((0.5, 0.25), label=label, note=curve_note))], title=title, note=note)


def places(image: DecodedImage, color: Color) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows and columns of the pixels of one colour."""
    rows, columns = np.nonzero((image == color).all(axis=2))
    return rows, columns


def line_along_an_edge(image: DecodedImage, color: Color) -> tuple[float, float, float]:
    """Row, left end and right end of a level line; the sample of its colour in the legend lies lower and is shorter."""
    rows, columns = places(image, color)
    along = rows == np.bincount(rows).argmax()
    thick = np.abs(rows - rows[along][0]) < 4
    return float(rows[thick].mean()), float(columns[thick].min()), float(columns[thick].max())


def test_a_image_on_white_that_grows_with_what_it_shows() -> None:
    one = plot_curves([chart(curve((1.0, 0.0)))], title="tiger cat", note="39.3%")
    two = plot_curves([chart(curve((1.0, 0.0)))] * 2, title="tiger cat", note="39.3%")
    tall = plot_curves([chart(*[curve((1.0, 0.0))] * 9)], title="tiger cat", note="39.3%")
    for image in (one, two, tall):
        assert image.dtype == np.uint8
        assert image.ndim == 3
        assert image.shape[2] == 3
        assert image.flags.c_contiguous
        for border in (image[:20], image[-20:], image[:, :20], image[:, -20:]):
            assert (border == 255).all()
    assert two.shape[0] == one.shape[0] < tall.shape[0]
    assert two.shape[1] > 1.8 * one.shape[1]
    assert tall.shape[1] == one.shape[1]


@pytest.mark.parametrize("place", [0, 1])
def test_a_line_is_where_its_values_say(place: int) -> None:
    values = (0.2, 0.9, 0.4, 0.6, 0.05)
    charts = [chart(curve((0.5, 0.5), GREY))] * 2
    charts[place] = chart(curve(values, RED), curve((1.0, 1.0), BLUE), curve((0.0, 0.0), GREEN))
    image = plot_curves(charts, title="", note="")
    # Two level lines tell where 0 and 1 are; their ends have caps that stand over by half of the line's width.
    top, left, right = line_along_an_edge(image, BLUE)
    base, other_left, other_right = line_along_an_edge(image, GREEN)
    assert (left, right) == (other_left, other_right)
    assert (left > image.shape[1] / 2) == (place == 1)
    cap = 2
    # The grid agrees with them: vertical lines at every fifth of x, level lines at every quarter of y.
    rows, columns = places(image, GRID)
    own = (columns > left - 9) & (columns < right + 9)
    vertical, level = np.bincount(columns[own]), np.bincount(rows[own])
    fifths = (np.flatnonzero(vertical > 200) - left - cap) / (right - left - 2 * cap)
    quarters = (base - np.flatnonzero(level > 300)) / (base - top)
    assert set(np.rint(fifths * 5)) == {1, 2, 3, 4, 5}
    assert set(np.rint(quarters * 4)) == {1, 2, 3}
    np.testing.assert_allclose(fifths * 5, np.rint(fifths * 5), atol=0.02)
    np.testing.assert_allclose(quarters * 4, np.rint(quarters * 4), atol=0.02)
    rows, columns = places(image, RED)
    inside = rows < base - 4
    for x in np.linspace(0.05, 0.95, 31):
        if min(abs(x - corner) for corner in np.linspace(0, 1, len(values))) < 0.03:
            continue  # the mitre of a corner is not on the line
        column = round(left + cap + x * (right - left - 2 * cap))
        row = rows[inside & (columns == column)].mean()
        value = (base - row) / (base - top)
        assert value == pytest.approx(np.interp(x, np.linspace(0, 1, len(values)), values), abs=0.008)  # 4 of 465 pixels


def test_charts_share_one_scale_and_the_first_curve_lies_on_top() -> None:
    level = curve((0.5, 0.5), BLUE)
    alone = plot_curves([chart(level), chart(curve((0.4, 0.4), RED))], title="", note="")
    beside = plot_curves([chart(level), chart(curve((1.0, 0.4), RED))], title="", note="")
    assert line_along_an_edge(beside, BLUE)[0] > line_along_an_edge(alone, BLUE)[0] + 100
    covered = plot_curves([chart(level, curve((0.5, 0.5), RED))], title="", note="")
    legend_only = places(covered, RED)[0]
    assert legend_only.min() > line_along_an_edge(covered, BLUE)[0] + 100


@pytest.mark.parametrize("values", [(0.0, 0.0), (1e-9, 3e-9, 0.0), (-0.25, 0.5), (1.0,) * 500])
def test_any_finite_values_make_a_chart(values: tuple[float, ...]) -> None:
    image = plot_curves([chart(curve(values))], title="", note="")
    assert len(places(image, BLUE)[0]) > 500
    assert (image[:, :20] == 255).all()


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_any_text_may_stand_anywhere(text: str) -> None:
    """Never a formula, an error or a warning, and nothing leaves the sheet."""
    own = chart(curve((1.0, 0.0), label=text), curve((0.0, 1.0), RED, label=text), title=text, x_label=text, y_label=text)
    image = plot_curves([own], title=text, note=text)
    assert image.shape == plot_curves([chart(curve((1.0,)), curve((0.0,)))], title="", note="").shape
    for border in (image[:20], image[-20:], image[:, :20], image[:, -20:]):
        assert (border == 255).all()


def test_what_the_font_does_not_have_is_replaced_in_one_line() -> None:
    np.testing.assert_array_equal(plain(title="猫 cat", label="a\nb"), plain(title="\ufffd cat", label="a b"))
    assert (plain(title="猫 cat") != plain(title="cat")).any()


def test_texts_are_cut_but_never_the_numbers_behind_a_label() -> None:
    long = "guided gradient-weighted class activation mapping " * 4
    assert (plain(label=long, curve_note="area 0.5") != plain(label=long, curve_note="area 0.6")).any()
    np.testing.assert_array_equal(plain(label=long), plain(label=long + "and more"))
    np.testing.assert_array_equal(plain(title=long), plain(title=long + "and more"))


def test_a_label_that_begins_with_an_underscore_is_in_the_legend() -> None:
    assert (plain(label="_private") != plain(label="private")).any()
    assert (plain(label="_private") != plain(label="")).any()


def test_the_machine_has_no_say() -> None:
    expected = plain()
    with mpl.rc_context({"lines.linestyle": ":", "axes.facecolor": "red", "font.size": 30, "legend.frameon": True}):
        before = dict(mpl.rcParams)
        np.testing.assert_array_equal(plain(), expected)
        assert dict(mpl.rcParams) == before


def test_threads_draw_what_one_draws() -> None:
    titles = [f"class {number}" for number in range(6)]
    expected = [plain(title) for title in titles]
    with ThreadPoolExecutor(4) as pool:
        for found, alone in zip(pool.map(plain, titles), expected, strict=True):
            np.testing.assert_array_equal(found, alone)


def run(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-c", program]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("variable", ["HOME", "XDG_CONFIG_HOME", "MPLCONFIGDIR"])
def test_a_directory_that_cannot_be_written_is_nothing_to_talk_about(variable: str) -> None:
    program = (
        "from service.imaging.plots import *\n"
        "one = Curve(label='a', note='', values=(0, 1), color=GREY)\n"
        "chart = CurveChart(title='', x_label='', y_label='', curves=(one,))\n"
        "print(plot_curves([chart], title='', note='').shape)"
    )
    # Nobody, not even root, makes a directory there.
    done = run(program, **{"XDG_CACHE_HOME": "/proc/none", "XDG_CONFIG_HOME": "", variable: "/proc/none"})
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("(")


def test_a_service_that_draws_no_plot_does_not_import_matplotlib() -> None:
    done = run("import sys, service.explain.explainer; print('matplotlib' in sys.modules)")
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "False\n")

"""The command line as a person types it: help, version, models, explain, and what it says when something is wrong."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from service import __version__
from service.cli import OVERLAY_OPTIONS, app
from service.cli.files import COLUMNS
from service.settings import Settings
from tests.cards import write_card
from tests.photographs import CHELSEA, COFFEE

WIDE = {"COLUMNS": "200", "TERMINAL_WIDTH": "200", "NO_COLOR": "1"}


def camserve(*arguments: str | Path) -> Result:
    return CliRunner(env=WIDE).invoke(app, [str(argument) for argument in arguments])


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "explanations.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the card of a small network."""
    folder = tmp_path_factory.mktemp("models")
    write_card(folder, "tiny")
    return folder


@pytest.fixture(scope="module")
def explained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    """Two photographs and a broken file, one folder down, explained with the embedded model."""
    images, out = tmp_path_factory.mktemp("images"), tmp_path_factory.mktemp("results") / "deep" / "out"
    (images / "below").mkdir()
    (images / "cat.png").write_bytes(CHELSEA.data)
    (images / "below" / "COFFEE.PNG").write_bytes(COFFEE.data)
    (images / "broken.jpg").write_bytes(CHELSEA.data[:5000])
    (images / "notes.txt").write_text("no image")
    return camserve("explain", images, "--out", out), out


def test_the_version() -> None:
    result = camserve("--version")
    assert (result.exit_code, result.stdout.strip()) == (0, __version__)


def test_without_a_command_there_is_help() -> None:
    result = camserve()
    assert re.search(r"serve .*explain .*models ", result.output, re.DOTALL)


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("serve", tuple(Settings.model_fields)),
        ("explain", (*OVERLAY_OPTIONS, "out", "models_dir", "device", "threads")),
        ("models", ("models_dir",)),
    ],
)
def test_help_names_every_option(command: str, options: tuple[str, ...]) -> None:
    result = camserve(command, "--help")
    assert result.exit_code == 0
    missing = [name for name in options if f"--{name.replace('_', '-')} " not in result.output]
    assert not missing


def test_models_lists_the_cards_by_their_whole_names() -> None:
    for columns in ("200", "80"):
        result = CliRunner(env=WIDE | {"COLUMNS": columns}).invoke(app, ["models"])
        assert result.exit_code == 0
        for name in ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2", "resnet50", "vgg16"):
            assert name in result.stdout


def test_models_of_a_folder_without_cards(tmp_path: Path) -> None:
    result = camserve("models", "--models-dir", tmp_path)
    assert result.exit_code == 3
    assert "no model cards" in result.stderr


def test_a_folder_is_explained_and_what_is_broken_is_told(explained: tuple[Result, Path]) -> None:
    result, out = explained
    assert result.exit_code == 1, result.output
    assert {path.name for path in out.iterdir()} == {"1-COFFEE.png", "3-cat.png", "explanations.csv"}
    coffee, broken, cat = rows(out)
    assert tuple(coffee) == COLUMNS
    for row, photo in ((coffee, COFFEE), (cat, CHELSEA)):
        class_id, label, probability = photo.top
        assert (int(row["class_id"]), row["label"].split(",")[0], row["error"]) == (class_id, label, "")
        assert float(row["probability"]) == pytest.approx(probability, abs=0.02)
        assert float(row["raw_max"]) > 0
        with Image.open(row["overlay"]) as overlay:
            assert overlay.size == (photo.width, photo.height)
            assert len(np.unique(np.asarray(overlay)[::9, ::9, 0])) > 20
    assert broken["file"].endswith("broken.jpg")
    assert broken["overlay"] == broken["class_id"] == ""
    assert "Upload the whole file" in broken["error"]
    assert "tiger cat" in result.stdout
    assert "broken.jpg" in result.stdout


def test_several_classes_are_a_sheet_and_a_row_each(tiny: Path, tmp_path: Path) -> None:
    result = camserve(
        "explain", CHELSEA.path, "--models-dir", tiny, "--model", "tiny", "--out", tmp_path, "--class-id", "3,0",
        "--class-id", "7", "--overlay-type", "grayscale",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    found = rows(tmp_path)
    assert [row["label"] for row in found] == ["class 3", "class 0", "class 7"]
    (sheet,) = {row["overlay"] for row in found}
    with Image.open(sheet) as image:
        assert image.width > 3 * CHELSEA.width
        assert image.height > 3 * CHELSEA.height


def test_a_image_that_is_too_large_for_an_option_stops_no_other(tiny: Path, tmp_path: Path) -> None:
    with Image.open(CHELSEA.path) as image:
        image.resize((64, 64)).save(tmp_path / "a.png")
        image.resize((1100, 1000)).save(tmp_path / "b.png")
    result = camserve(
        "explain", tmp_path, "--models-dir", tiny, "--model", "tiny", "--fit", "native", "--out", tmp_path / "out"
    )
    assert result.exit_code == 1, result.output
    small, large = rows(tmp_path / "out")
    assert (small["error"], large["overlay"]) == ("", "")
    assert "at most 1048576 pixels" in large["error"]


def test_an_option_reaches_the_image(tiny: Path, tmp_path: Path) -> None:
    common = ("explain", CHELSEA.path, "--models-dir", tiny, "--model", "tiny", "--overlay-type", "none", "--size", "64")
    for name in ("viridis", "none"):
        assert camserve(*common, "--color-map", name, "--out", tmp_path / name).exit_code == 0
    images = [np.asarray(Image.open(tmp_path / name / "chelsea.png")) for name in ("viridis", "none")]
    assert [image.shape for image in images] == [(43, 64, 3)] * 2
    grey = [bool((image == image[:, :, :1]).all()) for image in images]
    assert grey == [False, True]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--class-name", "unicorn"), 2, "class_name"),
        (("--class-id", "10"), 2, "this model has 10 classes"),
        (("--class-id", "cat"), 2, "--class-id"),
        (("--layer", "nowhere"), 2, "Layers that fit"),
        (("--alpha", "2"), 2, "--alpha"),
        (("--threads", "-1"), 2, "--threads"),
        (("--clip-percent-lowerbound", "90", "--clip-percent-upperbound", "10"), 2, "must be below"),
        (("--polarity", "sideways"), 2, "polarity"),
        (("--model", "nope"), 3, "no card 'nope'"),
        (("--device", "cuda:63"), 3, "cuda:63 is not there"),
    ],
)
def test_what_is_wrong_is_said(tiny: Path, tmp_path: Path, arguments: tuple[str, ...], code: int, words: str) -> None:
    model = () if "--model" in arguments else ("--model", "tiny")
    result = camserve("explain", CHELSEA.path, "--models-dir", tiny, "--out", tmp_path, *model, *arguments)
    assert result.exit_code == code, result.output
    assert words in result.stderr
    assert "Traceback" not in result.output


def test_no_images_in_a_folder(tiny: Path, tmp_path: Path) -> None:
    result = camserve("explain", tmp_path, "--models-dir", tiny, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert ".jpeg" in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    assert camserve("explain", tmp_path / "nowhere").exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(("--port", "99999"), "--port"), (("--models", "a,a"), "each card once"), (("--max-queue-size", "3"), "max_queue_size")],
)
def test_a_bad_setting_stops_serve_before_anything_starts(arguments: tuple[str, ...], words: str) -> None:
    result = camserve("serve", *arguments)
    assert result.exit_code == 2
    assert words in result.stderr


def test_a_bad_setting_of_the_environment_is_told_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAMSERVE_PORT", "http")
    result = camserve("serve")
    assert result.exit_code == 2
    assert "port" in result.stderr

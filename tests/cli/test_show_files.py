"""`camserve show`: what overlays say of themselves, and files that say nothing."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from service.cli import app, err, out
from service.imaging.encode import encode_image
from service.imaging.provenance import ClassProvenance, Provenance
from service.vocabulary import ImageMedia
from tests.commands import CommandResult, invoke
from tests.photographs import CHELSEA

PIXELS = np.zeros((8, 8, 3), np.uint8)
CAT = ClassProvenance(image=1, class_id=282, label="tiger [red]cat", probability=0.3935, versus="tabby")
OVERLAY = Provenance(
    software="camserve 1.2.3", model="lite0", version="7", digest="sha256:5793", method="gradcam", polarity="both",
    scale="minmax", request_id="abc", layers=("blocks.5", "bn2"), classes=(CAT,),
)  # fmt: skip


def show(*files: Path) -> CommandResult:
    out.width = err.width = 200  # rich has read COLUMNS already, when the command line was imported
    return invoke(app, "show", *files)


def write(folder: Path, name: str, media: ImageMedia, provenance: Provenance | None) -> Path:
    file = folder / name
    file.write_bytes(encode_image(PIXELS, media, provenance))
    return file


@pytest.mark.parametrize("media", ["png", "jpeg", "webp"])
def test_everything_is_shown(tmp_path: Path, media: ImageMedia) -> None:
    result = show(write(tmp_path, f"cat.{media}", media, OVERLAY))
    assert (result.exit_code, result.stderr) == (0, "")
    for words in (
        f"cat.{media}", "camserve 1.2.3", "lite0", "sha256:5793", "gradcam", "blocks.5, bn2", "both", "minmax", "abc",
        "282 tiger [red]cat, 39.4%, versus tabby",
    ):  # fmt: skip
        assert words in result.stdout


def test_what_a_file_does_not_say_is_not_shown(tmp_path: Path) -> None:
    result = show(write(tmp_path, "sheet.png", "png", Provenance(software="camserve", model="m", version="1", digest="d")))
    for words in ("method", "polarity", "request", "class", "more"):
        assert words not in result.stdout


def test_each_row_of_a_sheet(tmp_path: Path) -> None:
    sheet = replace(OVERLAY, classes=(CAT, replace(CAT, image=2, label="dog", versus=None)), omitted=3)
    result = show(write(tmp_path, "sheet.png", "png", sheet))
    for words in ("image 1: 282 tiger", "image 2: 282 dog, 39.4% ", "and 3 more"):
        assert words in result.stdout


def test_a_file_that_says_nothing_is_told_and_the_others_are_shown(tmp_path: Path) -> None:
    plain, good = write(tmp_path, "plain.png", "png", None), write(tmp_path, "good.png", "png", OVERLAY)
    result = show(CHELSEA.path, good, plain)
    assert result.exit_code == 1
    assert "good.png" in result.stdout
    for file in (CHELSEA.path, plain):
        assert f"{file}: this file does not say where it comes from; overlays of camserve do." in result.stderr


def test_a_file_that_does_not_exist(tmp_path: Path) -> None:
    assert show(tmp_path / "nowhere.png").exit_code == 2
    assert show(tmp_path).exit_code == 2


def test_it_does_not_wait_for_torch(tmp_path: Path) -> None:
    file = write(tmp_path, "cat.png", "png", OVERLAY)
    source = (
        "import sys; from service.cli import app\n"
        f"try: app(['show', {str(file)!r}])\n"
        "finally: print('torch' in sys.modules, file=sys.stderr)"
    )
    ended = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert "gradcam" in ended.stdout
    assert ended.stderr.strip() == "False"

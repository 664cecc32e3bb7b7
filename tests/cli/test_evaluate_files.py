"""`camserve evaluate` on a real photograph and one file that is none."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from PIL import Image

from service.cli import app
from tests.commands import invoke
from tests.photographs import COFFEE

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    (folder / COFFEE.path.name).write_bytes(COFFEE.data)
    (folder / "broken.png").write_bytes(b"no image")
    return folder


def test_methods_are_compared(photos: Path, tmp_path: Path) -> None:
    result = invoke(app, "evaluate", photos, "--methods", "gradcam,random_cam", "--out", tmp_path)
    assert result.exit_code == 1  # one file could not be read
    assert "broken.png" in result.output
    for name in ("gradcam", "random_cam", "random map", "map of the centre"):
        assert name in result.output

    with (tmp_path / "evaluation.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 3  # methods, each with its baselines

    def value_of(label: str, figure: str) -> float:
        (value,) = (float(row[figure]) for row in rows if row["map"] == label)
        return value

    # On this photograph Grad-CAM finds what matters: better than chance, the centre, and random channel weights.
    for other in ("random map for gradcam", "map of the centre for gradcam", "random_cam"):
        assert value_of("gradcam", "deletion") < value_of(other, "deletion")
        assert value_of("gradcam", "insertion") > value_of(other, "insertion")
        assert value_of("gradcam", "road") > value_of(other, "road")
    with Image.open(tmp_path / "evaluation.png") as image:
        assert image.width > image.height


def test_an_unknown_method_is_refused_before_anything_is_measured(photos: Path, tmp_path: Path) -> None:
    result = invoke(app, "evaluate", photos, "--methods", "magic", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert not (tmp_path / "out").exists()

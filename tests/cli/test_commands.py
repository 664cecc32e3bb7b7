"""The command line as a person types it: help, version, models, explain, and what it says when something is wrong."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from service import __version__
from service.cli import app, main, out
from service.cli.explain_files import COLUMNS, name_overlays
from service.engine.cards.repository import read_cards
from service.explain.options import ExplainOptions
from service.imaging.provenance import read_provenance
from service.settings import DEFAULT_MODELS_DIR, Settings
from tests.commands import CommandResult, invoke
from tests.model_cards import write_card
from tests.photographs import CHELSEA, COFFEE

ANSWER_OPTIONS = {"heatmap", "overlay", "format", "evaluate"}  # of answers over HTTP only
OVERLAY_OPTIONS = tuple(name for name in ExplainOptions.model_fields if name not in ANSWER_OPTIONS)
MAP_OPTIONS = (
    "model", "layer", "class_id", "class_name", "versus", "top_k", "polarity", "scale", "fit", "interpolation",
    "clip_percent_lowerbound", "clip_percent_upperbound",
)  # fmt: skip


def camserve(*arguments: str | Path, columns: int = 200) -> CommandResult:
    out.width = columns  # rich has read COLUMNS already, when the command line was imported
    return invoke(app, *arguments, columns=columns)


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
def explained(tmp_path_factory: pytest.TempPathFactory) -> tuple[CommandResult, Path]:
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


def test_without_a_command_there_is_help(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["camserve"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert re.search(r"serve .*explain .*evaluate .*models .*bench ", capsys.readouterr().out, re.DOTALL)


@pytest.mark.parametrize("flag", ["-h", "--help"])
@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("serve", tuple(Settings.model_fields)),
        (
            "explain",
            (
                *OVERLAY_OPTIONS,
                "out",
                "models_dir",
                "device",
                "random_weights",
                "cache_dir",
                "max_batch_size",
                "max_image_pixels",
                "threads",
            ),
        ),
        (
            "evaluate",
            (
                *MAP_OPTIONS,
                "methods",
                "out",
                "models_dir",
                "device",
                "random_weights",
                "cache_dir",
                "max_image_pixels",
                "threads",
            ),
        ),
        (
            "bench",
            (
                "model",
                "rounds",
                "models_dir",
                "device",
                "precision",
                "engine",
                "random_weights",
                "cache_dir",
                "max_batch_size",
                "threads",
            ),
        ),
        ("models", ("models_dir",)),
    ],
)
def test_help_names_every_option_and_no_other(command: str, options: tuple[str, ...], flag: str) -> None:
    result = camserve(command, flag)
    assert result.exit_code == 0
    named = {name for name in re.findall(r"--([a-z-]+) ", result.stdout) if not name.startswith("no-")}
    assert named == {name.replace("_", "-") for name in options}


def test_help_fits_a_narrow_terminal_and_starts_with_the_most_used() -> None:
    result = camserve("explain", "--help", columns=80)
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "…" not in result.stdout
    groups = re.findall(r"╭─ (.+?) ─", result.stdout)
    assert groups == [
        "Arguments", "Options", "Model and method", "Classes", "Overlay", "Map", "Parameters of single methods", "Settings",
    ]  # fmt: skip


def test_help_does_not_wait_for_torch() -> None:
    source = (
        "import sys; from service.cli import app\n"
        "try: app(['explain', '--help'])\n"
        "finally: print('torch' in sys.modules, file=sys.stderr)"
    )
    ended = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert "--alpha" in ended.stdout
    assert ended.stderr.strip() == "False"


def test_models_lists_the_cards_by_their_whole_names() -> None:
    for columns in (200, 80):
        result = camserve("models", columns=columns)
        assert result.exit_code == 0
        for name in ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2", "resnet50", "vgg16"):
            assert name in result.stdout


def test_models_fit_a_terminal_of_80_columns_a_line_each() -> None:
    lines = camserve("models", columns=80).stdout.splitlines()
    assert max(map(len, lines)) <= 80
    rows = {cells[1].strip(): cells[2].strip() for line in lines if len(cells := line.split("│")) == 5}
    assert rows.keys() == read_cards(DEFAULT_MODELS_DIR).keys()
    assert rows["mobilenet_v3_large"] == "torchvision mobilenet_v3_large"
    assert "ImageNet-1k" not in "".join(lines)
    assert "A wider terminal" in lines[-1]


def test_models_are_described_in_a_wide_terminal() -> None:
    stdout = camserve("models", columns=200).stdout
    assert "MobileNetV3-Large, ImageNet-1k" in stdout
    assert "encoder.layers.encoder_layer_11.ln_1" in stdout
    assert "A wider terminal" not in stdout


def test_models_of_a_folder_without_cards(tmp_path: Path) -> None:
    result = camserve("models", "--models-dir", tmp_path)
    assert result.exit_code == 3
    assert "no model cards" in result.stderr


def test_a_folder_is_explained_and_what_is_broken_is_told(explained: tuple[CommandResult, Path]) -> None:
    result, out = explained
    assert result.exit_code == 1, result.output
    assert {path.name for path in out.iterdir()} == {"COFFEE.png", "cat.png", "explanations.csv"}
    coffee, broken, cat = rows(out)
    assert tuple(coffee) == COLUMNS
    for row, photo in ((coffee, COFFEE), (cat, CHELSEA)):
        class_id, label, probability = photo.top
        assert (int(row["class_id"]), row["label"].split(",")[0], row["error"]) == (class_id, label, "")
        assert float(row["probability"]) == pytest.approx(probability, abs=0.02)
        assert float(row["raw_max"]) > 0
        assert row["raw_unit"] == "logit"
        with Image.open(row["overlay"]) as overlay:
            assert overlay.size == (photo.width, photo.height)
            assert len(np.unique(np.asarray(overlay)[::9, ::9, 0])) > 20
        provenance = read_provenance(Path(row["overlay"]))
        assert provenance is not None
        assert (provenance.model, provenance.method, provenance.request_id) == ("efficientnet_lite0", "gradcam", None)
        assert [shown.label for shown in provenance.classes] == [row["label"]]
    assert broken["file"].endswith("broken.jpg")
    assert broken["overlay"] == broken["class_id"] == ""
    assert "Upload the whole file" in broken["error"]
    assert "tiger cat" in result.stdout
    assert "broken.jpg" in result.stdout


@pytest.mark.parametrize(
    ("files", "overlays"),
    [
        (("a/dog.jpg", "a/cat.webp"), ("dog", "cat")),
        (("a/dog.jpg", "b/dog.jpg", "b/DOG.png"), ("dog", "dog-2", "DOG-3")),
        (("a/dog.jpg", "b/dog.jpg", "c/dog-2.jpg"), ("dog", "dog-3", "dog-2")),  # another image's own name stays its own
        (("a/dog.tar.jpg", "a/dog.jpg"), ("dog.tar", "dog")),
        (("out/dog.png",), ("dog-2",)),  # the image is not overwritten
        (("a/dog.jpg", "out/dog.png", "out/dog-2.png"), ("dog-3", "dog-4", "dog-2-2")),
    ],
)
def test_overlays_are_called_as_their_images(tmp_path: Path, files: tuple[str, ...], overlays: tuple[str, ...]) -> None:
    named = name_overlays([tmp_path / file for file in files], tmp_path / "a" / ".." / "out")
    assert [path.name for path in named.values()] == [f"{overlay}.png" for overlay in overlays]
    assert list(named) == [tmp_path / file for file in files]


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


def test_an_image_that_is_too_large_for_an_option_stops_no_other(tiny: Path, tmp_path: Path) -> None:
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
        (("--polarity", "sideways"), 2, "--polarity: Input should be 'positive', 'negative' or 'both'"),
        (("--alhpa", "0.5"), 2, "Unknown option: --alhpa. Did you mean --alpha?"),
        (("--heatmap", "png"), 2, "--heatmap"),
        (("--alpha",), 2, "--alpha requires an argument"),
        (("--model", "nope"), 3, "no card 'nope'"),
        (("--device", "cuda:63"), 3, "cuda:63 does not exist"),
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
    result = camserve("explain", tmp_path / "nowhere")
    assert result.exit_code == 2
    assert re.search(r"PATHS: .*nowhere.* does not exist", result.stderr)


def test_paths_stand_before_and_behind_options(tiny: Path, tmp_path: Path) -> None:
    result = camserve(
        "explain", CHELSEA.path, "--models-dir", tiny, "--model", "tiny", COFFEE.path, "--out", tmp_path, "--size", "64"
    )
    assert result.exit_code == 0, result.output
    assert [Path(row["file"]) for row in rows(tmp_path)] == [CHELSEA.path, COFFEE.path]


def test_no_path_at_all() -> None:
    result = camserve("explain")
    assert result.exit_code == 2
    assert "PATHS requires an argument" in result.stderr


def test_an_unknown_command() -> None:
    result = camserve("explian")
    assert result.exit_code == 2
    assert re.search(r'"explian".*serve, explain, evaluate, models, card, check, show, bench', result.stderr)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--port", "99999"), "--port: Input should be less than or equal to 65535"),
        (("--models", "a,a"), "each card once"),
        (("--max-queue-size", "3"), "max_queue_size"),
    ],
)
def test_a_bad_setting_stops_serve_before_anything_starts(arguments: tuple[str, ...], words: str) -> None:
    result = camserve("serve", *arguments)
    assert result.exit_code == 2
    assert words in result.stderr


@pytest.mark.parametrize("arguments", [(), ("--host", "::1")])
def test_a_bad_setting_of_the_environment_is_told_alike(arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAMSERVE_PORT", "http")
    result = camserve("serve", *arguments)
    assert result.exit_code == 2
    assert "CAMSERVE_PORT: Input should be a valid integer" in result.stderr


def test_secrets_are_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAMSERVE_API_KEYS", "sesame")
    assert "sesame" not in camserve("serve", "--help").output
    result = camserve("serve", "--api-keys", "cinnamon,nutmeg", "--admin-keys", "clove", "--port", "x")
    assert result.exit_code == 2
    assert "--port" in result.stderr
    for secret in ("sesame", "cinnamon", "nutmeg", "clove"):
        assert secret not in result.output

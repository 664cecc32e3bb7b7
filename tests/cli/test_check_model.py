"""`camserve check`: what it says of a good model, of one that is not, as JSON, and where the service tells it again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from service.cli import app, out
from service.engine.cards.card import Card
from service.engine.device import prepare_device
from service.explain.model import Model, check_path
from service.explain.results import ModelInfo
from service.settings import Settings
from service.telemetry import Metrics
from tests.commands import CommandResult, invoke
from tests.model_cards import write_card
from tests.photographs import CHELSEA


def check(*arguments: str | Path, columns: int = 80) -> CommandResult:
    out.width = columns
    return invoke(app, "check", *arguments, columns=columns)


@pytest.fixture(scope="module")
def good() -> CommandResult:
    """The embedded model, checked on the service's own photographs."""
    return check("efficientnet_lite0", "--json")


def test_a_good_model_is_said_to_be_one(good: CommandResult) -> None:
    assert good.exit_code == 0, good.output
    report = json.loads(good.stdout)
    assert report["problems"] == []
    assert report["info"]["default_layer"] == ["bn2"]
    assert report["labels"] == "imagenet-1k, all as the source states them"
    assert report["parameter_bytes"] == pytest.approx(4.7e6 * 4, rel=0.02)
    assert 0 < report["predict_ms"] <= 2 * report["explain_ms"]
    assert report["inapplicable"].keys() == {"attention", "attention_rollout", "chefer", "legrad"}


def test_methods_are_told_apart_by_the_shuffled_head(good: CommandResult) -> None:
    methods = {one["method"]: one for one in json.loads(good.stdout)["check"]["methods"]}
    assert methods["gradcam"]["verdict"] == "depends on the class"
    assert methods["gradcam"]["sanity"] < 0.5
    for name in ("eigencam", "fem"):  # functions of the activations alone
        assert methods[name]["sanity"] == pytest.approx(1)
        assert methods[name]["verdict"] == "ignores the class"
    assert methods["hirescam"]["sanity"] == pytest.approx(methods["gradcam"]["sanity"], abs=1e-6)  # a pooled head
    assert "random_cam" not in methods
    assert "rise" not in methods


def test_faithfulness_is_beside_its_baselines(good: CommandResult) -> None:
    found = json.loads(good.stdout)["check"]
    scores = {one["method"]: one["faithfulness"] for one in found["methods"] if one["faithfulness"]}
    assert scores.keys() == {"gradcam", "layercam", "eigencam"}
    assert scores["gradcam"]["insertion"] > found["random"]["insertion"]
    assert scores["gradcam"]["deletion"] < found["random"]["deletion"]


def test_one_screen_of_a_model_that_learnt_nothing_and_its_check_kept(tmp_path: Path) -> None:
    write_card(tmp_path, "tiny")
    photo = tmp_path / "cat.png"
    photo.write_bytes(CHELSEA.data)
    ended = check("tiny", photo, "--models-dir", tmp_path, "--methods", "gradcam", "--keep")
    assert len(ended.stdout.splitlines()) <= 45
    assert max(map(len, ended.stdout.splitlines())) <= 80
    for words in (
        "random 0",
        "64 x 64",
        "layer3: ",
        "the card names it",
        "openvino in",
        "here the map",
    ):
        assert words in ended.stdout
    model = _load(tmp_path)
    assert model.check is not None
    assert model.check.images == 1
    assert {one.method for one in model.check.methods} >= {"gradcam", "eigencam"}


def test_a_check_of_other_weights_is_not_told(tmp_path: Path) -> None:
    write_card(tmp_path, "tiny")
    card = Card.read(tmp_path / "tiny.toml")
    check_path(card).write_text("{}", encoding="utf-8")
    model = _load(tmp_path)
    assert model.check is None


def test_a_reference_has_no_card_to_keep_a_check_beside() -> None:
    ended = check("timm/test_resnet?random=0", "--keep")
    assert ended.exit_code == 3
    assert "camserve card timm/test_resnet?random=0 --out" in ended.stderr


def _load(folder: Path) -> ModelInfo:
    settings = Settings(models_dir=folder, models=("tiny",), engine="torch", precision="fp32")
    model = Model.load(Card.read(folder / "tiny.toml"), prepare_device("cpu", 1), settings, Metrics())
    return model.describe()

"""A model read with its labels: probabilities, which classes a request means, cards that do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.engine.cards.card import Card
from service.engine.device import Device
from service.errors import ClassNotFound, ConfigurationError, ParameterInvalid
from service.explain.model import ClassScores, ClassSelection, Model, select_classes
from service.explain.options import Targets
from service.imaging.geometry import mean_color
from service.telemetry import Metrics
from tests.explain.small_service import LAYER, load_small, small_model, small_settings
from tests.model_cards import write_card


def test_as_many_labels_as_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_small(monkeypatch)
    settings = small_settings(tmp_path)
    write_card(tmp_path, "tiny", LAYER, labels=9)
    card = Card.read(tmp_path / "tiny.toml")
    with pytest.raises(ConfigurationError, match="card tiny: labels: there are 9 labels, but the network has 10 classes"):
        Model.load(card, Device("cpu"), settings, Metrics())


def test_a_card_may_bound_its_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model(tmp_path, monkeypatch, ("[explain]", "[runtime]\nmax_batch_size = 3\n[explain]"))
    assert model.max_batch_size == 3


def test_padding_has_the_mean_colour(model: Model) -> None:
    assert mean_color(model.network.preprocessing) == (128, 128, 128)


def test_probabilities_are_the_softmax(model: Model) -> None:
    logits = np.array([1000, 1000, 999, -1000, 0, 0, 0, 0, 0, 0], np.float32)
    scores = ClassScores(logits, model.labels)
    found = [scores.of(class_id) for class_id in range(10)]
    assert sum(one.probability for one in found) == pytest.approx(1)
    assert found[0].probability == found[1].probability == pytest.approx(np.e * found[2].probability)
    assert found[3].probability == 0
    assert (found[2].logit, found[2].label, found[2].wordnet_id) == (999, "class 2", None)


def test_the_best_come_best_first_and_ties_in_order_of_their_ids(model: Model) -> None:
    scores = ClassScores(np.array([0, 5, 5, 9, 0, 0, 0, 0, 0, 0], np.float32), model.labels)
    assert [one.class_id for one in scores.best(4)] == [3, 1, 2, 0]
    assert len(scores.best(99)) == 10


@pytest.mark.parametrize(
    ("targets", "selection"),
    [
        ({}, ClassSelection(classes=(), best=1, versus=None, listed=5)),
        ({"top_k": 3}, ClassSelection(classes=(), best=3, versus=None, listed=3)),
        ({"top_k": 400}, ClassSelection(classes=(), best=10, versus=None, listed=10)),
        ({"class_id": 0}, ClassSelection(classes=(0,), best=0, versus=None, listed=5)),
        (
            {"class_id": "7,0", "class_name": ["CLASS 3", "class 0"]},
            ClassSelection(classes=(7, 0, 3, 0), best=0, versus=None, listed=5),
        ),
        ({"class_id": 4, "top_k": 2}, ClassSelection(classes=(4,), best=0, versus=None, listed=2)),
        ({"versus": 0}, ClassSelection(classes=(), best=1, versus=0, listed=5)),
        ({"versus": "0"}, ClassSelection(classes=(), best=1, versus=0, listed=5)),
        ({"versus": "class 9"}, ClassSelection(classes=(), best=1, versus=9, listed=5)),
    ],
)
def test_which_classes_are_meant(model: Model, targets: dict[str, Any], selection: ClassSelection) -> None:
    assert select_classes(Targets(**targets), model.labels, explain=True, max_classes=16) == selection


def test_predicting_explains_nothing(model: Model) -> None:
    assert select_classes(Targets(class_id=3, top_k=2), model.labels, explain=False, max_classes=16) == ClassSelection(
        classes=(), best=0, versus=None, listed=2
    )


@pytest.mark.parametrize("targets", [{"class_id": 10}, {"class_name": "unicorn"}, {"versus": 10}, {"versus": "unicorn"}])
def test_a_class_that_is_not_there(model: Model, targets: dict[str, Any]) -> None:
    with pytest.raises(ClassNotFound) as refused:
        select_classes(Targets(**targets), model.labels, explain=True, max_classes=16)
    assert "unicorn" not in refused.value.detail


@pytest.mark.parametrize(
    "targets", [{"class_id": "1,2,3"}, {"class_id": 1, "class_name": ["class 2", "class 3"]}, {"top_k": 3}]
)
def test_too_many_classes_are_no_silent_few(model: Model, targets: dict[str, Any]) -> None:
    with pytest.raises(ParameterInvalid, match="at most 2 classes"):
        select_classes(Targets(**targets), model.labels, explain=True, max_classes=2)

"""The closed set of options: how values may be written, what is refused, and that no other room disagrees about names."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from pydantic import ValidationError

from service.engine.cards import card
from service.explain.options import ColorMap, Fit, Options, OverlayType, Polarity, Scale, Targets
from service.imaging import color_maps, geometry, heatmap, overlay


@pytest.mark.parametrize(
    ("given", "found"),
    [(None, ()), (0, (0,)), ("0", (0,)), ("281, 285", (281, 285)), (["281,285", 243], (281, 285, 243)), ([], ())],
)
def test_class_ids_are_repeated_or_written_with_commas(given: Any, found: tuple[int, ...]) -> None:
    assert Options(class_id=given).class_id == found


@pytest.mark.parametrize(
    ("given", "found"), [(None, ()), ("tabby, tabby cat", ("tabby, tabby cat",)), (["a, b", "c"], ("a, b", "c"))]
)
def test_names_are_never_split(given: Any, found: tuple[str, ...]) -> None:
    assert Options(class_name=given, layer=given) == Options(class_name=found, layer=found)
    assert Options(layer=given).layer == found


@pytest.mark.parametrize(("given", "found"), [("282", 282), (0, 0), ("tabby", "tabby"), ("²", "²"), ("9" * 19, "9" * 19)])
def test_a_number_to_contrast_with_is_a_class_id(given: Any, found: int | str) -> None:
    assert Options(versus=given).versus == found


@pytest.mark.parametrize(("given", "found"), [("input", "input"), ("original", "original"), ("300", 300), (16384, 16384)])
def test_sizes(given: Any, found: int | str) -> None:
    assert Options(size=given).size == found


@pytest.mark.parametrize(
    "given",
    [
        {"alpha": 1.01}, {"alpha": "nan"}, {"alpha": "inf"}, {"size": 7}, {"size": 16385}, {"size": "large"}, {"class_id": -1},
        {"class_id": "1,,2"}, {"class_id": "1.5"}, {"class_name": ""}, {"versus": ""}, {"versus": -1}, {"top_k": 0},
        {"top_k": 1001}, {"color_map": "Jet"}, {"color_map": "diverging"}, {"polarity": "signed"}, {"scale": ""},
        {"clip_percent_lowerbound": 50, "clip_percent_upperbound": 50}, {"clip_percent_upperbound": 101}, {"overlay": "maybe"},
        {"heatmap": "npz"}, {"format": "gif"}, {"class": 281}, {"model": "m" * 257},
    ],
)  # fmt: skip
def test_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Options(**given)


def test_the_targets_are_the_options_targets() -> None:
    asked = {"class_id": (1, 0), "class_name": ("lynx",), "versus": 0, "top_k": 4}
    assert Options(**asked, alpha=0.1).targets == Targets(**asked)


def test_options_are_the_same_in_every_room() -> None:
    assert set(get_args(ColorMap)) == set(color_maps.NAMES) - {"diverging"}
    assert get_args(Fit) == get_args(geometry.Fit) == get_args(card.Fit)
    assert get_args(Polarity) == get_args(heatmap.Polarity)
    assert get_args(Scale) == get_args(heatmap.Scale)
    assert set(get_args(OverlayType)) == {*get_args(overlay.OverlayType), "panel", "curves"}

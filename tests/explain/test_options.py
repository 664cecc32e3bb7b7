"""The closed sets of options: how values may be written, what is refused, and what each route has."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from service.engine.types import MethodParameters
from service.explain.options import ExplainOptions, InspectOptions, PredictOptions, Targets


@pytest.mark.parametrize(
    ("given", "found"),
    [(None, ()), (0, (0,)), ("0", (0,)), ("281, 285", (281, 285)), (["281,285", 243], (281, 285, 243)), ([], ())],
)
def test_class_ids_are_repeated_or_written_with_commas(given: Any, found: tuple[int, ...]) -> None:
    assert ExplainOptions(class_id=given).class_id == found


@pytest.mark.parametrize(
    ("given", "found"), [(None, ()), ("tabby, tabby cat", ("tabby, tabby cat",)), (["a, b", "c"], ("a, b", "c"))]
)
def test_names_are_never_split(given: Any, found: tuple[str, ...]) -> None:
    assert ExplainOptions(class_name=given, layer=given) == ExplainOptions(class_name=found, layer=found)
    assert ExplainOptions(layer=given).layer == found


@pytest.mark.parametrize(("given", "found"), [("282", 282), (0, 0), ("tabby", "tabby"), ("²", "²"), ("9" * 19, "9" * 19)])
def test_a_number_to_contrast_with_is_a_class_id(given: Any, found: int | str) -> None:
    assert ExplainOptions(versus=given).versus == found


@pytest.mark.parametrize(
    ("given", "found"), [("input", "input"), ("original", "original"), ("grid", "grid"), ("300", 300), (16384, 16384)]
)
def test_sizes(given: Any, found: int | str) -> None:
    assert ExplainOptions(size=given).size == found


@pytest.mark.parametrize(
    "given",
    [
        {"alpha": 1.01}, {"alpha": "nan"}, {"alpha": "inf"}, {"size": 7}, {"size": 16385}, {"size": "large"}, {"class_id": -1},
        {"class_id": "1,,2"}, {"class_id": "1.5"}, {"class_name": ""}, {"versus": ""}, {"versus": -1}, {"top_k": 0},
        {"top_k": 1001}, {"color_map": "Jet"}, {"color_map": "divergent"}, {"polarity": "signed"}, {"scale": ""},
        {"clip_percent_lowerbound": 50, "clip_percent_upperbound": 50}, {"clip_percent_upperbound": 101}, {"overlay": "maybe"},
        {"interpolation": "lanczos"}, {"overlay_type": "faded"},
        {"heatmap": "npz"}, {"format": "gif"}, {"class": 281}, {"model": "m" * 257},
    ],
)  # fmt: skip
def test_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ExplainOptions(**given)


def test_the_options_of_explain_are_targets_and_parameters_of_methods() -> None:
    options = ExplainOptions(class_id=(1, 0), versus=0, top_k=4, samples=8)
    assert isinstance(options, Targets)
    assert isinstance(options, MethodParameters)
    assert (options.class_id, options.versus, options.top_k, options.samples) == ((1, 0), 0, 4, 8)


def test_each_route_has_its_own_options() -> None:
    predict, explain, inspect = (set(model.model_fields) for model in (PredictOptions, ExplainOptions, InspectOptions))
    assert predict == {"model", "fit", "format", "top_k"}
    assert predict < explain
    assert "channels" not in explain
    assert inspect - explain == {"channels"}
    assert not inspect & {"method", "polarity", "scale", "alpha", "overlay", "evaluate", "samples"}

"""The sweep: its list leaves no family out, its program selects and reports, and a third of it runs with the slow tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torchvision

from tests.commands import invoke
from tests.sweep.__main__ import app, run, select, select_third
from tests.sweep.check import MAX_DIFFERENCE
from tests.sweep.families import FAMILIES, NOT_PHOTOGRAPHS, TIMM, TORCHVISION, TRANSFORMERS, Family
from tests.sweep.rows import Row, document, read_rows, summary

transformers: Any = pytest.importorskip("transformers")

THIRD = "2/3"  # which third the slow tests run
TIMEOUT_S = 600.0


def test_every_module_of_timm_is_there_with_a_network_of_its_own() -> None:
    assert set(TIMM) == set(timm.list_modules())
    for module, network in TIMM.items():
        assert network in timm.list_models(module=module)


def test_every_family_of_torchvision_is_there() -> None:
    models = torchvision.models
    modules = {name: models.get_model_builder(name).__module__ for name in models.list_models(module=models)}
    assert set(TORCHVISION) == {module.rpartition(".")[2] for module in modules.values()}
    for family, network in TORCHVISION.items():
        assert modules[network] == f"torchvision.models.{family}"


def test_every_classifier_of_transformers_is_there_or_takes_no_photograph() -> None:
    names = transformers.models.auto.modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
    assert {*TRANSFORMERS, *NOT_PHOTOGRAPHS} == set(names)
    assert not TRANSFORMERS.keys() & NOT_PHOTOGRAPHS.keys()


def test_the_thirds_are_the_whole() -> None:
    families = list(FAMILIES.values())
    thirds = [select_third(families, third) for third in ("1/3", "2/3", "3/3")]
    assert sorted(family.key for third in thirds for family in third) == sorted(FAMILIES)
    assert max(map(len, thirds)) - min(map(len, thirds)) <= 1


def test_networks_are_selected_by_any_of_their_names() -> None:
    assert [family.key for family in select(("coat_tiny", "cvt"), None, "")] == ["timm:coat", "transformers:cvt"]
    assert [family.key for family in select(("resnet",), "transformers", "")] == ["transformers:resnet"]
    with pytest.raises(ValueError, match="No such network: nonsense"):
        select(("coat_tiny", "nonsense"), None, "")


EXPLAINED = Row(key="timm:coat", layer="norm", grid=(7, 7), layout="tokens", seconds=2.5, rejected=1)


def test_a_row_is_explained_where_its_map_is_right() -> None:
    assert EXPLAINED.with_difference(1e-5, MAX_DIFFERENCE).outcome == "explained"
    assert EXPLAINED.with_difference(1e-3, MAX_DIFFERENCE).outcome == "failed"
    assert EXPLAINED.with_failure("no map").outcome == "failed"
    assert Row(key="timm:coat", refusal="because").outcome == "refused"


def test_the_last_row_of_a_network_counts(tmp_path: Path) -> None:
    rows = [EXPLAINED.with_failure("once"), EXPLAINED.with_difference(1e-6, MAX_DIFFERENCE), Row(key="timm:gone")]
    (tmp_path / "rows.jsonl").write_text("".join(row.to_json() + "\n" for row in rows))
    assert read_rows(tmp_path / "rows.jsonl") == {"timm:coat": rows[1]}
    assert read_rows(tmp_path / "nothing.jsonl") == {}


def test_the_document_has_every_network_and_says_what_was_not_run() -> None:
    rows = {"timm:coat": EXPLAINED.with_difference(1e-6, MAX_DIFFERENCE), "transformers:siglip2": Row(
        key="transformers:siglip2", refusal="it takes a | list"
    )}  # fmt: skip
    text = document(rows, "a machine")
    assert "| coat_tiny (coat) | norm (1 rejected) | 7 x 7 | tokens | 1e-06 | 2.5 |" in text
    assert "| siglip2 | refused: it takes a / list |" in text
    assert text.count("not run | |") == len(FAMILIES) - 2
    assert summary(rows, "timm") == f"1 of {len(TIMM)} explained, {len(TIMM) - 1} not run"


def test_the_program_explains_itself_and_refuses_unknown_names() -> None:
    told = invoke(app, "--help")
    assert told.exit_code == 0
    for option in ("--family", "--third", "--timeout", "--resume"):
        assert option in told.output
    assert invoke(app, "nonsense").exit_code == 2


def test_a_network_that_takes_too_long_is_stopped() -> None:
    row = run(FAMILIES["timm:resnet"], 0.01)
    assert row.failure == "not done in 0 s"


@pytest.mark.slow
@pytest.mark.parametrize("family", select_third(list(FAMILIES.values()), THIRD), ids=lambda family: family.key)
def test_a_family_is_explained_or_refused_with_a_reason(family: Family) -> None:
    row = run(family, TIMEOUT_S)
    assert row.outcome in {"explained", "refused"}, row
    assert row.refusal is None or len(row.refusal.split()) > 8

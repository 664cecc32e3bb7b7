"""The tables of the oracle matrix have a row for every method, and no cell that says nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from service.engine.methods import METHODS
from tests.parity.matrix import ALONE, NETWORKS, ROWS, record, write


@dataclass
class Report:
    user_properties: list[tuple[str, object]] = field(default_factory=list)

    def record(self, name: str, value: object) -> None:
        self.user_properties.append((name, value))


def test_every_method_is_compared_or_said_to_be_alone() -> None:
    shared = {method for rows in ROWS.values() for method in rows}
    assert shared | set(ALONE) == set(METHODS)
    assert not shared & set(ALONE)


def test_what_was_not_run_says_so_and_conventions_are_notes(tmp_path: Path) -> None:
    report = Report()
    record(report.record, "captum", "saliency", "resnet18", 2.5e-7)
    record(report.record, "captum", "lime", "vit_b_16", 3e-5, "by our rule")
    record(report.record, "captum", "lime", "swin_t", None, "for no reason")
    (text,) = write([report, object()], tmp_path)
    assert (tmp_path / "captum.txt").read_text() == text
    rows = {line.split()[0]: line for line in text.splitlines()[2:]}
    assert set(rows) == {*ROWS["captum"], "a:", "b:"}
    assert (rows["a:"], rows["b:"]) == ("a: for no reason", "b: by our rule")
    assert rows["saliency"].split()[1] == "2.5e-07"
    assert rows["lime"].split()[-4:] == ["none", "a", "3.0e-05", "b"]
    assert text.count("not run") == len(ROWS["captum"]) * len(NETWORKS) - 3

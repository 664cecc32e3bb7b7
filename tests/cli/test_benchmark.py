"""`camserve bench`: measures what it says it measures, and says why when it cannot."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from service.cli import app
from service.cli.benchmark import BatchTiming, measure
from tests.commands import invoke
from tests.networks import Pooled, network, seeded


def test_a_batch_is_timed_both_ways() -> None:
    timing = measure(network(seeded(Pooled), "block"), 3, rounds=3)
    assert timing.batch_size == 3
    assert 0 < timing.predict_s < 10
    assert 0 < timing.explain_s < 10
    assert timing.ratio > 0
    assert timing.explanations_per_s == pytest.approx(3 / timing.explain_s)


def test_throughput_is_the_batch_over_its_time() -> None:
    assert BatchTiming(batch_size=8, predict_s=0.1, explain_s=0.2, ratio=2.0).explanations_per_s == pytest.approx(40)


def test_the_command_prints_a_row_for_each_batch_size() -> None:
    done = invoke(app, "bench", "--rounds", "1", "--max-batch-size", "2")
    assert done.exit_code == 0, done.output
    assert re.search(r"efficientnet_lite0: \w+ \w+ on \w+, \d+ threads, loaded and warmed in [\d.]+ s", done.output)
    rows = re.findall(r"│ (\d+) +│ ([\d.]+) ms +│ ([\d.]+) ms +│ ([\d.]+) +│ ([\d.]+)", done.output)
    assert [int(row[0]) for row in rows] == [1, 2]
    for batch, _, explain_ms, _, per_second in rows:
        assert float(per_second) == pytest.approx(1000 * int(batch) / float(explain_ms), rel=0.05)


def test_a_model_that_is_not_there_ends_with_a_reason(tmp_path: Path) -> None:
    done = invoke(app, "bench", "--model", "nonesuch")
    assert done.exit_code == 3
    assert "nonesuch" in done.stderr
    empty = invoke(app, "bench", "--models-dir", tmp_path)
    assert empty.exit_code == 3
    assert "no model cards" in empty.stderr.replace("\n", " ")


@pytest.mark.parametrize(
    ("rounds", "reason"),
    [("0", "--rounds: Must be >= 1."), ("10001", "--rounds: Must be <= 10000."), ("x", "--rounds: unable")],
)
def test_rounds_are_counted_from_one(rounds: str, reason: str) -> None:
    done = invoke(app, "bench", "--rounds", rounds)
    assert done.exit_code == 2
    assert reason in done.stderr

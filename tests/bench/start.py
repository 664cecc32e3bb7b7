"""P10: from the command to a ready service, with the default model and files in the cache of the system."""

from __future__ import annotations

from collections.abc import Iterator

from tests.bench.processes import camserve, serving
from tests.bench.report import Row, Target
from tests.bench.timing import Schedule

MODEL = "efficientnet_lite0"


def measure(plan: Schedule, wanted: set[str]) -> Iterator[Row]:
    """P10."""
    if "P10" not in wanted:
        return
    command, ready, environment = camserve(MODEL)
    took = []
    for _ in range(1 + min(plan.rounds, 3)):  # the first fills the cache of files
        with serving(*command, ready=ready, **environment) as server:
            took.append(server.ready_s)
    yield Row("P10", f"start to ready, {MODEL}", tuple(took[1:]), "s", Target("<=", 10), note=f"the first {took[0]:.1f} s")

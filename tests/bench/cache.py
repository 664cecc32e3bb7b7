"""P13: what the cache saves. One photograph again and again, to a service with a cache and to one without."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from tests.bench.http import LoadTest, upload
from tests.bench.processes import camserve, serving
from tests.bench.report import Row, Side
from tests.bench.timing import Schedule, columns, ratios, rounds

MODEL = "resnet50"


def measure(plan: Schedule, wanted: set[str]) -> Iterator[Row]:
    """P13, which has no target. With a cache only the first of all requests is a miss."""
    if "P13" not in wanted:
        return
    command, ready, environment = camserve(MODEL)
    with ExitStack() as stack:
        load = LoadTest(upload(Path(stack.enter_context(tempfile.TemporaryDirectory()))), plan)
        hit = stack.enter_context(serving(*command, ready=ready, **environment | {"CAMSERVE_CACHE_ENTRIES": "1024"})).port
        miss = stack.enter_context(serving(*command, ready=ready, **environment)).port
        for port in (hit, miss):
            load.once(port, 4, seconds=1.0)
        sides = {
            "asked again 1": load.latency("asked again 1", hit, 1),
            "asked anew 1": load.latency("asked anew 1", miss, 1),
            "asked again 16": load.throughput("asked again 16", hit, 16),
            "asked anew 16": load.throughput("asked anew 16", miss, 16),
        }
        figures = columns(list(rounds(sides, min(plan.rounds, 3))))
    one, other = figures["asked again 1"], figures["asked anew 1"]
    yield Row(
        "P13", f"p50 of an overlay asked for again, {MODEL}, 1 client", tuple(ratios(other, one)), "x", None,
        (Side("again", tuple(1000 * s for s in one), "ms"), Side("anew", tuple(1000 * s for s in other), "ms")),
    )  # fmt: skip
    one, other = figures["asked again 16"], figures["asked anew 16"]
    yield Row(
        "P13", f"overlays/s asked for again, {MODEL}, 16 clients", tuple(ratios(one, other)), "x", None,
        (Side("again", tuple(one), "/s"), Side("anew", tuple(other), "/s")),
        load.last["asked again 16"].percentiles(),
    )  # fmt: skip

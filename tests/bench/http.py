"""P4 to P7: the whole way over HTTP. A photograph goes up, a full-size PNG overlay comes back, from processes of their own.

All servers of a model run at once and are loaded in turn, so that every ratio is of figures a few seconds apart; the others
are idle meanwhile.
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

from tests.bench import engine
from tests.bench.image import jpeg
from tests.bench.load import Job, Measured, send
from tests.bench.processes import camserve, serving
from tests.bench.report import Row, Side, Skipped, Target
from tests.bench.timing import Schedule, columns, ratios, rounds, seconds_of

IDS = {"P4", "P5", "P6", "P7"}
BATCH = 8
BOUNDARY = "camserve-benchmark"
# Seconds of one measurement, a round each. The slow peers need longer to answer often enough.
SPANS = {"tutorial 16": 9.0, "litserve 16": 9.0, "tutorial 1": 5.0, "litserve 1": 5.0}
SPAN_S = 4.0
RAMP_S = 1.5


def measure(plan: Schedule, wanted: set[str]) -> Iterator[Row | Skipped]:
    """The rows wanted of P4, P5, P6, P7."""
    if wanted & IDS:
        yield from of_model("resnet50", plan, wanted, targets=True)
        if not plan.quick:
            yield from of_model("efficientnet_lite0", plan, wanted, targets=False)


def of_model(name: str, plan: Schedule, wanted: set[str], *, targets: bool) -> Iterator[Row | Skipped]:
    """One model's rows; LitServe's only where the targets are."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        command, ready, environment = camserve(name)
        own = stack.enter_context(serving(*command, ready=ready, **environment)).port
        load = LoadTest(upload(folder), plan)
        sides: dict[str, Callable[[], float]] = {}
        sides["camserve 1"] = load.latency("camserve 1", own, 1)
        sides["camserve 16"] = load.throughput("camserve 16", own, 16)
        if "P4" in wanted:
            tutorial = ("-m", "tests.bench.tutorial", "--model", name)
            peer = stack.enter_context(serving(*tutorial, ready="/")).port
            sides["tutorial 1"] = load.latency("tutorial 1", peer, 1)
            sides["tutorial 16"] = load.throughput("tutorial 16", peer, 16)
        if "P7" in wanted:
            sides["camserve 64"] = load.throughput("camserve 64", own, 64)
        if wanted & {"P5", "P6"}:
            network = engine.load(name)
            one, many = engine.explanation(network, 1), engine.explanation(network, BATCH)
            sides["json 1"] = load.latency("json 1", own, 1, accept="application/json")
            sides["engine 1"] = seconds_of(one, span_s=plan.seconds(1.5))
            batch = seconds_of(many, span_s=plan.seconds(2.0))
            sides["engine 8"] = lambda: BATCH / batch()
            one(), many()
        for port in {own, *((peer,) if "P4" in wanted else ())}:
            load.once(port, 4, seconds=1.0)
        figures = columns(list(rounds(sides, min(plan.rounds, 3))))
        yield from _rows(name, figures, load, wanted, targets=targets)
        if "P4" in wanted:
            yield _open_loop(name, figures, own, load)
    if "P4" in wanted and targets:
        yield _litserve(name, plan)


class LoadTest:
    """Sends requests, and keeps what came of them: `last` by side, and the server's own time for the network by round."""

    def __init__(self, upload: Path, plan: Schedule) -> None:
        self._upload, self._plan = upload, plan
        self.last: dict[str, Measured] = {}
        self.infer_ms: dict[str, list[float]] = {}

    def throughput(self, name: str, port: int, clients: int) -> Callable[[], float]:
        """A measure: answers per second."""
        return lambda: self._closed(name, port, clients, "image/png").throughput

    def latency(self, name: str, port: int, clients: int, *, accept: str = "image/png") -> Callable[[], float]:
        """A measure: the median seconds of an answer."""
        return lambda: self._closed(name, port, clients, accept).p50

    def open_loop(self, port: int, rate: float) -> Measured:
        """So many requests per second, whatever becomes of them."""
        return send(self._job(port, "image/png", 1, rate, self._plan.seconds(2 * SPAN_S)))

    def once(self, port: int, clients: int, *, seconds: float) -> Measured:
        """A closed loop whose figures are not kept: to warm up."""
        return send(self._job(port, "image/png", clients, 0, seconds))

    def _closed(self, name: str, port: int, clients: int, accept: str) -> Measured:
        seconds = self._plan.seconds(SPANS.get(name, SPAN_S))
        self.last[name] = send(self._job(port, accept, clients, 0, seconds))
        self.infer_ms.setdefault(name, []).append(self.last[name].stages_ms.get("infer", 0.0))
        return self.last[name]

    def _job(self, port: int, accept: str, clients: int, rate: float, seconds: float) -> Job:
        content_type = f"multipart/form-data; boundary={BOUNDARY}"
        return Job(port, "/explain", str(self._upload), content_type, accept, clients, rate, seconds, RAMP_S)


def _rows(
    name: str, figures: dict[str, list[float]], load: LoadTest, wanted: set[str], *, targets: bool
) -> Iterator[Row | Skipped]:
    def target(made: Target) -> Target | None:
        return made if targets else None

    def rates(*sides: str) -> tuple[Side, ...]:
        return tuple(Side(side, tuple(figures[side]), "/s") for side in sides)

    def times(*sides: str) -> tuple[Side, ...]:
        return tuple(Side(side, tuple(1000 * seconds for seconds in figures[side]), "ms") for side in sides)

    if "P4" in wanted:
        yield Row(
            "P4", f"overlays/s against the tutorial service, {name}, 16 clients",
            tuple(ratios(figures["camserve 16"], figures["tutorial 16"])), "x", target(Target(">=", 60)),
            rates("camserve 16", "tutorial 16"),
            f"{load.last['camserve 16'].percentiles()} against {load.last['tutorial 16'].percentiles()}",
        )  # fmt: skip
        yield Row(
            "P4", f"p50 against the tutorial service, {name}, 1 client",
            tuple(ratios(figures["tutorial 1"], figures["camserve 1"])), "x", target(Target(">=", 18)),
            times("camserve 1", "tutorial 1"), _stages(load.last["camserve 1"]),
        )  # fmt: skip
    if "P5" in wanted:
        yield Row(
            "P5", f"HTTP at 16 clients / engine alone in batches of {BATCH}, {name}",
            tuple(ratios(figures["camserve 16"], figures["engine 8"])), "x", target(Target(">=", 0.6)),
            rates("camserve 16", "engine 8"),
        )  # fmt: skip
    if "P6" in wanted:
        # The engine's time is the server's own of the same requests: the difference of two figures taken apart may be negative.
        added = [1000 * a - b for a, b in zip(figures["json 1"], load.infer_ms["json 1"], strict=True)]
        yield Row(
            "P6", f"what the service adds to the engine, JSON heatmap, {name}, 1 client",
            tuple(added), "ms", target(Target("<=", 6)), times("json 1", "engine 1"), _stages(load.last["json 1"]),
        )  # fmt: skip
    if "P7" in wanted:
        yield Row(
            "P7", f"64 clients / 16 clients, {name}",
            tuple(ratios(figures["camserve 64"], figures["camserve 16"])), "x", target(Target(">=", 0.95)),
            rates("camserve 64", "camserve 16"), load.last["camserve 64"].percentiles(),
        )  # fmt: skip


def _open_loop(name: str, figures: dict[str, list[float]], port: int, load: LoadTest) -> Row:
    rate = 0.7 * min(figures["camserve 16"])
    measured = load.open_loop(port, rate)
    return Row(
        "P4", f"p50 of an open loop at 70 % of the closed one's rate, {name}",
        (1000 * measured.p50,), "ms", None, (Side("sent", (rate,), "/s"),), measured.percentiles(),
    )  # fmt: skip


def _litserve(name: str, plan: Schedule) -> Row | Skipped:
    """The batching framework beside camserve, started anew: three servers at once would not fit a small machine."""
    what = f"overlays/s against LitServe in batches of 8, {name}, 16 clients"
    try:
        importlib.import_module("litserve")
    except ImportError:
        return Skipped("P4", what, "litserve is not installed; pip install '.[bench]'")
    command, ready, environment = camserve(name)
    with ExitStack() as stack:
        load = LoadTest(upload(Path(stack.enter_context(tempfile.TemporaryDirectory()))), plan)
        own = stack.enter_context(serving(*command, ready=ready, **environment)).port
        lit = stack.enter_context(serving("-m", "tests.bench.litserver", "--model", name, ready="/health")).port
        for port in (own, lit):
            load.once(port, 4, seconds=1.0)
        sides = {
            "camserve 16": load.throughput("camserve 16", own, 16),
            "litserve 16": load.throughput("litserve 16", lit, 16),
        }
        figures = columns(list(rounds(sides, min(plan.rounds, 2))))
    return Row(
        "P4", what, tuple(ratios(figures["camserve 16"], figures["litserve 16"])), "x", None,
        tuple(Side(side, tuple(values), "/s") for side, values in figures.items()), load.last["litserve 16"].percentiles(),
    )  # fmt: skip


def upload(folder: Path) -> Path:
    """The photograph as an HTML form sends it; both services take the field `file`."""
    head = (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="photo.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'
    )
    path = folder / "upload"
    path.write_bytes(head.encode() + jpeg() + f"\r\n--{BOUNDARY}--\r\n".encode())
    return path


def _stages(measured: Measured) -> str:
    return "server: " + ", ".join(f"{stage} {milliseconds:.1f}" for stage, milliseconds in measured.stages_ms.items()) + " ms"

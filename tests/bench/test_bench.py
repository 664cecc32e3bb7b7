"""The benchmark's own arithmetic, on toys: what it prints must be what it measured. No speed is asserted anywhere."""

from __future__ import annotations

import asyncio
import io
import threading
import time
from pathlib import Path

import pytest
from rich.console import Console

from tests.bench import image
from tests.bench.load import Job, percentile, run
from tests.bench.processes import HOST
from tests.bench.report import Row, Side, Skipped, Target, figure, table
from tests.bench.timing import Spread, columns, ratios, rounds, seconds_of


def test_sides_are_measured_in_turn_and_ratios_taken_round_by_round() -> None:
    order: list[str] = []
    figures = {"a": iter([2.0, 8.0, 3.0]), "b": iter([1.0, 2.0, 3.0])}

    def side(name: str) -> float:
        order.append(name)
        return next(figures[name])

    took = columns(list(rounds({"a": lambda: side("a"), "b": lambda: side("b")}, 3)))
    assert order == ["a", "b"] * 3
    assert ratios(took["a"], took["b"]) == [2.0, 4.0, 1.0]
    assert Spread.of(ratios(took["a"], took["b"])) == Spread(2.0, 1.0, 4.0)


def test_a_call_is_timed() -> None:
    calls = []

    def call() -> None:
        calls.append(1)
        time.sleep(0.01)

    seconds = seconds_of(call, span_s=0.0, least=3)()
    assert len(calls) == 3
    assert 0.01 <= seconds < 0.5


def test_the_table_shows_the_median_the_spread_and_the_verdict() -> None:
    row = Row("P1", "this / that", (1.0, 1.2, 1.1), "x", Target("<=", 1.1), (Side("this", (0.5, 0.7, 0.6), "ms"),), "a note")
    assert row.met is True
    assert Row("P2", "more", (4.9,), "x", Target(">=", 5)).met is False
    assert Row("P2", "more", (4.9,), "x", None).met is None
    out = Console(width=160, file=io.StringIO(), record=True)
    out.print(table([Skipped("P10", "late", "not here"), row]))
    text = out.export_text()
    line = next(line for line in text.splitlines() if "this / that" in line)
    assert [cell.strip() for cell in line.strip("│").split("│")] == [
        "P1", "this / that", "1.10x", "1.00-1.20", "<= 1.1", "yes", "this 0.600 ms; a note",
    ]  # fmt: skip
    assert text.index("P1 ") < text.index("P10")
    document = row.document()
    assert (document["median"], document["met"], document["target"]) == (1.1, True, "<= 1.1")


@pytest.mark.parametrize(
    ("value", "shown"), [(0, "0"), (0.012345, "0.0123"), (1.0, "1.00"), (54.321, "54.3"), (1245.6, "1246")]
)
def test_figures_have_three_digits(value: float, shown: str) -> None:
    assert figure(value) == shown


def test_percentiles_are_of_the_sorted_values() -> None:
    values = list(range(100, 0, -1))
    assert [percentile(values, percent) for percent in (50, 90, 99)] == [51, 91, 100]
    assert percentile([], 50) == 0


def test_the_image_is_what_the_table_says() -> None:
    assert image.pixels().shape == (375, 500, 3)
    assert abs(len(image.jpeg()) - image.BYTES) < 10_000
    assert len({part.tobytes() for part in image.batch(3, 32, 32)}) == 3


@pytest.mark.parametrize(
    ("clients", "rate", "ramp"), [(3, 0.0, 0.0), (3, 0.0, 0.5), (1, 40.0, 0.0)], ids=["closed", "closed, with a ramp", "open"]
)
def test_load_counts_answers_and_their_time(tmp_path: Path, clients: int, rate: float, ramp: float) -> None:
    """A server that takes 20 ms: three clients in a closed loop get 150 answers a second, an open loop what it sends."""
    (tmp_path / "body").write_bytes(b"x" * 1000)
    with_server: list[int] = []
    listening, stop = threading.Event(), threading.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readline():
            assert head == b"POST /explain HTTP/1.1\r\n"
            await reader.readuntil(b"\r\n\r\n")
            assert len(await reader.readexactly(1000)) == 1000
            await asyncio.sleep(0.02)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nServer-Timing: infer;dur=20.00\r\n\r\nhello")
        writer.close()

    async def serve() -> None:
        server = await asyncio.start_server(answer, HOST, 0)
        with_server.append(server.sockets[0].getsockname()[1])
        listening.set()
        await asyncio.to_thread(stop.wait)
        server.close()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        assert listening.wait(10)
        seconds = 0.5
        body, types = str(tmp_path / "body"), ("text/plain", "image/png")
        measured = run(Job(with_server[0], "/explain", body, *types, clients, rate, seconds, ramp))
    finally:
        stop.set()
        thread.join(10)
    assert measured.errors == 0
    assert measured.answer_bytes == 5
    assert measured.stages_ms == {"infer": 20.0}
    assert 0.02 <= measured.p50 <= measured.p90 <= measured.p99
    if rate:
        assert measured.answers == int(rate * seconds)
    else:
        # What was sent before the ramp ended is answered after it, but not timed: one for each client.
        assert measured.throughput * seconds <= measured.answers + clients <= clients * (1 + seconds / 0.02)

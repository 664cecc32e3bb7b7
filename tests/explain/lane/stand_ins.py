"""Honest stand-ins for a network: real threads that run, wait at a gate, raise or answer too little; how a lane is asked."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from service.explain.scheduler import BatchResult, Deadline, Lane, LaneMetrics
from service.telemetry import Metrics

PATIENCE_S = 10.0  # how long a test waits for what must happen at once

Run = Callable[[Sequence[int]], Sequence[int | Exception]]


class StandInNetwork:
    """Answers `n` with `-n`. Keeps its batches; while its gate is shut, a batch stays inside."""

    def __init__(self, poison: frozenset[int] = frozenset(), *, error: BaseException | None = None) -> None:
        self.batches: list[list[int]] = []
        self.threads: set[str] = set()
        self.poison = poison
        self.error = error or ValueError("poison")
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)

    def __call__(self, items: Sequence[int]) -> Sequence[int | Exception]:
        self.batches.append(list(items))
        self.threads.add(threading.current_thread().name)
        self.entered.release()
        assert self.gate.wait(PATIENCE_S)
        if self.poison & set(items):
            raise self.error
        return [-item for item in items]

    async def busy(self) -> None:
        """Until one more batch is inside."""
        assert await asyncio.to_thread(self.entered.acquire, True, PATIENCE_S)


class RecordedMetrics(LaneMetrics):
    """Keeps what a lane tells its metrics."""

    def __init__(self) -> None:
        super().__init__(Metrics(), "net", "fast")
        self.depths: list[int] = []
        self.batches: list[tuple[int, float]] = []
        self.rates: list[float] = []
        self.waits: list[float] = []

    def depth(self, items: int) -> None:
        self.depths.append(items)

    def batch(self, items: int, seconds: float, seconds_per_pass: float) -> None:
        self.batches.append((items, seconds))
        self.rates.append(seconds_per_pass)

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)


def make_lane(run: Run, *, max_batch_size: int = 8, max_queue_size: int = 64, **options: Any) -> Lane[int, int]:
    given: dict[str, Any] = {"metrics": RecordedMetrics()} | options
    return Lane(
        lambda items, _deadlines: run(items), name="net", max_batch_size=max_batch_size, max_queue_size=max_queue_size, **given
    )


@asynccontextmanager
async def running_lane(run: Run, **options: Any) -> AsyncIterator[Lane[int, int]]:
    lane = make_lane(run, **options)
    await lane.start()
    try:
        yield lane
    finally:
        if isinstance(run, StandInNetwork):
            run.gate.set()
        await lane.close()


def soon() -> Deadline:
    return Deadline(PATIENCE_S)


def ask(lane: Lane[int, int], *items: int, within_s: float = PATIENCE_S) -> asyncio.Task[list[BatchResult[int]]]:
    """One request, as the explainer makes it: its deadline is enforced around it."""

    async def request() -> list[BatchResult[int]]:
        deadline = Deadline(within_s)
        async with deadline.enforce():
            return await lane.submit(items, deadline)

    return asyncio.create_task(request())


async def occupy(lane: Lane[int, int], network: StandInNetwork) -> asyncio.Task[list[BatchResult[int]]]:
    """The network holds item 0 at its shut gate."""
    network.gate.clear()
    first = ask(lane, 0)
    await network.busy()
    return first


async def until_waiting(lane: Lane[int, int], depth: int = 0, *, at_most: int | None = None) -> None:
    """Until exactly `depth` items wait, or `at_most` so many."""
    async with asyncio.timeout(PATIENCE_S):
        while lane.depth > at_most if at_most is not None else lane.depth != depth:  # noqa: ASYNC110  (a few turns of the loop; nothing in production needs an event here)
            await asyncio.sleep(0)


async def outcomes(*tasks: asyncio.Task[list[BatchResult[int]]]) -> list[list[int] | BaseException]:
    settled = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), PATIENCE_S)
    return [[result.value for result in one] if isinstance(one, list) else one for one in settled]

"""Honest stand-ins for a network: real threads that run, wait at a gate, raise or answer too little; how a batcher is asked."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from service.explain.batcher import Batcher
from service.explain.calls import BatchResult

PATIENCE_S = 10.0  # how long a test waits for what must happen at once


class Network:
    """Answers `n` with `-n`. Remembers its batches; while its gate is shut, a batch stays inside."""

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


@asynccontextmanager
async def batching(
    run: Callable[[Sequence[int]], Sequence[int | Exception]],
    *,
    max_batch_size: int = 8,
    max_queue_size: int = 64,
    **options: Any,
) -> AsyncIterator[Batcher[int, int]]:
    batcher = Batcher(run, name="net", max_batch_size=max_batch_size, max_queue_size=max_queue_size, **options)
    await batcher.start()
    try:
        yield batcher
    finally:
        if isinstance(run, Network):
            run.gate.set()
        await batcher.close()


def soon() -> float:
    return asyncio.get_running_loop().time() + PATIENCE_S


def ask(batcher: Batcher[int, int], *items: int, deadline: float | None = None) -> asyncio.Task[list[BatchResult[int]]]:
    return asyncio.create_task(batcher.submit(items, deadline=deadline if deadline is not None else soon()))


async def occupied(batcher: Batcher[int, int], network: Network) -> asyncio.Task[list[BatchResult[int]]]:
    """The network holds item 0 at its shut gate."""
    network.gate.clear()
    first = ask(batcher, 0)
    await network.busy()
    return first


async def until_waiting(batcher: Batcher[int, int], depth: int = 0, *, at_most: int | None = None) -> None:
    """Until exactly `depth` items wait, or `at_most` so many."""
    async with asyncio.timeout(PATIENCE_S):
        while batcher.depth > at_most if at_most is not None else batcher.depth != depth:  # noqa: ASYNC110  (a few turns of the loop; nothing in production needs an event here)
            await asyncio.sleep(0)


async def outcomes(*tasks: asyncio.Task[list[BatchResult[int]]]) -> list[list[int] | BaseException]:
    settled = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), PATIENCE_S)
    return [[done.value for done in one] if isinstance(one, list) else one for one in settled]

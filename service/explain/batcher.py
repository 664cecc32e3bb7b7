"""Many callers, one call: items wait in one line and go through `run` in batches, in threads of their own.

Knows nothing of images, networks or HTTP. An idle worker takes a lone item at once; while all are busy, the next batch gathers.

Everything but `run` happens on the event loop, so there are no locks. One `submit` is one `Call`, and a call is settled
once, by whoever comes first: its last answer, its first failure, its deadline, its caller leaving, or the worker's end.
Whoever comes later finds it settled and does nothing, so no caller's fate can disturb another's.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Generic

from service.errors import CamserveError, EngineError, ModelUnhealthy, NotReady, Overloaded, ShuttingDown
from service.explain.calls import BatchResult, Call, Item, Result, Ticket

RATE_SMOOTHING = 0.2  # weight of the newest batch in the mean of seconds per item

log = logging.getLogger(__name__)


class Batcher(Generic[Item, Result]):
    """Runs items in batches, first come, first served.

    `run` answers with as many results as it was given items, in order; an item whose result is an exception fails alone.
    When `run` raises, the batch is halved and tried again until what raises is alone, so one poisoned item among n costs
    2 log2(n) more calls and its neighbours succeed. An error that is no CamserveError becomes the cause of an EngineError.

    Args:
        run: called with 1 to `max_batch_size` items, in as many threads at once as there are workers.
        name: of the model; names the thread.
        max_batch_size: most items in one call of `run`.
        max_queue_size: most items waiting; those already running do not count.
        max_delay_s: longest wait for company, counted from the arrival of the oldest item; 0 dispatches at once.
        workers: most batches under way at once.
        on_batch: told the size and the seconds of every call of `run`.
        on_depth: told the number of items waiting whenever it changes.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Item]], Sequence[Result | Exception]],
        *,
        name: str,
        max_batch_size: int,
        max_queue_size: int,
        max_delay_s: float = 0.0,
        workers: int = 1,
        on_batch: Callable[[int, float], None] | None = None,
        on_depth: Callable[[int], None] | None = None,
    ) -> None:
        self._run = run
        self._name = name
        self._max_batch_size = max_batch_size
        self._max_queue_size = max_queue_size
        self._max_delay_s = max_delay_s
        self._on_batch = on_batch or _nobody
        self._on_depth = on_depth or _nobody

        # Ordered, and any ticket leaves in constant time: callers who give up must not hold places in the line.
        self._waiting: OrderedDict[Ticket[Item, Result], None] = OrderedDict()
        self._calls: set[Call[Result]] = set()
        self._seconds_per_item = 0.0
        self._wake = asyncio.Event()
        self._closing = False
        self._threads = ThreadPoolExecutor(max_workers=workers, thread_name_prefix=name)
        self._count = workers
        self._workers: list[asyncio.Task[None]] = []

    @property
    def depth(self) -> int:
        """Items waiting; those already running do not count."""
        return len(self._waiting)

    @property
    def alive(self) -> bool:
        """Whether the workers are there to answer."""
        return bool(self._workers) and not any(worker.done() for worker in self._workers)

    @property
    def retry_after_s(self) -> float:
        """Seconds until the items waiting now will have run, at the measured rate; at least 1."""
        return max(1.0, self._seconds_per_item * self.depth / self._count)

    async def start(self) -> None:
        """Start the workers, on the running loop. Once."""
        if self._workers:
            raise RuntimeError("a batcher starts once")
        for number in range(self._count):
            worker = asyncio.create_task(self._work(), name=f"batcher {self._name} {number}")
            worker.add_done_callback(self._ended)
            self._workers.append(worker)

    async def submit(self, items: Sequence[Item], *, deadline: float) -> list[BatchResult[Result]]:
        """Wait for the results of `items`, in order: all of them, or the first failure.

        Args:
            items: admitted together or not at all, though they may run in different batches.
            deadline: in the loop's time; the caller is answered then, even if a batch with its items is still running.

        Raises:
            Overloaded: more items would wait than `max_queue_size`.
            DeadlineExceeded: not all results were there in time.
            EngineError: an item failed.
            ShuttingDown, NotReady, ModelUnhealthy: closing, not started, or a worker has died.
        """
        if not items:
            return []
        self._admit(len(items))
        loop = asyncio.get_running_loop()
        call: Call[Result] = Call(size=len(items), deadline=deadline, future=loop.create_future())
        tickets = [Ticket(item=item, index=index, call=call, queued_at=time.perf_counter()) for index, item in enumerate(items)]
        expiry = loop.call_at(deadline, call.expire)
        self._calls.add(call)
        self._waiting.update(dict.fromkeys(tickets))
        self._on_depth(self.depth)
        self._wake.set()
        try:
            outcome = await call.future
        finally:
            expiry.cancel()
            self._calls.discard(call)
            self._withdraw(tickets)
        if isinstance(outcome, CamserveError):
            raise outcome
        return outcome

    async def close(self) -> None:
        """Refuse what comes from now on, answer everything accepted, and end the workers."""
        self._closing = True
        self._wake.set()
        if self._workers:
            await asyncio.wait(self._workers)  # unlike `await`, does not cancel them with an impatient caller
        await asyncio.to_thread(self._threads.shutdown)  # a thread on its way out still holds `run`, and all that belongs to it

    def _admit(self, count: int) -> None:
        if self._closing:
            raise ShuttingDown("The service is shutting down. Try again.", retry_after_s=1.0)
        if not self._workers:
            raise NotReady("The model is not ready yet. Try again.", retry_after_s=1.0)
        if not self.alive:
            raise self._unhealthy()
        if self.depth + count > self._max_queue_size:
            raise Overloaded("Too many images are waiting. Try again later.", retry_after_s=self.retry_after_s)

    def _withdraw(self, tickets: Sequence[Ticket[Item, Result]]) -> None:
        before = self.depth
        for ticket in tickets:
            self._waiting.pop(ticket, None)
        if self.depth != before:
            self._on_depth(self.depth)

    # A worker -------------------------------------------------------------------------------------------------------------

    async def _work(self) -> None:
        while await self._due():
            await self._process(self._take())

    async def _due(self) -> bool:
        """Wait for a first item, then until the batch is full or that item has waited long enough.

        Returns:
            False when the batcher is closed and nothing waits any more.
        """
        while True:
            patience = None
            if self._waiting:
                oldest = next(iter(self._waiting))
                patience = oldest.queued_at + self._max_delay_s - time.perf_counter()
                if patience <= 0 or self.depth >= self._max_batch_size or self._closing:
                    return True
            elif self._closing:
                return False
            self._wake.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(patience):
                    await self._wake.wait()

    def _take(self) -> list[Ticket[Item, Result]]:
        """The items that have waited longest."""
        batch = [self._waiting.popitem(last=False)[0] for _ in range(min(self.depth, self._max_batch_size))]
        self._on_depth(self.depth)
        return batch

    def _wanted(self, tickets: Sequence[Ticket[Item, Result]]) -> list[Ticket[Item, Result]]:
        """Those that somebody still waits for."""
        now = asyncio.get_running_loop().time()
        for ticket in tickets:
            if ticket.call.deadline <= now:
                ticket.call.expire()  # a busy loop may run its timers late
        return [ticket for ticket in tickets if not ticket.call.future.done()]

    async def _process(self, batch: list[Ticket[Item, Result]]) -> None:
        """Run a batch and settle it; what raises is tried again in halves, without those who have left meanwhile."""
        loop = asyncio.get_running_loop()
        parts = [batch]
        while parts:
            part = self._wanted(parts.pop())
            if not part:
                continue
            size, started = len(part), time.perf_counter()
            results, ran_s = await loop.run_in_executor(self._threads, self._attempt, [ticket.item for ticket in part])
            self._measure(size, ran_s)
            if isinstance(results, BaseException):
                if size > 1:
                    parts += [part[size // 2 :], part[: size // 2]]
                    continue
                results = [results]
            for ticket, result in zip(part, results, strict=True):
                if isinstance(result, BaseException):
                    ticket.call.settle(_presentable(result))
                else:
                    ticket.call.answer(
                        ticket.index,
                        BatchResult(value=result, queued_s=started - ticket.queued_at, ran_s=ran_s, batch_size=size),
                    )

    def _attempt(self, items: Sequence[Item]) -> tuple[Sequence[Result | BaseException] | BaseException, float]:
        """Call `run`, in a thread. What it raises is returned: not every exception may pass through a future."""
        started = time.perf_counter()
        try:
            results: Sequence[Result | BaseException] = list(self._run(items))
        except BaseException as error:
            return error, time.perf_counter() - started
        if len(results) != len(items):
            results = [EngineError("The network did not answer every image. Try again.") for _ in items]
        return results, time.perf_counter() - started

    def _measure(self, size: int, seconds: float) -> None:
        newest = seconds / size
        self._seconds_per_item += RATE_SMOOTHING * (newest - self._seconds_per_item) if self._seconds_per_item else newest
        self._on_batch(size, seconds)

    def _ended(self, worker: asyncio.Task[None]) -> None:
        """Whatever ended a worker, nobody is left waiting for it."""
        if not worker.cancelled() and (error := worker.exception()):
            log.error("a worker of %s has died", self._name, exc_info=error)
        for call in self._calls:
            call.settle(self._unhealthy())

    def _unhealthy(self) -> ModelUnhealthy:
        return ModelUnhealthy("The model has stopped working. Try again later.", retry_after_s=self.retry_after_s)


def _nobody(*_: float) -> None:
    """Who listens when nobody was named."""


def _presentable(error: BaseException) -> CamserveError:
    if isinstance(error, CamserveError):
        return error
    presentable = EngineError("The network failed on this image. Try again.")
    presentable.__cause__ = error
    return presentable

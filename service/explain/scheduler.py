"""What one model runs, and when. Knows no images, no networks and no HTTP.

    Scheduler   the lanes of one model: a fast one for what shares a batch, a slow one for what keeps the device for long
    Lane        one queue with its workers: items wait, are taken in batches, and run in threads
    Deadline    when the answer to a request is due, and whether its client still waits

An idle worker takes a lone item at once; while all are busy, the next batch gathers. A job of the slow lane steps aside for
the fast lane at each of its checkpoints, between two chunks of its work, but not for ever.

Everything but `run` happens on the event loop, so there are no locks. One `submit` is one `Submission`, and it is settled once:
by its last result, its first failure, or the end of the workers. A caller who leaves, at its deadline or before, takes its
items out of the queue; items that run already run to their end, or to their next checkpoint, and their results are dropped.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Generic, TypeVar

import structlog

from service.errors import CamserveError, DeadlineExceeded, EngineError, ModelUnhealthy, NotReady, Overloaded, ShuttingDown
from service.telemetry import Metrics
from service.vocabulary import LaneName

Item = TypeVar("Item")
Result = TypeVar("Result")

RATE_SMOOTHING: Final = 0.2  # weight of the newest batch in the mean of seconds per pass
T = TypeVar("T")

LONGEST_PAUSE_S: Final = 0.5  # of a slow job at one checkpoint: it must get on in the end

Checkpoint = Callable[[], None]
Job = Callable[[Checkpoint], T]

log = structlog.get_logger(__name__)


class Deadline:
    """The time by which a request is to be answered, and whether the request is over.

    Args:
        seconds: from now.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._due = time.monotonic() + seconds
        self._cancelled = threading.Event()

    @property
    def remaining_s(self) -> float:
        """Seconds left; below 0 once the deadline has passed."""
        return self._due - time.monotonic()

    @property
    def over(self) -> bool:
        """Whether the deadline has passed or the request has ended, so that no client waits for the answer any more."""
        return self._cancelled.is_set() or self.remaining_s <= 0

    def check(self) -> None:
        """To be called between steps of work, in any thread.

        Raises:
            DeadlineExceeded: no client waits for the answer any more.
        """
        if self.over:
            raise self._exceeded()

    @asynccontextmanager
    async def enforce(self) -> AsyncIterator[None]:
        """Cancels what runs inside when the deadline passes. At its end, however it comes, the request is over.

        Raises:
            DeadlineExceeded: the deadline passed.
        """
        try:
            async with asyncio.timeout(self.remaining_s) as timer:
                yield
        except TimeoutError:
            if not timer.expired():
                raise
            raise self._exceeded() from None
        finally:
            self._cancelled.set()

    def _exceeded(self) -> DeadlineExceeded:
        return DeadlineExceeded(
            f"There was no answer within {self.seconds:g} seconds. Send fewer images, ask for less, or try again."
        )


class LaneMetrics:
    """The metrics of one lane of one model."""

    def __init__(self, metrics: Metrics, model: str, lane: LaneName) -> None:
        self._depth = metrics.queue_depth.labels(model, lane)
        self._batch_size = metrics.batch_size.labels(model, lane)
        self._batch_seconds = metrics.batch_seconds.labels(model, lane)
        self._wait_seconds = metrics.queue_wait_seconds.labels(model, lane)
        self._pass_seconds = metrics.pass_seconds.labels(model, lane)

    def depth(self, items: int) -> None:
        """So many items wait now."""
        self._depth.set(items)

    def wait(self, seconds: float) -> None:
        """One item waited for so long."""
        self._wait_seconds.observe(seconds)

    def batch(self, items: int, seconds: float, seconds_per_pass: float) -> None:
        """So many items ran together for so long; the mean time of one pass is now `seconds_per_pass`."""
        self._batch_size.observe(items)
        self._batch_seconds.observe(seconds)
        self._pass_seconds.set(seconds_per_pass)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchResult(Generic[Result]):
    """One item's result, with the seconds it waited, the seconds its batch ran, and the items in that batch."""

    value: Result
    queued_s: float
    ran_s: float
    batch_size: int


@dataclass(eq=False, slots=True, kw_only=True)
class Submission(Generic[Result]):
    """One `submit`. A failure is a result of the future, not its exception: a caller who left need not collect it."""

    size: int
    deadline: Deadline
    future: asyncio.Future[list[BatchResult[Result]] | CamserveError]
    results: dict[int, BatchResult[Result]] = field(default_factory=dict)

    @property
    def awaited(self) -> bool:
        """Whether somebody still waits for its results."""
        return not self.future.done() and not self.deadline.over

    def add(self, index: int, result: BatchResult[Result]) -> None:
        """One of its items has run; with the last of them the submission is settled."""
        self.results[index] = result
        if len(self.results) == self.size:
            self.settle([self.results[i] for i in range(self.size)])

    def settle(self, outcome: list[BatchResult[Result]] | CamserveError) -> None:
        """Gives the caller its answer; only the first is given."""
        if not self.future.done():
            self.future.set_result(outcome)


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class QueueEntry(Generic[Item, Result]):
    """One item in the queue. `queued_at` is of `perf_counter`: a loop's own clock may count in milliseconds."""

    item: Item
    cost: int
    index: int
    submission: Submission[Result]
    queued_at: float


class Lane(Generic[Item, Result]):
    """Runs items in batches, first come, first served.

    `run` answers with as many results as it was given items, in order; an item whose result is an exception fails alone.
    When `run` raises, the batch is halved and tried again until what raises is alone, so one poisoned item among n costs
    2 log2(n) more calls and its neighbours succeed. An error that is no CamserveError becomes the cause of an EngineError.

    Args:
        run: called with 1 to `max_batch_size` items and the deadline of each, in as many threads at once as there are workers.
        name: of the model and the lane; names the threads.
        max_batch_size: most items in one call of `run`.
        max_queue_size: most places: of items that wait, and of those reserved; items that run hold none.
        metrics: told about depth, batches, waits and the rate.
        max_delay_s: longest wait of a batch that is not full, counted from the arrival of its oldest item; 0 for none.
        workers: most batches that run at once.
        on_running: told the number of batches that run, whenever it changes.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Item], Sequence[Deadline]], Sequence[Result | Exception]],
        *,
        name: str,
        max_batch_size: int,
        max_queue_size: int,
        metrics: LaneMetrics,
        max_delay_s: float = 0.0,
        workers: int = 1,
        on_running: Callable[[int], None] | None = None,
    ) -> None:
        self._run = run
        self._name = name
        self._max_batch_size = max_batch_size
        self._max_queue_size = max_queue_size
        self._max_delay_s = max_delay_s
        self._metrics = metrics
        self._on_running = on_running

        # Ordered, and any entry leaves in constant time: callers who give up must not hold places in the queue.
        self._queue: OrderedDict[QueueEntry[Item, Result], None] = OrderedDict()
        self._queued_cost = 0
        self._reserved = 0
        self._running = 0
        self._submissions: set[Submission[Result]] = set()
        self.seconds_per_pass = 0.0
        self._wake = asyncio.Event()
        self._closing = False
        self._threads = ThreadPoolExecutor(max_workers=workers, thread_name_prefix=name)
        self._worker_count = workers
        self._workers: list[asyncio.Task[None]] = []

    @property
    def depth(self) -> int:
        """Items that wait; those that run already do not count."""
        return len(self._queue)

    @property
    def alive(self) -> bool:
        """Whether the workers are there to answer."""
        return bool(self._workers) and not any(worker.done() for worker in self._workers)

    @property
    def queued_cost(self) -> int:
        """Passes of the network that the items that wait will take."""
        return self._queued_cost

    @property
    def wait_s(self) -> float:
        """Seconds until the items that wait now will have run, at the measured rate."""
        return self.seconds_per_pass * self._queued_cost / self._worker_count

    async def start(self) -> None:
        """Starts the workers, on the running loop. Once."""
        if self._workers:
            raise RuntimeError("a lane starts once")
        for number in range(self._worker_count):
            worker = asyncio.create_task(self._work(), name=f"lane {self._name} {number}")
            worker.add_done_callback(self._worker_ended)
            self._workers.append(worker)

    def reserve(self, places: int) -> None:
        """Takes places in the queue for items that are on their way; `release` gives them back.

        Raises:
            Overloaded: there are not so many.
            ShuttingDown, NotReady, ModelUnhealthy: closing, not started, or a worker has died.
        """
        self._admit(places)
        self._reserved += places

    def release(self, places: int) -> None:
        """Gives reserved places back."""
        self._reserved -= places

    async def submit(
        self, items: Sequence[Item], deadline: Deadline, costs: Sequence[int] | None = None
    ) -> list[BatchResult[Result]]:
        """Waits for the results of `items`, in order: all of them, or the first failure.

        Args:
            items: admitted together or not at all, though they may run in different batches.
            deadline: who cancels the caller when it passes; items of a passed deadline do not run.
            costs: of each item in passes of the network; 1 each if not given.

        Raises:
            Overloaded: there are not so many places.
            EngineError: an item failed.
            ShuttingDown, NotReady, ModelUnhealthy: closing, not started, or a worker has died.
        """
        if not items:
            return []
        self._admit(len(items))
        submission: Submission[Result] = Submission(
            size=len(items), deadline=deadline, future=asyncio.get_running_loop().create_future()
        )
        now = time.perf_counter()
        entries = [
            QueueEntry(item=item, cost=cost, index=index, submission=submission, queued_at=now)
            for index, (item, cost) in enumerate(zip(items, costs or [1] * len(items), strict=True))
        ]
        self._submissions.add(submission)
        self._queue.update(dict.fromkeys(entries))
        self._queued_cost += sum(entry.cost for entry in entries)
        self._metrics.depth(self.depth)
        self._wake.set()
        try:
            outcome = await submission.future
        finally:
            self._submissions.discard(submission)
            self._withdraw(entries)
        if isinstance(outcome, CamserveError):
            raise outcome
        return outcome

    async def close(self) -> None:
        """Refuses what comes from now on, answers everything accepted, and ends the workers."""
        self._closing = True
        self._wake.set()
        if self._workers:
            await asyncio.wait(self._workers)  # unlike `await`, does not cancel them with a caller who is cancelled
        await asyncio.to_thread(self._threads.shutdown)  # a thread on its way out still holds `run`, and all that belongs to it

    def _admit(self, places: int) -> None:
        if self._closing:
            raise ShuttingDown("The service is shutting down. Try again.", retry_after_s=1.0)
        if not self._workers:
            raise NotReady("The model is not ready yet. Try again.", retry_after_s=1.0)
        if not self.alive:
            raise self._unhealthy()
        if self.depth + self._reserved + places > self._max_queue_size:
            raise Overloaded("Too many images are waiting. Try again later.", retry_after_s=max(1.0, self.wait_s))

    def _withdraw(self, entries: Sequence[QueueEntry[Item, Result]]) -> None:
        before = self.depth
        for entry in entries:
            if entry in self._queue:
                del self._queue[entry]
                self._queued_cost -= entry.cost
        if self.depth != before:
            self._metrics.depth(self.depth)

    # A worker -------------------------------------------------------------------------------------------------------------

    async def _work(self) -> None:
        while await self._batch_due():
            await self._process(self._take())

    async def _batch_due(self) -> bool:
        """Waits for a first item, then until the batch is full or that item has waited long enough.

        Returns:
            False when the lane is closed and nothing waits any more.
        """
        while True:
            remaining_s = None
            if self._queue:
                oldest = next(iter(self._queue))
                remaining_s = oldest.queued_at + self._max_delay_s - time.perf_counter()
                if remaining_s <= 0 or self.depth >= self._max_batch_size or self._closing:
                    return True
            elif self._closing:
                return False
            self._wake.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(remaining_s):
                    await self._wake.wait()

    def _take(self) -> list[QueueEntry[Item, Result]]:
        """The items that have waited longest."""
        batch = [self._queue.popitem(last=False)[0] for _ in range(min(self.depth, self._max_batch_size))]
        self._queued_cost -= sum(entry.cost for entry in batch)
        self._metrics.depth(self.depth)
        return batch

    async def _process(self, batch: list[QueueEntry[Item, Result]]) -> None:
        """Runs a batch and settles it; what raises is tried again in halves, without those whose callers have left."""
        self._count_running(1)
        try:
            parts = [batch]
            while parts:
                part = [entry for entry in parts.pop() if entry.submission.awaited]
                if part:
                    parts += await self._run_part(part)
        finally:
            self._count_running(-1)

    async def _run_part(self, part: list[QueueEntry[Item, Result]]) -> list[list[QueueEntry[Item, Result]]]:
        """Runs a part of a batch once; returns its halves where that raised."""
        size, started = len(part), time.perf_counter()
        deadlines = [entry.submission.deadline for entry in part]
        results, ran_s = await asyncio.get_running_loop().run_in_executor(
            self._threads, self._call_run, [entry.item for entry in part], deadlines
        )
        self._measure(part, ran_s)
        if isinstance(results, BaseException):
            if size > 1:
                return [part[size // 2 :], part[: size // 2]]
            results = [results]
        for entry, result in zip(part, results, strict=True):
            queued_s = started - entry.queued_at
            self._metrics.wait(queued_s)
            if isinstance(result, BaseException):
                entry.submission.settle(_as_camserve_error(result))
            else:
                done = BatchResult(value=result, queued_s=queued_s, ran_s=ran_s, batch_size=size)
                entry.submission.add(entry.index, done)
        return []

    def _call_run(
        self, items: Sequence[Item], deadlines: Sequence[Deadline]
    ) -> tuple[Sequence[Result | BaseException] | BaseException, float]:
        """Calls `run`, in a thread. What it raises is returned: not every exception may pass through a future."""
        started = time.perf_counter()
        try:
            results: Sequence[Result | BaseException] = list(self._run(items, deadlines))
        except BaseException as error:
            return error, time.perf_counter() - started
        if len(results) != len(items):
            results = [EngineError("The network did not answer every image. Try again.") for _ in items]
        return results, time.perf_counter() - started

    def _measure(self, part: Sequence[QueueEntry[Item, Result]], seconds: float) -> None:
        # Work that was given up half way tells nothing about the rate.
        if all(entry.submission.awaited for entry in part):
            newest = seconds / max(1, sum(entry.cost for entry in part))
            known = self.seconds_per_pass
            self.seconds_per_pass = known + RATE_SMOOTHING * (newest - known) if known else newest
        self._metrics.batch(len(part), seconds, self.seconds_per_pass)

    def _count_running(self, change: int) -> None:
        self._running += change
        if self._on_running is not None:
            self._on_running(self._running)

    def _worker_ended(self, worker: asyncio.Task[None]) -> None:
        """Whatever ended a worker, every submission is answered."""
        if not worker.cancelled() and (error := worker.exception()):
            log.error("worker_died", lane=self._name, exc_info=error)
        for submission in self._submissions:
            submission.settle(self._unhealthy())

    def _unhealthy(self) -> ModelUnhealthy:
        return ModelUnhealthy("The model has stopped working. Try again later.", retry_after_s=max(1.0, self.wait_s))


def _as_camserve_error(error: BaseException) -> CamserveError:
    if isinstance(error, CamserveError):
        return error
    failure = EngineError("The network failed on this image. Try again.")
    failure.__cause__ = error
    return failure


class Reservation:
    """The places that one request holds in a model's lanes, until it submits its items or ends."""

    def __init__(self, lanes: Mapping[LaneName, Lane[Any, Any]]) -> None:
        self._lanes = lanes
        self._places: dict[LaneName, int] = {}

    def take(self, places: Mapping[LaneName, int]) -> None:
        """Reserves places in lanes.

        Raises:
            Overloaded: a lane has not so many.
            ShuttingDown, NotReady, ModelUnhealthy: closing, not started, or a worker has died.
        """
        for name, count in places.items():
            self._lanes[name].reserve(count)
            self._places[name] = count

    def release(self, name: LaneName, places: int) -> None:
        """Gives places in one lane back, as far as they are held."""
        held = self._places.get(name, 0)
        self._places[name] = max(0, held - places)
        self._lanes[name].release(min(held, places))

    def release_all(self) -> None:
        """Gives all places back."""
        for name, held in self._places.items():
            self._lanes[name].release(held)
        self._places = {}


class Scheduler(Generic[Item, Result]):
    """The lanes of one model.

    Args:
        run: gives as many results as items, in order; the checkpoint of each item raises once its request is over.
        name: of the model; names the threads.
        metrics: told what both lanes do.
        max_batch_size: most items in one call of `run`.
        max_queue_size: most items that wait in each lane.
        max_delay_s: longest wait of a batch that is not full; 0 for none.
        workers: most batches of the fast lane that run at once.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Item], Sequence[Checkpoint]], Sequence[Result | Exception]],
        *,
        name: str,
        metrics: Metrics,
        max_batch_size: int,
        max_queue_size: int,
        max_delay_s: float = 0.0,
        workers: int = 1,
    ) -> None:
        self._fast_idle = threading.Event()
        self._fast_idle.set()
        self.fast: Lane[Item, Result] = Lane(
            lambda items, deadlines: run(items, [deadline.check for deadline in deadlines]),
            name=name,
            max_batch_size=max_batch_size,
            max_queue_size=max_queue_size,
            metrics=LaneMetrics(metrics, name, "fast"),
            max_delay_s=max_delay_s,
            workers=workers,
            on_running=self._fast_running,
        )
        self.slow: Lane[Job[Any], Any] = Lane(
            lambda jobs, deadlines: [job(partial(self._pause, due)) for job, due in zip(jobs, deadlines, strict=True)],
            name=f"{name} slow",
            max_batch_size=1,
            max_queue_size=max_queue_size,
            metrics=LaneMetrics(metrics, name, "slow"),
        )
        self._lanes: dict[LaneName, Lane[Any, Any]] = {"fast": self.fast, "slow": self.slow}
        self._requests = 0
        self._request_ended = asyncio.Event()

    @property
    def alive(self) -> bool:
        """Whether the workers are there to answer."""
        return self.fast.alive and self.slow.alive

    async def start(self) -> None:
        """Starts the workers, on the running loop. Once."""
        await asyncio.gather(self.fast.start(), self.slow.start())

    async def close(self) -> None:
        """Waits for the requests that were admitted, answers everything accepted, and ends the workers."""
        while self._requests:
            self._request_ended.clear()
            await self._request_ended.wait()
        await asyncio.gather(self.fast.close(), self.slow.close())

    @asynccontextmanager
    async def admit(self, places: Mapping[LaneName, int], passes: int, deadline: Deadline) -> AsyncIterator[Reservation]:
        """Admits a request before its images are decoded; `close` waits for its end.

        Args:
            places: how many items it will submit to which lane.
            passes: of the network that its items for the slow lane need.
            deadline: of the request.

        Raises:
            DeadlineExceeded: the passes would take longer than there is time.
            Overloaded: a lane has not so many places, or what waits in the slow lane leaves too little time.
            ShuttingDown, NotReady, ModelUnhealthy: closing, not started, or a worker has died.
        """
        reservation = Reservation(self._lanes)
        self._requests += 1
        try:
            if passes:
                self._check_time(passes, deadline)
            reservation.take(places)
            yield reservation
        finally:
            reservation.release_all()
            self._requests -= 1
            self._request_ended.set()

    async def run(
        self, items: Sequence[Item], deadline: Deadline, reservation: Reservation | None, costs: Sequence[int] | None = None
    ) -> list[BatchResult[Result]]:
        """Runs items in the fast lane; see `Lane.submit`. The reservation is None where their places are given back already."""
        if reservation is not None:
            reservation.release("fast", len(items))
        return await self.fast.submit(items, deadline, costs)

    async def run_jobs(
        self, jobs: Sequence[Job[T]], deadline: Deadline, reservation: Reservation | None, costs: Sequence[int] | None = None
    ) -> list[BatchResult[T]]:
        """Runs jobs in the slow lane, one at a time; each calls its checkpoint between chunks. As `run`."""
        if reservation is not None:
            reservation.release("slow", len(jobs))
        results: list[BatchResult[T]] = await self.slow.submit(jobs, deadline, costs)
        return results

    def _check_time(self, passes: int, deadline: Deadline) -> None:
        """Refuses at once what could not be ready in time.

        The rate is the fast lane's, whose passes are all alike; passes in torch take longer, so that nothing is refused that
        could be ready.
        """
        rate = self.fast.seconds_per_pass
        needed_s, left_s = passes * rate, deadline.remaining_s
        if needed_s > left_s:
            raise DeadlineExceeded(
                f"This would need about {needed_s:.0f} s here, {left_s:.0f} s are left. Ask for fewer samples or classes, or "
                "have request_timeout_s raised.",
                estimate_s=needed_s,
            )
        queued_s = self.slow.queued_cost * rate
        if queued_s + needed_s > left_s:
            raise Overloaded(
                "Too much work is waiting for this to be ready in time. Try again later.",
                retry_after_s=max(1.0, queued_s),
                estimate_s=queued_s + needed_s,
            )

    def _fast_running(self, batches: int) -> None:
        if batches:
            self._fast_idle.clear()
        else:
            self._fast_idle.set()

    def _pause(self, deadline: Deadline) -> None:
        """The checkpoint of a slow job, in its thread: lets the fast lane go first, and raises once the request is over."""
        deadline.check()
        self._fast_idle.wait(LONGEST_PAUSE_S)
        deadline.check()

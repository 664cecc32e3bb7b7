"""What one model runs, and when: a fast lane for what shares a batch, a slow lane for what keeps the device for long.

A job of the slow lane steps aside for the fast lane at each of its checkpoints, between two chunks of its work, but not for
ever. Each lane has a bounded queue and admits a request whole or not at all.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final, Generic, TypeVar

from service.errors import DeadlineExceeded, Overloaded
from service.explain.deadline import Deadline
from service.explain.lane import BatchResult, Item, Lane, Result
from service.telemetry import LaneMetrics, Metrics
from service.vocabulary import LaneName

T = TypeVar("T")

LONGEST_PAUSE_S: Final = 0.5  # of a slow job at one checkpoint: it must get on in the end

Checkpoint = Callable[[], None]
Job = Callable[[Checkpoint], T]


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
        run: gives as many results as items, in order; the checkpoint of each item raises once nobody waits for it.
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
        self, items: Sequence[Item], deadline: Deadline, reservation: Reservation, costs: Sequence[int] | None = None
    ) -> list[BatchResult[Result]]:
        """Runs items in the fast lane; see `Lane.submit`."""
        reservation.release("fast", len(items))
        return await self.fast.submit(items, deadline, costs)

    async def run_jobs(
        self, jobs: Sequence[Job[T]], deadline: Deadline, reservation: Reservation, costs: Sequence[int] | None = None
    ) -> list[BatchResult[T]]:
        """Runs jobs in the slow lane, one at a time; each calls its checkpoint between chunks. See `Lane.submit`."""
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
                "have request_timeout_s raised."
            )
        queued_s = self.slow.queued_cost * rate
        if queued_s + needed_s > left_s:
            raise Overloaded(
                "Too much work is waiting for this to be ready in time. Try again later.", retry_after_s=max(1.0, queued_s)
            )

    def _fast_running(self, batches: int) -> None:
        if batches:
            self._fast_idle.clear()
        else:
            self._fast_idle.set()

    def _pause(self, deadline: Deadline) -> None:
        """The checkpoint of a slow job, in its thread: lets the fast lane go first, and ends when nobody waits any more."""
        deadline.check()
        self._fast_idle.wait(LONGEST_PAUSE_S)
        deadline.check()

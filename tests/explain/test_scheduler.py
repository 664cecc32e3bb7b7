"""Deadlines, and two lanes under one scheduler: who is admitted, by which lane's places and by how much work."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from service.errors import DeadlineExceeded, Overloaded
from service.explain.scheduler import LONGEST_PAUSE_S, Checkpoint, Deadline, Scheduler
from service.telemetry import Metrics

pytestmark = pytest.mark.anyio

PATIENCE_S = 10.0


def negate(items: Sequence[int], _checkpoints: Sequence[Checkpoint]) -> list[int | Exception]:
    return [-item for item in items]


@asynccontextmanager
async def running(run: Any = negate, *, metrics: Metrics | None = None, **options: Any) -> AsyncIterator[Scheduler[int, int]]:
    given: dict[str, Any] = {"max_batch_size": 4, "max_queue_size": 4} | options
    scheduler: Scheduler[int, int] = Scheduler(run, name="net", metrics=metrics or Metrics(), **given)
    await scheduler.start()
    try:
        yield scheduler
    finally:
        await scheduler.close()


class Blocker:
    """A job of the slow lane that stays inside until it is let go, calling its checkpoint all the while if it is told to."""

    def __init__(self, *, checks: bool = False) -> None:
        self.checks = checks
        self.entered, self.gate = threading.Event(), threading.Event()
        self.error: BaseException | None = None

    def __call__(self, checkpoint: Checkpoint) -> str:
        self.entered.set()
        try:
            while not self.gate.wait(0.005 if self.checks else PATIENCE_S):
                checkpoint()
        except BaseException as error:
            self.error = error
            raise
        return "done"


async def submit(scheduler: Scheduler[int, int], job: Any, within_s: float = PATIENCE_S) -> list[Any]:
    deadline = Deadline(within_s)
    async with deadline.enforce(), scheduler.admit({"slow": 1}, 0, deadline) as reservation:
        return await scheduler.run_jobs([job], deadline, reservation)


# Deadlines ------------------------------------------------------------------------------------------------------------------


async def test_a_deadline_cancels_what_runs_and_says_so_once() -> None:
    deadline, cancelled = Deadline(0.02), asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.sleep(PATIENCE_S)
        finally:
            cancelled.set()

    with pytest.raises(DeadlineExceeded, match=r"within 0\.02 seconds"):
        async with deadline.enforce():
            await work()
    assert cancelled.is_set()
    assert deadline.over
    with pytest.raises(DeadlineExceeded):
        deadline.check()


async def test_a_request_that_has_ended_is_over_whatever_time_is_left() -> None:
    deadline = Deadline(PATIENCE_S)
    async with deadline.enforce():
        deadline.check()
        assert not deadline.over
    assert deadline.remaining_s > 1
    assert deadline.over


async def test_somebody_elses_timeout_is_not_the_deadline() -> None:
    with pytest.raises(TimeoutError):
        async with Deadline(PATIENCE_S).enforce(), asyncio.timeout(0.01):
            await asyncio.sleep(PATIENCE_S)
    with pytest.raises(TimeoutError, match="of a socket"):
        async with Deadline(PATIENCE_S).enforce():
            raise TimeoutError("of a socket")


async def test_who_is_cancelled_is_cancelled_and_its_work_is_over() -> None:
    deadline = Deadline(PATIENCE_S)

    async def request() -> None:
        async with deadline.enforce():
            await asyncio.sleep(PATIENCE_S)

    task = asyncio.create_task(request())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert deadline.over


# Places ---------------------------------------------------------------------------------------------------------------------


async def test_places_are_of_a_lane_and_held_until_the_items_wait_themselves() -> None:
    async with running() as scheduler:
        deadline = Deadline(PATIENCE_S)
        async with scheduler.admit({"fast": 4}, 0, deadline) as reservation:
            with pytest.raises(Overloaded):
                async with scheduler.admit({"fast": 1}, 0, deadline):
                    pass
            async with scheduler.admit({"slow": 4}, 0, deadline):
                with pytest.raises(Overloaded):
                    async with scheduler.admit({"fast": 0, "slow": 1}, 0, deadline):
                        pass
            results = await scheduler.run([1, 2, 3, 4], deadline, reservation)
            assert [result.value for result in results] == [-1, -2, -3, -4]
            async with scheduler.admit({"fast": 4}, 0, deadline):
                pass


async def test_a_request_that_one_lane_refuses_takes_no_place_in_the_other() -> None:
    async with running() as scheduler:
        deadline = Deadline(PATIENCE_S)
        with pytest.raises(Overloaded):
            async with scheduler.admit({"fast": 4, "slow": 5}, 0, deadline):
                pass
        async with scheduler.admit({"fast": 4, "slow": 4}, 0, deadline):
            pass


async def test_two_models_do_not_count_each_others_places() -> None:
    async with running() as one, running() as other:
        deadline = Deadline(PATIENCE_S)
        async with one.admit({"fast": 4}, 0, deadline), other.admit({"fast": 4}, 0, deadline) as reservation:
            assert len(await other.run([1], deadline, reservation)) == 1


async def test_closing_waits_for_requests_that_were_admitted() -> None:
    async with running() as scheduler:
        deadline = Deadline(PATIENCE_S)
        async with scheduler.admit({"fast": 1}, 0, deadline) as reservation:
            closing = asyncio.create_task(scheduler.close())
            await asyncio.sleep(0.01)
            assert not closing.done()
            assert [result.value for result in await scheduler.run([7], deadline, reservation)] == [-7]
        await asyncio.wait_for(closing, PATIENCE_S)
        assert not scheduler.alive


# Cost -----------------------------------------------------------------------------------------------------------------------


async def test_what_cannot_be_ready_in_time_is_refused_by_its_own_cost_and_by_what_waits() -> None:
    async with running() as scheduler:
        scheduler.fast.seconds_per_pass = 1.0
        deadline = Deadline(30.0)
        with pytest.raises(DeadlineExceeded, match="about 31 s here") as costly:
            async with scheduler.admit({"slow": 1}, 31, deadline):
                pass
        assert costly.value.estimate_s == 31.0
        first, second = Blocker(), Blocker()
        running_first = asyncio.create_task(submit(scheduler, first))
        assert await asyncio.to_thread(first.entered.wait, PATIENCE_S)
        long = Deadline(PATIENCE_S)
        async with scheduler.admit({"slow": 1}, 0, long) as reservation:
            waiting = asyncio.create_task(scheduler.run_jobs([second], long, reservation, [20]))
            while scheduler.slow.depth == 0:  # noqa: ASYNC110 (a few turns of the loop)
                await asyncio.sleep(0)
            async with scheduler.admit({"slow": 1}, 9, deadline):
                pass
            with pytest.raises(Overloaded) as refused:
                async with scheduler.admit({"slow": 1}, 11, deadline):
                    pass
            assert (refused.value.retry_after_s, refused.value.estimate_s) == (20.0, 31.0)
            async with scheduler.admit({"fast": 1}, 0, deadline):  # the fast lane is another queue
                pass
            first.gate.set()
            second.gate.set()
            await running_first
            await waiting


# Two lanes ------------------------------------------------------------------------------------------------------------------


async def test_a_slow_job_pauses_while_the_fast_lane_runs_but_not_for_ever() -> None:
    inside, gate = threading.Event(), threading.Event()

    def hold(items: Sequence[int], _checkpoints: Sequence[Checkpoint]) -> list[int | Exception]:
        inside.set()
        gate.wait(PATIENCE_S)
        return [-item for item in items]

    ticks: list[float] = []

    def job(checkpoint: Checkpoint) -> None:
        while not gate.is_set() and len(ticks) < 1000:
            checkpoint()
            ticks.append(time.perf_counter())
            time.sleep(0.001)

    async with running(hold) as scheduler:
        deadline = Deadline(PATIENCE_S)
        async with scheduler.admit({"fast": 1, "slow": 1}, 0, deadline) as reservation:
            fast = asyncio.create_task(scheduler.run([1], deadline, reservation))
            assert await asyncio.to_thread(inside.wait, PATIENCE_S)
            slow = asyncio.create_task(scheduler.run_jobs([job], deadline, reservation))
            await asyncio.sleep(2.5 * LONGEST_PAUSE_S)
            held = len(ticks)
            gate.set()
            await asyncio.gather(fast, slow)
    assert 1 <= held <= 3, "one chunk for every longest pause"


async def test_a_slow_job_ends_at_its_next_checkpoint_when_nobody_waits() -> None:
    async with running() as scheduler:
        job = Blocker(checks=True)
        with pytest.raises(DeadlineExceeded):
            await submit(scheduler, job, within_s=0.1)
        follower = Blocker()
        follower.gate.set()
        [result] = await submit(scheduler, follower)
        assert result.value == "done"
        assert isinstance(job.error, DeadlineExceeded)


async def test_items_of_a_batch_get_checkpoints_of_their_own() -> None:
    seen: list[list[bool]] = []

    def over(checkpoint: Checkpoint) -> bool:
        try:
            checkpoint()
        except DeadlineExceeded:
            return True
        return False

    def look(items: Sequence[int], checkpoints: Sequence[Checkpoint]) -> list[int | Exception]:
        time.sleep(0.1)
        seen.append([over(checkpoint) for checkpoint in checkpoints])
        return list(items)

    async def ask(scheduler: Scheduler[int, int], within_s: float) -> None:
        deadline = Deadline(within_s)
        async with deadline.enforce(), scheduler.admit({"fast": 1}, 0, deadline) as reservation:
            await scheduler.run([1], deadline, reservation)

    async with running(look, max_delay_s=0.02, max_batch_size=2) as scheduler:
        patient, hasty = await asyncio.gather(ask(scheduler, PATIENCE_S), ask(scheduler, 0.05), return_exceptions=True)
        assert patient is None
        assert isinstance(hasty, DeadlineExceeded)
    assert seen == [[False, True]]


async def test_both_lanes_are_measured() -> None:
    metrics = Metrics()
    async with running(metrics=metrics) as scheduler:
        deadline = Deadline(PATIENCE_S)
        async with scheduler.admit({"fast": 2, "slow": 1}, 0, deadline) as reservation:
            await scheduler.run([1, 2], deadline, reservation)
            await scheduler.run_jobs([lambda _checkpoint: time.sleep(0.02)], deadline, reservation, [10])
    told = metrics.render()[0].decode()
    for lane, images in (("fast", 2.0), ("slow", 1.0)):
        labels = f'{{lane="{lane}",model="net"}}'
        assert f"camserve_batch_size_sum{labels} {images}" in told
        assert f"camserve_batch_seconds_count{labels} 1.0" in told
        assert f"camserve_queue_depth{labels} 0.0" in told
        assert f"camserve_queue_wait_seconds_count{labels} {images}" in told
    [rate] = [line for line in told.splitlines() if line.startswith('camserve_pass_seconds{lane="slow"')]
    assert 0.002 <= float(rate.rpartition(" ")[2]) < 0.01

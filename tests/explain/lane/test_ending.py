"""Starting and closing, and what happens when a worker is no more."""

from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs

from service.errors import (
    ModelUnhealthy,
    NotReady,
    ShuttingDown,
)
from tests.explain.lane.stand_ins import (
    PATIENCE_S,
    RecordedMetrics,
    StandInNetwork,
    ask,
    make_lane,
    occupy,
    outcomes,
    running_lane,
    soon,
    until_waiting,
)

pytestmark = pytest.mark.anyio


async def test_closing_answers_everything_accepted_and_refuses_the_rest() -> None:
    network = StandInNetwork()
    async with running_lane(network, max_batch_size=2, max_delay_s=PATIENCE_S * 10) as lane:
        network.gate.clear()
        accepted = [ask(lane, n) for n in range(5)]
        await network.busy()
        closing = asyncio.create_task(lane.close())
        await asyncio.sleep(0)
        with pytest.raises(ShuttingDown):
            await lane.submit([9], soon())
        assert not closing.done()
        network.gate.set()
        assert await outcomes(*accepted) == [[-n] for n in range(5)]
        await asyncio.wait_for(closing, PATIENCE_S)
        assert not lane.alive
        with pytest.raises(ShuttingDown):
            await lane.submit([9], soon())
    assert network.batches == [[0, 1], [2, 3], [4]]


async def test_an_impatient_close_does_not_take_the_accepted_along() -> None:
    network = StandInNetwork()
    async with running_lane(network) as lane:
        first = await occupy(lane, network)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(lane.close(), 0.01)
        network.gate.set()
        assert await outcomes(first) == [[0]]


async def test_before_the_start_nobody_is_let_in() -> None:
    lane = make_lane(StandInNetwork(), max_batch_size=1, max_queue_size=1)
    assert not lane.alive
    with pytest.raises(NotReady):
        await lane.submit([1], soon())
    await lane.close()


async def test_a_batcher_starts_once() -> None:
    async with running_lane(StandInNetwork()) as lane:
        with pytest.raises(RuntimeError):
            await lane.start()


async def test_when_the_worker_dies_nobody_is_left_waiting() -> None:
    class Broken(RecordedMetrics):
        def batch(self, items: int, seconds: float, seconds_per_pass: float) -> None:  # noqa: ARG002
            raise ZeroDivisionError

    network = StandInNetwork()
    with capture_logs() as lines:
        async with running_lane(network, max_batch_size=2, metrics=Broken()) as lane:
            settled = await outcomes(*(ask(lane, n) for n in range(5)))
            assert [type(one) for one in settled] == [ModelUnhealthy] * 5
            assert not lane.alive
            assert lane.depth == 0
            with pytest.raises(ModelUnhealthy):
                await lane.submit([9], soon())
    assert [(line["event"], line["lane"]) for line in lines] == [("worker_died", "net")]


async def test_when_the_thread_is_gone_nobody_is_left_waiting() -> None:
    with capture_logs() as lines:
        async with running_lane(StandInNetwork(), max_batch_size=2) as lane:
            lane._threads.shutdown()
            assert [type(one) for one in await outcomes(ask(lane, 1, 2, 3), ask(lane, 4))] == [ModelUnhealthy] * 2
            assert not lane.alive
    assert [(line["event"], line["lane"]) for line in lines] == [("worker_died", "net")]


@pytest.mark.parametrize("workers", [1, 2])
async def test_when_a_worker_is_cancelled_nobody_is_left_waiting(workers: int) -> None:
    network = StandInNetwork()
    async with running_lane(network, workers=workers) as lane:
        running = [await occupy(lane, network)]
        for number in range(1, workers):
            running.append(ask(lane, number))
            await network.busy()
        waiting = ask(lane, 9)
        await until_waiting(lane, 1)
        worker = next(task for task in asyncio.all_tasks() if task.get_name().startswith("lane net"))
        worker.cancel()
        assert [type(one) for one in await outcomes(*running, waiting)] == [ModelUnhealthy] * (workers + 1)
        assert not lane.alive

"""Starting and closing, and what happens when a worker is no more."""

from __future__ import annotations

import asyncio
import logging

import pytest

from service.errors import (
    ModelUnhealthy,
    NotReady,
    ShuttingDown,
)
from service.explain.batcher import Batcher
from tests.explain.batcher.batches import PATIENCE_S, Network, ask, batching, occupied, outcomes, soon, until_waiting

pytestmark = pytest.mark.anyio


async def test_closing_answers_everything_accepted_and_refuses_the_rest() -> None:
    network = Network()
    async with batching(network, max_batch_size=2, max_delay_s=PATIENCE_S * 10) as batcher:
        network.gate.clear()
        accepted = [ask(batcher, n) for n in range(5)]
        await network.busy()
        closing = asyncio.create_task(batcher.close())
        await asyncio.sleep(0)
        with pytest.raises(ShuttingDown):
            await batcher.submit([9], deadline=soon())
        assert not closing.done()
        network.gate.set()
        assert await outcomes(*accepted) == [[-n] for n in range(5)]
        await asyncio.wait_for(closing, PATIENCE_S)
        assert not batcher.alive
        with pytest.raises(ShuttingDown):
            await batcher.submit([9], deadline=soon())
    assert network.batches == [[0, 1], [2, 3], [4]]


async def test_an_impatient_close_does_not_take_the_accepted_along() -> None:
    network = Network()
    async with batching(network) as batcher:
        first = await occupied(batcher, network)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(batcher.close(), 0.01)
        network.gate.set()
        assert await outcomes(first) == [[0]]


async def test_before_the_start_nobody_is_let_in() -> None:
    batcher = Batcher(Network(), name="net", max_batch_size=1, max_queue_size=1)
    assert not batcher.alive
    with pytest.raises(NotReady):
        await batcher.submit([1], deadline=soon())
    await batcher.close()


async def test_a_batcher_starts_once() -> None:
    async with batching(Network()) as batcher:
        with pytest.raises(RuntimeError):
            await batcher.start()


async def test_when_the_worker_dies_nobody_is_left_waiting(caplog: pytest.LogCaptureFixture) -> None:
    def broken(size: int, seconds: float) -> None:
        raise ZeroDivisionError

    network = Network()
    async with batching(network, max_batch_size=2, on_batch=broken) as batcher:
        with caplog.at_level(logging.ERROR):
            settled = await outcomes(*(ask(batcher, n) for n in range(5)))
        assert [type(one) for one in settled] == [ModelUnhealthy] * 5
        assert not batcher.alive
        assert batcher.depth == 0
        with pytest.raises(ModelUnhealthy):
            await batcher.submit([9], deadline=soon())
    assert "a worker of net has died" in caplog.text


async def test_when_the_thread_is_gone_nobody_is_left_waiting(caplog: pytest.LogCaptureFixture) -> None:
    async with batching(Network(), max_batch_size=2) as batcher:
        batcher._threads.shutdown()
        assert [type(one) for one in await outcomes(ask(batcher, 1, 2, 3), ask(batcher, 4))] == [ModelUnhealthy] * 2
        assert not batcher.alive
    assert "a worker of net has died" in caplog.text


@pytest.mark.parametrize("workers", [1, 2])
async def test_when_a_worker_is_cancelled_nobody_is_left_waiting(workers: int) -> None:
    network = Network()
    async with batching(network, workers=workers) as batcher:
        running = [await occupied(batcher, network)]
        for number in range(1, workers):
            running.append(ask(batcher, number))
            await network.busy()
        waiting = ask(batcher, 9)
        await until_waiting(batcher, 1)
        worker = next(task for task in asyncio.all_tasks() if task.get_name().startswith("batcher net"))
        worker.cancel()
        assert [type(one) for one in await outcomes(*running, waiting)] == [ModelUnhealthy] * (workers + 1)
        assert not batcher.alive

"""What goes together, in which order, and who is let into the line."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from service.errors import (
    DeadlineExceeded,
    EngineError,
    Overloaded,
)
from service.explain.calls import BatchResult
from tests.explain.batcher.batches import PATIENCE_S, Network, ask, batching, occupied, outcomes, soon, until_waiting

pytestmark = pytest.mark.anyio


async def test_a_lone_item_runs_at_once_in_the_model_s_own_thread() -> None:
    network = Network()
    async with batching(network) as batcher:
        [done] = await batcher.submit([7], deadline=soon())
    assert (done.value, done.batch_size) == (-7, 1)
    assert 0 <= done.queued_s < 1
    assert 0 <= done.ran_s < 1
    assert network.threads == {"net_0"}


async def test_what_comes_while_a_batch_runs_gathers_and_keeps_its_order() -> None:
    network = Network()
    async with batching(network, max_batch_size=4) as batcher:
        first = await occupied(batcher, network)
        later = [ask(batcher, n) for n in range(1, 7)]
        await until_waiting(batcher, 6)
        network.gate.set()
        assert await outcomes(first, *later) == [[-n] for n in range(7)]
    assert network.batches == [[0], [1, 2, 3, 4], [5, 6]]
    assert [task.result()[0].batch_size for task in later] == [4, 4, 4, 4, 2, 2]


async def test_two_workers_have_two_batches_under_way_and_share_one_line() -> None:
    network = Network()
    async with batching(network, max_batch_size=2, workers=2) as batcher:
        first = await occupied(batcher, network)
        second = ask(batcher, 1)
        await network.busy()
        later = [ask(batcher, n) for n in range(2, 5)]
        await until_waiting(batcher, 3)
        network.gate.set()
        assert await outcomes(first, second, *later) == [[-n] for n in range(5)]
        assert batcher.alive
    assert network.batches[:2] == [[0], [1]]
    assert sorted(network.batches[2:]) == [[2, 3], [4]]
    assert network.threads == {"net_0", "net_1"}


async def test_one_request_may_span_batches_and_is_answered_in_order() -> None:
    network = Network()
    async with batching(network, max_batch_size=4) as batcher:
        assert await outcomes(ask(batcher, *range(10))) == [[-n for n in range(10)]]
    assert network.batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


async def test_nothing_asked_is_nothing_answered() -> None:
    network = Network()
    async with batching(network) as batcher:
        assert await batcher.submit([], deadline=soon()) == []
    assert network.batches == []


async def test_lingering_waits_for_company_but_not_past_a_full_batch() -> None:
    network = Network()
    async with batching(network, max_batch_size=3, max_delay_s=PATIENCE_S * 10) as batcher:
        early = ask(batcher, 1)
        await until_waiting(batcher, 1)
        for _ in range(20):
            await asyncio.sleep(0)
        assert network.batches == []
        assert await outcomes(early, ask(batcher, 2), ask(batcher, 3)) == [[-1], [-2], [-3]]
    assert network.batches == [[1, 2, 3]]


async def test_the_clock_starts_at_the_first_item() -> None:
    network = Network()
    async with batching(network, max_delay_s=0.05) as batcher:
        await asyncio.sleep(0.06)  # longer than the delay: an idle clock must not have been running
        [done] = await batcher.submit([1], deadline=soon())
        assert 0.045 <= done.queued_s < 1


async def test_who_leaves_while_lingering_takes_the_clock_along() -> None:
    network = Network()
    async with batching(network, max_delay_s=0.05) as batcher:
        early = ask(batcher, 1)
        await until_waiting(batcher, 1)
        await asyncio.sleep(0.03)
        early.cancel()
        [done] = await batcher.submit([2], deadline=soon())
    assert done.queued_s >= 0.045
    assert network.batches == [[2]]


async def test_callbacks_hear_sizes_seconds_and_depths() -> None:
    network, batches, depths = Network(), list[tuple[int, float]](), list[int]()
    heard: dict[str, Any] = {"on_batch": lambda size, seconds: batches.append((size, seconds)), "on_depth": depths.append}
    async with batching(network, max_batch_size=2, **heard) as batcher:
        await batcher.submit([1, 2, 3], deadline=soon())
    assert [size for size, _ in batches] == [2, 1]
    assert all(0 <= seconds < 1 for _, seconds in batches)
    assert depths == [3, 1, 0]


async def test_a_full_line_refuses_exactly_what_does_not_fit() -> None:
    network = Network()
    async with batching(network, max_batch_size=4, max_queue_size=6) as batcher:
        first = await occupied(batcher, network)
        asked = [ask(batcher, n) for n in range(1, 21)]
        await asyncio.wait(asked[6:])  # refused at once: the gate is still shut
        refused = [task.exception() for task in asked[6:]]
        assert [type(error) for error in refused] == [Overloaded] * 14
        assert batcher.depth == 6
        network.gate.set()
        assert await outcomes(first, *asked[:6]) == [[-n] for n in range(7)]
    assert network.batches == [[0], [1, 2, 3, 4], [5, 6]]


async def test_a_request_is_admitted_whole_or_not_at_all() -> None:
    network = Network()
    async with batching(network, max_queue_size=4) as batcher:
        first = await occupied(batcher, network)
        fits = ask(batcher, 1, 2, 3)
        await until_waiting(batcher, 3)
        [refused] = await outcomes(ask(batcher, 4, 5))
        assert isinstance(refused, Overloaded)
        assert batcher.depth == 3
        last = ask(batcher, 6)
        await until_waiting(batcher, 4)
        network.gate.set()
        assert await outcomes(first, fits, last) == [[0], [-1, -2, -3], [-6]]


async def test_retry_after_is_the_measured_rate_times_the_line() -> None:
    network = Network()
    seconds: list[float] = []
    async with batching(network, max_queue_size=200, on_batch=lambda _, ran_s: seconds.append(ran_s)) as batcher:
        assert batcher.retry_after_s == 1.0
        first = await occupied(batcher, network)
        await asyncio.sleep(0.05)
        network.gate.set()
        await first
        second = await occupied(batcher, network)
        crowd = ask(batcher, *range(200))
        await until_waiting(batcher, 200)
        [refused] = await outcomes(ask(batcher, 1))
        assert isinstance(refused, Overloaded)
        assert refused.retry_after_s == pytest.approx(200 * seconds[0])
        network.gate.set()
        await outcomes(second, crowd)


def _own_answer(items: tuple[int, ...], outcome: list[BatchResult[int]] | BaseException) -> bool:
    """Whether this is an answer that a request of these items may get: item % 17 == 3 raises, % 17 == 5 fails alone."""
    if isinstance(outcome, list):
        return [done.value for done in outcome] == [-n for n in items] and not any(n % 17 in (3, 5) for n in items)
    if isinstance(outcome, EngineError):
        return any(n % 17 in (3, 5) for n in items)
    return isinstance(outcome, (DeadlineExceeded, Overloaded, asyncio.CancelledError))


@pytest.mark.parametrize("seed", range(3))
async def test_two_thousand_requests_all_settle_and_none_gets_anothers_answer(seed: int) -> None:
    rng, loop = random.Random(seed), asyncio.get_running_loop()
    run_items: list[int] = []

    def run(items: Sequence[int]) -> Sequence[int | Exception]:
        assert 1 <= len(items) <= 8
        run_items.extend(items)
        if any(n % 17 == 3 for n in items):
            raise ValueError
        return [KeyError() if n % 17 == 5 else -n for n in items]

    async with batching(run, max_queue_size=40, max_delay_s=0.0005 * seed) as batcher:
        asked: list[tuple[tuple[int, ...], asyncio.Task[list[BatchResult[int]]]]] = []
        number = 0
        for _ in range(2000):
            items = tuple(range(number, number + rng.choice([1, 1, 1, 2, 5])))
            number += len(items)
            patience = rng.choice([0.0, 0.0005, 0.002, PATIENCE_S, PATIENCE_S, PATIENCE_S])
            asked.append((items, ask(batcher, *items, deadline=loop.time() + patience)))
            if rng.random() < 0.2:
                rng.choice(asked[-30:])[1].cancel()
            if rng.random() < 0.1:
                await asyncio.sleep(0)  # those asked get in line
                await until_waiting(batcher, at_most=rng.choice([0, 10, 20, 30]))
        settled = await asyncio.wait_for(asyncio.gather(*(task for _, task in asked), return_exceptions=True), PATIENCE_S * 3)
        assert batcher.alive
        assert batcher.depth == 0
        assert not batcher._calls

    for (items, _), outcome in zip(asked, settled, strict=True):
        assert _own_answer(items, outcome), (items, outcome)
    kinds = Counter(type(outcome) for outcome in settled)
    assert kinds.keys() == {list, EngineError, DeadlineExceeded, Overloaded, asyncio.CancelledError}
    assert kinds[list] > 400, kinds
    assert len(run_items) < 4 * number  # halving stays bounded

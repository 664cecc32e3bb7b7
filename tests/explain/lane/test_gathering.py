"""What goes together, in which order, and who is let into the line."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence

import pytest

from service.errors import (
    DeadlineExceeded,
    EngineError,
    Overloaded,
)
from service.explain.scheduler import BatchResult
from tests.explain.lane.stand_ins import (
    PATIENCE_S,
    RecordedMetrics,
    StandInNetwork,
    ask,
    occupy,
    outcomes,
    running_lane,
    soon,
    until_waiting,
)

pytestmark = pytest.mark.anyio


async def test_a_lone_item_runs_at_once_in_the_model_s_own_thread() -> None:
    network = StandInNetwork()
    async with running_lane(network) as lane:
        [done] = await lane.submit([7], soon())
    assert (done.value, done.batch_size) == (-7, 1)
    assert 0 <= done.queued_s < 1
    assert 0 <= done.ran_s < 1
    assert network.threads == {"net_0"}


async def test_what_comes_while_a_batch_runs_gathers_and_keeps_its_order() -> None:
    network = StandInNetwork()
    async with running_lane(network, max_batch_size=4) as lane:
        first = await occupy(lane, network)
        later = [ask(lane, n) for n in range(1, 7)]
        await until_waiting(lane, 6)
        network.gate.set()
        assert await outcomes(first, *later) == [[-n] for n in range(7)]
    assert network.batches == [[0], [1, 2, 3, 4], [5, 6]]
    assert [task.result()[0].batch_size for task in later] == [4, 4, 4, 4, 2, 2]


async def test_two_workers_run_two_batches_at_once_and_share_one_queue() -> None:
    network = StandInNetwork()
    async with running_lane(network, max_batch_size=2, workers=2) as lane:
        first = await occupy(lane, network)
        second = ask(lane, 1)
        await network.busy()
        later = [ask(lane, n) for n in range(2, 5)]
        await until_waiting(lane, 3)
        network.gate.set()
        assert await outcomes(first, second, *later) == [[-n] for n in range(5)]
        assert lane.alive
    assert network.batches[:2] == [[0], [1]]
    assert sorted(network.batches[2:]) == [[2, 3], [4]]
    assert network.threads == {"net_0", "net_1"}


async def test_one_request_may_span_batches_and_is_answered_in_order() -> None:
    network = StandInNetwork()
    async with running_lane(network, max_batch_size=4) as lane:
        assert await outcomes(ask(lane, *range(10))) == [[-n for n in range(10)]]
    assert network.batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


async def test_nothing_asked_is_nothing_answered() -> None:
    network = StandInNetwork()
    async with running_lane(network) as lane:
        assert await lane.submit([], soon()) == []
    assert network.batches == []


async def test_a_delay_waits_for_more_items_but_not_past_a_full_batch() -> None:
    network = StandInNetwork()
    async with running_lane(network, max_batch_size=3, max_delay_s=PATIENCE_S * 10) as lane:
        early = ask(lane, 1)
        await until_waiting(lane, 1)
        for _ in range(20):
            await asyncio.sleep(0)
        assert network.batches == []
        assert await outcomes(early, ask(lane, 2), ask(lane, 3)) == [[-1], [-2], [-3]]
    assert network.batches == [[1, 2, 3]]


async def test_the_clock_starts_at_the_first_item() -> None:
    network = StandInNetwork()
    async with running_lane(network, max_delay_s=0.05) as lane:
        await asyncio.sleep(0.06)  # longer than the delay: an idle clock must not have been running
        [done] = await lane.submit([1], soon())
        assert 0.045 <= done.queued_s < 1


async def test_who_leaves_while_lingering_takes_the_clock_along() -> None:
    network = StandInNetwork()
    async with running_lane(network, max_delay_s=0.05) as lane:
        early = ask(lane, 1)
        await until_waiting(lane, 1)
        await asyncio.sleep(0.03)
        early.cancel()
        [done] = await lane.submit([2], soon())
    assert done.queued_s >= 0.045
    assert network.batches == [[2]]


async def test_metrics_are_told_sizes_seconds_waits_and_depths() -> None:
    network, metrics = StandInNetwork(), RecordedMetrics()
    async with running_lane(network, max_batch_size=2, metrics=metrics) as lane:
        await lane.submit([1, 2, 3], soon())
    assert [size for size, _ in metrics.batches] == [2, 1]
    assert all(0 <= seconds < 1 for _, seconds in metrics.batches)
    assert metrics.depths == [3, 1, 0]
    assert len(metrics.waits) == 3
    assert all(0 <= wait < 1 for wait in metrics.waits)


async def test_the_rate_is_of_passes_not_of_items() -> None:
    network, metrics = StandInNetwork(), RecordedMetrics()
    async with running_lane(network, metrics=metrics) as lane:
        await lane.submit([1, 2], soon(), [3, 7])
    [(_, seconds)] = metrics.batches
    assert metrics.rates == [pytest.approx(seconds / 10)]
    assert lane.seconds_per_pass == metrics.rates[0]


async def test_a_full_queue_refuses_exactly_what_does_not_fit() -> None:
    network = StandInNetwork()
    async with running_lane(network, max_batch_size=4, max_queue_size=6) as lane:
        first = await occupy(lane, network)
        asked = [ask(lane, n) for n in range(1, 21)]
        await asyncio.wait(asked[6:])  # refused at once: the gate is still shut
        refused = [task.exception() for task in asked[6:]]
        assert [type(error) for error in refused] == [Overloaded] * 14
        assert lane.depth == 6
        network.gate.set()
        assert await outcomes(first, *asked[:6]) == [[-n] for n in range(7)]
    assert network.batches == [[0], [1, 2, 3, 4], [5, 6]]


async def test_a_request_is_admitted_whole_or_not_at_all() -> None:
    network = StandInNetwork()
    async with running_lane(network, max_queue_size=4) as lane:
        first = await occupy(lane, network)
        fits = ask(lane, 1, 2, 3)
        await until_waiting(lane, 3)
        [refused] = await outcomes(ask(lane, 4, 5))
        assert isinstance(refused, Overloaded)
        assert lane.depth == 3
        last = ask(lane, 6)
        await until_waiting(lane, 4)
        network.gate.set()
        assert await outcomes(first, fits, last) == [[0], [-1, -2, -3], [-6]]


async def test_retry_after_is_the_measured_rate_times_the_queue() -> None:
    network, metrics = StandInNetwork(), RecordedMetrics()
    async with running_lane(network, max_queue_size=200, metrics=metrics) as lane:
        assert lane.wait_s == 0.0
        first = await occupy(lane, network)
        await asyncio.sleep(0.05)
        network.gate.set()
        await first
        second = await occupy(lane, network)
        crowd = ask(lane, *range(200))
        await until_waiting(lane, 200)
        [refused] = await outcomes(ask(lane, 1))
        assert isinstance(refused, Overloaded)
        assert refused.retry_after_s == pytest.approx(200 * metrics.batches[0][1])
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
    rng = random.Random(seed)
    run_items: list[int] = []

    def run(items: Sequence[int]) -> Sequence[int | Exception]:
        assert 1 <= len(items) <= 8
        run_items.extend(items)
        if any(n % 17 == 3 for n in items):
            raise ValueError
        return [KeyError() if n % 17 == 5 else -n for n in items]

    async with running_lane(run, max_queue_size=40, max_delay_s=0.0005 * seed) as lane:
        asked: list[tuple[tuple[int, ...], asyncio.Task[list[BatchResult[int]]]]] = []
        number = 0
        for _ in range(2000):
            items = tuple(range(number, number + rng.choice([1, 1, 1, 2, 5])))
            number += len(items)
            patience = rng.choice([0.0, 0.0005, 0.002, PATIENCE_S, PATIENCE_S, PATIENCE_S])
            asked.append((items, ask(lane, *items, within_s=patience)))
            if rng.random() < 0.2:
                rng.choice(asked[-30:])[1].cancel()
            if rng.random() < 0.1:
                await asyncio.sleep(0)  # those asked get in line
                await until_waiting(lane, at_most=rng.choice([0, 10, 20, 30]))
        settled = await asyncio.wait_for(asyncio.gather(*(task for _, task in asked), return_exceptions=True), PATIENCE_S * 3)
        assert lane.alive
        assert lane.depth == 0
        assert not lane._submissions

    for (items, _), outcome in zip(asked, settled, strict=True):
        assert _own_answer(items, outcome), (items, outcome)
    kinds = Counter(type(outcome) for outcome in settled)
    assert kinds.keys() == {list, EngineError, DeadlineExceeded, Overloaded, asyncio.CancelledError}
    assert kinds[list] > 400, kinds
    assert len(run_items) < 4 * number  # halving stays bounded

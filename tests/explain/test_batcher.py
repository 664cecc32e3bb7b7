"""The batcher with honest stand-ins for a network: real threads that run, wait at a gate, raise or answer too little."""

from __future__ import annotations

import asyncio
import logging
import random
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from service.errors import (
    DeadlineExceeded,
    EngineError,
    InferenceNonFinite,
    ModelUnhealthy,
    NotReady,
    Overloaded,
    ShuttingDown,
)
from service.explain.batcher import Batcher, Done

pytestmark = pytest.mark.anyio

PATIENCE_S = 10.0  # how long a test waits for what must happen at once


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": request.param}


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


def ask(batcher: Batcher[int, int], *items: int, deadline: float | None = None) -> asyncio.Task[list[Done[int]]]:
    return asyncio.create_task(batcher.submit(items, deadline=deadline if deadline is not None else soon()))


async def occupied(batcher: Batcher[int, int], network: Network) -> asyncio.Task[list[Done[int]]]:
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


async def outcomes(*tasks: asyncio.Task[list[Done[int]]]) -> list[list[int] | BaseException]:
    settled = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), PATIENCE_S)
    return [[done.value for done in one] if isinstance(one, list) else one for one in settled]


# Gathering --------------------------------------------------------------------------------------------------------------


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


# Failing ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ValueError("bad"), StopIteration(), SystemExit(1), asyncio.CancelledError()], ids=repr)
@pytest.mark.parametrize("poisoned", range(8))
async def test_one_poisoned_item_among_eight_fails_alone(poisoned: int, error: BaseException) -> None:
    network = Network(frozenset({poisoned}), error=error)
    async with batching(network) as batcher:
        settled = await outcomes(*(ask(batcher, n) for n in range(8)))
        assert batcher.alive
    failed = settled.pop(poisoned)
    assert isinstance(failed, EngineError)
    assert failed.__cause__ is error
    assert settled == [[-n] for n in range(8) if n != poisoned]
    assert len(network.batches) == 7  # 8, then 4 + 4, 2 + 2, 1 + 1


async def test_an_error_of_ours_arrives_as_it_is() -> None:
    error = InferenceNonFinite("not finite")
    async with batching(Network(frozenset({2}), error=error)) as batcher:
        assert await outcomes(ask(batcher, 1), ask(batcher, 2)) == [[-1], error]


async def test_when_everything_fails_the_calls_of_run_stay_bounded() -> None:
    network = Network(frozenset(range(8)))
    async with batching(network) as batcher:
        settled = await outcomes(*(ask(batcher, n) for n in range(8)))
    assert all(isinstance(one, EngineError) for one in settled)
    assert len(network.batches) == 15


async def test_a_request_fails_as_a_whole_and_its_other_items_are_not_run() -> None:
    network = Network(frozenset({1}))
    async with batching(network, max_batch_size=2) as batcher:
        failed, spared = await outcomes(ask(batcher, 1, 2, 3, 4, 5), ask(batcher, 6))
    assert isinstance(failed, EngineError)
    assert spared == [-6]
    assert network.batches == [[1, 2], [1], [6]]


async def test_an_item_whose_result_is_an_exception_fails_alone() -> None:
    ours, theirs = InferenceNonFinite("not finite"), KeyError("layer4")

    def run(items: Sequence[int]) -> Sequence[int | Exception]:
        return [{1: ours, 2: theirs}.get(item, -item) for item in items]

    async with batching(run) as batcher:
        first, second, third = await outcomes(ask(batcher, 1), ask(batcher, 2), ask(batcher, 3))
    assert first is ours
    assert isinstance(second, EngineError)
    assert second.__cause__ is theirs
    assert "layer4" not in second.detail
    assert third == [-3]


@pytest.mark.parametrize("broken", [lambda items: items[1:], lambda items: [*items, 1]], ids=["too few", "too many"])
async def test_a_wrong_number_of_results_fails_that_batch_and_not_the_worker(broken: Callable[[Sequence[int]], Any]) -> None:
    network = Network()
    sizes = []

    def run(items: Sequence[int]) -> Sequence[int | Exception]:
        sizes.append(len(items))
        return broken(items) if 13 in items else network(items)

    async with batching(run, max_batch_size=4) as batcher:
        settled = await outcomes(*(ask(batcher, n) for n in (11, 12, 13, 14, 15)))
    assert [type(one) for one in settled[:4]] == [EngineError] * 4
    assert settled[4] == [-15]
    assert sizes == [4, 1]


async def test_no_answer_at_all_is_an_error_too() -> None:
    def run(items: Sequence[int]) -> Any:
        return None

    async with batching(run) as batcher:
        [settled] = await outcomes(ask(batcher, 1))
        assert isinstance(settled, EngineError)
        assert batcher.alive


# Leaving ----------------------------------------------------------------------------------------------------------------


async def test_who_leaves_the_line_is_not_run_and_frees_the_place() -> None:
    network = Network()
    async with batching(network, max_queue_size=2) as batcher:
        first = await occupied(batcher, network)
        leaving, staying = ask(batcher, 1), ask(batcher, 2)
        await until_waiting(batcher, 2)
        leaving.cancel()
        await until_waiting(batcher, 1)
        following = ask(batcher, 3)
        await until_waiting(batcher, 2)
        network.gate.set()
        assert await outcomes(first, staying, following) == [[0], [-2], [-3]]
    assert leaving.cancelled()
    assert network.batches == [[0], [2, 3]]


async def test_who_leaves_while_the_batch_runs_disturbs_nobody() -> None:
    network = Network()
    async with batching(network) as batcher:
        first = await occupied(batcher, network)
        together = [ask(batcher, n) for n in (1, 2, 3)]
        await until_waiting(batcher, 3)
        network.gate.set()
        await first
        network.gate.clear()
        await network.busy()
        together[0].cancel()
        await asyncio.wait(together[:1])
        network.gate.set()
        assert await outcomes(*together[1:], ask(batcher, 4)) == [[-2], [-3], [-4]]
        assert batcher.alive


async def test_who_leaves_is_not_tried_again_with_a_failed_batch() -> None:
    network = Network(frozenset({1}))
    async with batching(network) as batcher:
        network.gate.clear()
        poisoned, spared = ask(batcher, 1), ask(batcher, 2)
        await network.busy()
        poisoned.cancel()
        await asyncio.wait([poisoned])
        network.gate.set()
        assert await outcomes(spared) == [[-2]]
    assert network.batches == [[1, 2], [2]]


async def test_a_deadline_passed_in_the_line_is_answered_and_not_run() -> None:
    network = Network()
    async with batching(network) as batcher:
        first = await occupied(batcher, network)
        late = ask(batcher, 1, 2, deadline=asyncio.get_running_loop().time() + 0.02)
        with pytest.raises(DeadlineExceeded):
            await asyncio.wait_for(late, PATIENCE_S)  # the gate is still shut
        assert batcher.depth == 0
        network.gate.set()
        assert await outcomes(first, ask(batcher, 3)) == [[0], [-3]]
    assert network.batches == [[0], [3]]


async def test_a_deadline_is_kept_while_the_batch_still_runs() -> None:
    network = Network()
    async with batching(network) as batcher:
        network.gate.clear()
        late = ask(batcher, 1, deadline=asyncio.get_running_loop().time() + 0.02)
        patient = ask(batcher, 2)
        await network.busy()
        with pytest.raises(DeadlineExceeded):
            await asyncio.wait_for(late, PATIENCE_S)
        network.gate.set()
        assert await outcomes(patient) == [[-2]]
    assert network.batches == [[1, 2]]


async def test_a_deadline_already_past_never_reaches_run() -> None:
    network = Network()
    async with batching(network) as batcher:
        [settled] = await outcomes(ask(batcher, 1, deadline=0.0))
    assert isinstance(settled, DeadlineExceeded)
    assert network.batches == []


# A full line ------------------------------------------------------------------------------------------------------------


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


# The end ----------------------------------------------------------------------------------------------------------------


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


# Everything at once -----------------------------------------------------------------------------------------------------


def _own_answer(items: tuple[int, ...], outcome: list[Done[int]] | BaseException) -> bool:
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
        asked: list[tuple[tuple[int, ...], asyncio.Task[list[Done[int]]]]] = []
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

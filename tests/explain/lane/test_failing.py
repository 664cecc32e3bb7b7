"""What raises fails alone, and every failure has an answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from service.errors import (
    EngineError,
    InferenceNonFinite,
)
from tests.explain.lane.stand_ins import StandInNetwork, ask, outcomes, running_lane

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("error", [ValueError("bad"), StopIteration(), SystemExit(1), asyncio.CancelledError()], ids=repr)
@pytest.mark.parametrize("poisoned", range(8))
async def test_one_poisoned_item_among_eight_fails_alone(poisoned: int, error: BaseException) -> None:
    network = StandInNetwork(frozenset({poisoned}), error=error)
    async with running_lane(network) as lane:
        settled = await outcomes(*(ask(lane, n) for n in range(8)))
        assert lane.alive
    failed = settled.pop(poisoned)
    assert isinstance(failed, EngineError)
    assert failed.__cause__ is error
    assert settled == [[-n] for n in range(8) if n != poisoned]
    assert len(network.batches) == 7  # 8, then 4 + 4, 2 + 2, 1 + 1


async def test_an_error_of_ours_arrives_as_it_is() -> None:
    error = InferenceNonFinite("not finite")
    async with running_lane(StandInNetwork(frozenset({2}), error=error)) as lane:
        assert await outcomes(ask(lane, 1), ask(lane, 2)) == [[-1], error]


async def test_when_everything_fails_the_calls_of_run_stay_bounded() -> None:
    network = StandInNetwork(frozenset(range(8)))
    async with running_lane(network) as lane:
        settled = await outcomes(*(ask(lane, n) for n in range(8)))
    assert all(isinstance(one, EngineError) for one in settled)
    assert len(network.batches) == 15


async def test_a_request_fails_as_a_whole_and_its_other_items_are_not_run() -> None:
    network = StandInNetwork(frozenset({1}))
    async with running_lane(network, max_batch_size=2) as lane:
        failed, spared = await outcomes(ask(lane, 1, 2, 3, 4, 5), ask(lane, 6))
    assert isinstance(failed, EngineError)
    assert spared == [-6]
    assert network.batches == [[1, 2], [1], [6]]


async def test_an_item_whose_result_is_an_exception_fails_alone() -> None:
    ours, theirs = InferenceNonFinite("not finite"), KeyError("layer4")

    def run(items: Sequence[int]) -> Sequence[int | Exception]:
        return [{1: ours, 2: theirs}.get(item, -item) for item in items]

    async with running_lane(run) as lane:
        first, second, third = await outcomes(ask(lane, 1), ask(lane, 2), ask(lane, 3))
    assert first is ours
    assert isinstance(second, EngineError)
    assert second.__cause__ is theirs
    assert "layer4" not in second.detail
    assert third == [-3]


@pytest.mark.parametrize("broken", [lambda items: items[1:], lambda items: [*items, 1]], ids=["too few", "too many"])
async def test_a_wrong_number_of_results_fails_that_batch_and_not_the_worker(broken: Callable[[Sequence[int]], Any]) -> None:
    network = StandInNetwork()
    sizes = []

    def run(items: Sequence[int]) -> Sequence[int | Exception]:
        sizes.append(len(items))
        return broken(items) if 13 in items else network(items)

    async with running_lane(run, max_batch_size=4) as lane:
        settled = await outcomes(*(ask(lane, n) for n in (11, 12, 13, 14, 15)))
    assert [type(one) for one in settled[:4]] == [EngineError] * 4
    assert settled[4] == [-15]
    assert sizes == [4, 1]


async def test_no_answer_at_all_is_an_error_too() -> None:
    def run(items: Sequence[int]) -> Any:
        return None

    async with running_lane(run) as lane:
        [settled] = await outcomes(ask(lane, 1))
        assert isinstance(settled, EngineError)
        assert lane.alive

"""Callers who give up and deadlines that pass disturb nobody else."""

from __future__ import annotations

import asyncio

import pytest

from service.errors import (
    DeadlineExceeded,
)
from tests.explain.lane.stand_ins import PATIENCE_S, StandInNetwork, ask, occupy, outcomes, running_lane, until_waiting

pytestmark = pytest.mark.anyio


async def test_who_leaves_the_line_is_not_run_and_frees_the_place() -> None:
    network = StandInNetwork()
    async with running_lane(network, max_queue_size=2) as lane:
        first = await occupy(lane, network)
        leaving, staying = ask(lane, 1), ask(lane, 2)
        await until_waiting(lane, 2)
        leaving.cancel()
        await until_waiting(lane, 1)
        following = ask(lane, 3)
        await until_waiting(lane, 2)
        network.gate.set()
        assert await outcomes(first, staying, following) == [[0], [-2], [-3]]
    assert leaving.cancelled()
    assert network.batches == [[0], [2, 3]]


async def test_who_leaves_while_the_batch_runs_disturbs_nobody() -> None:
    network = StandInNetwork()
    async with running_lane(network) as lane:
        first = await occupy(lane, network)
        together = [ask(lane, n) for n in (1, 2, 3)]
        await until_waiting(lane, 3)
        network.gate.set()
        await first
        network.gate.clear()
        await network.busy()
        together[0].cancel()
        await asyncio.wait(together[:1])
        network.gate.set()
        assert await outcomes(*together[1:], ask(lane, 4)) == [[-2], [-3], [-4]]
        assert lane.alive


async def test_who_leaves_is_not_tried_again_with_a_failed_batch() -> None:
    network = StandInNetwork(frozenset({1}))
    async with running_lane(network) as lane:
        network.gate.clear()
        poisoned, spared = ask(lane, 1), ask(lane, 2)
        await network.busy()
        poisoned.cancel()
        await asyncio.wait([poisoned])
        network.gate.set()
        assert await outcomes(spared) == [[-2]]
    assert network.batches == [[1, 2], [2]]


async def test_a_deadline_passed_in_the_line_is_answered_and_not_run() -> None:
    network = StandInNetwork()
    async with running_lane(network) as lane:
        first = await occupy(lane, network)
        late = ask(lane, 1, 2, within_s=0.02)
        with pytest.raises(DeadlineExceeded):
            await asyncio.wait_for(late, PATIENCE_S)  # the gate is still shut
        assert lane.depth == 0
        network.gate.set()
        assert await outcomes(first, ask(lane, 3)) == [[0], [-3]]
    assert network.batches == [[0], [3]]


async def test_a_deadline_is_kept_while_the_batch_still_runs() -> None:
    network = StandInNetwork()
    async with running_lane(network) as lane:
        network.gate.clear()
        late = ask(lane, 1, within_s=0.02)
        patient = ask(lane, 2)
        await network.busy()
        with pytest.raises(DeadlineExceeded):
            await asyncio.wait_for(late, PATIENCE_S)
        network.gate.set()
        assert await outcomes(patient) == [[-2]]
    assert network.batches == [[1, 2]]


async def test_a_deadline_already_past_never_reaches_run() -> None:
    network = StandInNetwork()
    async with running_lane(network) as lane:
        [settled] = await outcomes(ask(lane, 1, within_s=-1.0))
    assert isinstance(settled, DeadlineExceeded)
    assert network.batches == []

"""Callers who give up and deadlines that pass disturb nobody else."""

from __future__ import annotations

import asyncio

import pytest

from service.errors import (
    DeadlineExceeded,
)
from tests.explain.batcher.batches import PATIENCE_S, Network, ask, batching, occupied, outcomes, until_waiting

pytestmark = pytest.mark.anyio


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

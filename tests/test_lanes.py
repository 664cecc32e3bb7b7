"""Two lanes of one model: a method of thousands of passes runs, and nobody else's request notices. Real workers and threads."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from torch import Tensor

from service.engine.methods.probe import WHOLE_ROWS, Probe
from service.engine.network import Network
from service.engine.types import EngineRequest, EngineResult
from service.errors import DeadlineExceeded
from service.explain.results import Encoded
from tests import images as make
from tests.explain.world import World, small_network, until, world

pytestmark = pytest.mark.anyio

IMAGE = make.save(make.scene(96, 48), "PNG")
LONG = 10_000  # samples: seconds, even on a network of two convolutions
CHUNKS = LONG // WHOLE_ROWS


@dataclass
class Watched:
    """What both lanes did: chunks of long methods begun, and those begun within each batch of the quick lane."""

    chunks: int = 0
    beside: list[int] = field(default_factory=list)
    begun: threading.Event = field(default_factory=threading.Event)

    async def under_way(self) -> None:
        assert await asyncio.to_thread(self.begun.wait, 10)

    async def at_rest(self) -> int:
        """Chunks begun once no more are."""
        seen = -1

        async def resting() -> bool:
            nonlocal seen
            seen, before = self.chunks, seen
            await asyncio.sleep(0.3)
            return before == self.chunks == seen

        await until(resting)
        return self.chunks


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    seen = Watched()
    whole, run = Probe.whole, Network.run

    def watched_whole(self: Probe, images: Tensor) -> Tensor:
        seen.chunks += 1
        if seen.chunks == 3:
            seen.begun.set()
        return whole(self, images)

    def watched_run(self: Network, works: Sequence[EngineRequest]) -> list[EngineResult | Exception]:
        before = seen.chunks
        outcomes = run(self, works)
        seen.beside.append(seen.chunks - before)
        return outcomes

    monkeypatch.setattr(Probe, "whole", watched_whole)
    monkeypatch.setattr(Network, "run", watched_run)
    return seen


@pytest.fixture
async def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, watched: Watched) -> AsyncIterator[World]:
    async with world(tmp_path, monkeypatch) as ready:
        monkeypatch.setattr(small_network(), "seconds_per_image", 0.0)  # so that no estimate refuses what is to run
        watched.beside.clear()
        yield ready


async def test_quick_requests_pass_a_long_one(small: World, watched: Watched) -> None:
    long = asyncio.create_task(small.explain(IMAGE, method="rise", samples=LONG, within_s=120))
    await watched.under_way()
    for _ in range(20):
        await small.explain(IMAGE)
    assert not long.done(), "it was not long enough to prove anything"
    # While a batch runs no chunk begins, but for one that had looked just before.
    assert len(watched.beside) == 20
    assert max(watched.beside) <= 1
    long.cancel()


async def test_a_long_request_gets_on_under_quick_ones(small: World) -> None:
    long = asyncio.create_task(small.explain(IMAGE, method="rise", samples=400, within_s=120))
    quick = 0
    while not long.done():
        await small.explain(IMAGE)
        quick += 1
        assert quick < 3000
    assert (await long).results[0].explanations[0].method == "rise"


async def test_a_long_request_stops_when_its_client_leaves(small: World, watched: Watched) -> None:
    long = asyncio.create_task(small.explain(IMAGE, method="rise", samples=LONG, within_s=120))
    await watched.under_way()
    long.cancel()
    with pytest.raises(asyncio.CancelledError):
        await long
    assert await watched.at_rest() < CHUNKS
    # The lane is free again.
    await small.explain(IMAGE, method="rise", samples=8)


async def test_a_deadline_stops_a_long_request(small: World, watched: Watched) -> None:
    with pytest.raises(DeadlineExceeded):
        await small.explain(IMAGE, method="rise", samples=LONG, within_s=0.4)
    assert 0 < await watched.at_rest() < CHUNKS


async def test_what_cannot_be_ready_in_time_is_refused_at_once(
    small: World, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(small_network(), "seconds_per_image", 1.0)
    started = time.perf_counter()
    with pytest.raises(DeadlineExceeded, match="about 100 s") as refused:
        await small.explain(b"not even an image", method="rise", samples=100, within_s=30)
    assert time.perf_counter() - started < 5
    assert refused.value.status == 504
    assert watched.chunks == 0
    await small.explain(IMAGE, method="rise", samples=8, within_s=30)
    await small.explain(IMAGE, within_s=30)


async def test_every_layer_and_class_counts_in_the_estimate(small: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small_network(), "seconds_per_image", 1.0)
    with pytest.raises(DeadlineExceeded, match="about 80 s"):
        await small.explain(IMAGE, method="scorecam", samples=20, class_id=(0, 1), layer=("stem", "block"), within_s=30)


@pytest.mark.parametrize("method", ["rise", "lime", "kernel_shap", "smoothgrad", "gradient_shap"])
async def test_the_same_seed_gets_the_same_answer_and_another_another(small: World, method: str) -> None:
    async def answer(seed: int) -> bytes:
        document = (await small.explain(IMAGE, delivery="npy", method=method, samples=16, seed=seed)).document
        assert isinstance(document, Encoded)
        return document.data

    one, again, other = await answer(1), await answer(1), await answer(2)
    assert one == again
    assert one != other

"""Two lanes of one model: a method of thousands of passes runs, and nobody else's request notices. Real workers and threads."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from service.engine.batch import EngineRequest
from service.engine.graph.runner import NETWORK_ROWS, ChunkedRunner
from service.engine.methods.method import QueryMethod
from service.engine.network import Network
from service.engine.types import EngineResult, LayerStatisticsResult
from service.errors import DeadlineExceeded, Overloaded
from service.explain.results import Media
from service.explain.scheduler import Deadline
from tests import image_files as make
from tests.explain.small_service import SmallService, explained, small_service, until

pytestmark = pytest.mark.anyio

IMAGE = make.save(make.scene(96, 48), "PNG")
LONG = 10_000  # samples: seconds, even on a network of two convolutions
CHUNKS = LONG // NETWORK_ROWS


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
    logits, run = ChunkedRunner.logits, Network.run

    def watched_logits(self: ChunkedRunner, images: Tensor) -> Tensor:
        seen.chunks += 1
        if seen.chunks == 3:
            seen.begun.set()
        return logits(self, images)

    def watched_run(self: Network, requests: Sequence[EngineRequest], *rest: Any) -> list[EngineResult | Exception]:
        before = seen.chunks
        results = run(self, requests, *rest)
        if not isinstance(requests[0].method, QueryMethod):
            seen.beside.append(seen.chunks - before)
        return results

    monkeypatch.setattr(ChunkedRunner, "logits", watched_logits)
    monkeypatch.setattr(Network, "run", watched_run)
    return seen


@pytest.fixture
async def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, watched: Watched) -> AsyncIterator[SmallService]:
    async with small_service(tmp_path, monkeypatch) as ready:
        # So that no estimate refuses what is to run.
        monkeypatch.setattr(ready.registry.get(None).scheduler.fast, "seconds_per_pass", 0.0)
        watched.beside.clear()
        yield ready


async def test_quick_requests_pass_a_long_one(small: SmallService, watched: Watched) -> None:
    long = asyncio.create_task(small.explain(IMAGE, method="rise", samples=LONG, within_s=120))
    await watched.under_way()
    for _ in range(20):
        await small.explain(IMAGE)
    assert not long.done(), "it was not long enough to prove anything"
    # While a batch runs no chunk begins, but for one that had looked just before.
    assert len(watched.beside) == 20
    assert max(watched.beside) <= 1
    long.cancel()


async def test_a_long_request_gets_on_under_quick_ones(small: SmallService) -> None:
    long = asyncio.create_task(small.explain(IMAGE, method="rise", samples=400, within_s=120))
    quick = 0
    while not long.done():
        await small.explain(IMAGE)
        quick += 1
        assert quick < 3000
    assert explained(await long)[0].explanations[0].method == "rise"


async def test_a_long_request_stops_when_its_client_leaves(small: SmallService, watched: Watched) -> None:
    long = asyncio.create_task(small.explain(IMAGE, method="rise", samples=LONG, within_s=120))
    await watched.under_way()
    long.cancel()
    with pytest.raises(asyncio.CancelledError):
        await long
    assert await watched.at_rest() < CHUNKS
    # The lane is free again.
    await small.explain(IMAGE, method="rise", samples=8)


async def test_a_deadline_stops_a_long_request(small: SmallService, watched: Watched) -> None:
    with pytest.raises(DeadlineExceeded):
        await small.explain(IMAGE, method="rise", samples=LONG, within_s=0.4)
    assert 0 < await watched.at_rest() < CHUNKS


async def test_what_cannot_be_ready_in_time_is_refused_at_once(
    small: SmallService, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(small.registry.get(None).scheduler.fast, "seconds_per_pass", 1.0)
    started = time.perf_counter()
    with pytest.raises(DeadlineExceeded, match="about 100 s") as refused:
        await small.explain(b"not even an image", method="rise", samples=100, within_s=30)
    assert time.perf_counter() - started < 5
    assert refused.value.status == 504
    assert watched.chunks == 0
    await small.explain(IMAGE, method="rise", samples=8, within_s=30)
    await small.explain(IMAGE, within_s=30)


async def test_work_on_layers_that_nobody_waits_for_is_not_begun(small: SmallService, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[str] = []
    describe = Network.layer_statistics

    def watched_statistics(self: Network, *arguments: Any) -> LayerStatisticsResult:
        result = describe(self, *arguments)
        begun.append("done")
        return result

    monkeypatch.setattr(Network, "layer_statistics", watched_statistics)
    scheduler = small.registry.get(None).scheduler
    entered, gate = threading.Event(), threading.Event()

    def block(_checkpoint: object) -> None:
        entered.set()
        gate.wait(10)

    deadline = Deadline(30)
    async with scheduler.admit({"slow": 1}, 0, deadline) as reservation:
        blocking = asyncio.create_task(scheduler.run_jobs([block], deadline, reservation))
        assert await asyncio.to_thread(entered.wait, 10)
        inspecting = asyncio.create_task(small.inspect(IMAGE))

        async def is_waiting() -> bool:
            return scheduler.slow.depth == 1

        await until(is_waiting)
        inspecting.cancel()
        await asyncio.gather(inspecting, return_exceptions=True)
        gate.set()
        await blocking
    await small.inspect(IMAGE)
    assert begun == ["done"]


async def test_inspecting_stops_at_its_checkpoint_when_its_client_leaves(
    small: SmallService, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, gate = threading.Event(), threading.Event()
    split = Network._split

    def held(self: Network, *arguments: Any) -> object:
        entered.set()
        gate.wait(10)
        return split(self, *arguments)

    passes: list[object] = []
    monkeypatch.setattr(Network, "_split", held)
    monkeypatch.setattr(Network, "_normalize", lambda *arguments: passes.append(arguments))
    inspecting = asyncio.create_task(small.inspect(IMAGE))
    assert await asyncio.to_thread(entered.wait, 10)
    inspecting.cancel()
    await asyncio.gather(inspecting, return_exceptions=True)
    gate.set()
    scheduler = small.registry.get(None).scheduler
    deadline = Deadline(30)
    async with scheduler.admit({"slow": 1}, 0, deadline) as reservation:
        await scheduler.run_jobs([lambda _checkpoint: None], deadline, reservation)  # comes after it
    assert not passes, "the network was not asked for a request that nobody waits for"


async def test_places_for_the_evaluation_are_held_while_the_maps_are_computed(
    small: SmallService, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, gate = threading.Event(), threading.Event()
    run = Network.run

    def held(self: Network, *arguments: Any) -> object:
        entered.set()
        gate.wait(10)
        return run(self, *arguments)

    scheduler = small.registry.get(None).scheduler
    monkeypatch.setattr(Network, "run", held)
    monkeypatch.setattr(scheduler.slow, "_max_queue_size", 2)
    asking = asyncio.create_task(small.explain(IMAGE, method="rise", samples=8, evaluate=True, within_s=30))
    assert await asyncio.to_thread(entered.wait, 10)
    with pytest.raises(Overloaded):
        async with scheduler.admit({"slow": 2}, 0, Deadline(30)):
            pass
    async with scheduler.admit({"slow": 1}, 0, Deadline(30)):
        gate.set()
        (result,) = explained(await asking)
    assert result.explanations[0].evaluation is not None


async def test_every_layer_and_class_counts_in_the_estimate(small: SmallService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small.registry.get(None).scheduler.fast, "seconds_per_pass", 1.0)
    with pytest.raises(DeadlineExceeded, match="about 80 s"):
        await small.explain(IMAGE, method="scorecam", samples=20, class_id=(0, 1), layer=("stem", "block"), within_s=30)


@pytest.mark.parametrize("method", ["rise", "lime", "kernel_shap", "smoothgrad", "gradient_shap"])
async def test_the_same_seed_gets_the_same_answer_and_another_another(small: SmallService, method: str) -> None:
    async def answer(seed: int) -> bytes:
        media = (await small.explain(IMAGE, delivery="npy", method=method, samples=16, seed=seed)).media
        assert isinstance(media, Media)
        return media.data

    one, again, other = await answer(1), await answer(1), await answer(2)
    assert one == again
    assert one != other

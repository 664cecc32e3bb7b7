"""The cache under the explainer: what does not run the network, and that nobody could tell from the answer."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from service.engine.batch import EngineRequest
from service.engine.network import Network
from service.engine.types import EngineResult
from service.errors import DeadlineExceeded, ImageTruncated, InferenceNonFinite, ParameterInvalid
from service.explain.results import Answer, ExplainResult
from service.vocabulary import CachePolicy, Delivery
from tests import image_files as make
from tests.explain.small_service import SmallService, explained, small_service

pytestmark = pytest.mark.anyio

SCENE = make.scene(96, 48)
IMAGE = make.save(SCENE, "PNG")

# Everything that is decided after the network has spoken.
DRAWN: list[dict[str, Any]] = [
    *({"polarity": polarity, "scale": scale} for polarity, scale in itertools.product(
        ("positive", "negative", "both"), ("minmax", "max", "shared", "none"))),
    *({"overlay": True, "overlay_type": one} for one in ("original", "grayscale", "mask_black", "none", "panel")),
    {"overlay": True, "color_map": "viridis"}, {"overlay": True, "alpha": 0.9}, {"size": "input"}, {"size": 200},
    {"clip_percent_lowerbound": 20, "clip_percent_upperbound": 80}, {"heatmap": "npy"}, {"heatmap": "png16"},
    {"heatmap": "list"}, {"heatmap": "none"},
]  # fmt: skip
# Everything that the network is told.
ASKED: list[dict[str, Any]] = [
    {"class_id": "4,2"}, {"class_id": "2"}, {"class_id": 2, "versus": 4}, {"top_k": 3}, {"fit": "squash"}, {"fit": "pad"},
    {"fit": "native"}, {"layer": "stem"}, {"layer": ("stem", "block")}, {"layer": ("block", "stem")}, {"method": "layercam"},
    {"method": "gradcam", "eigen_smooth": True}, {"method": "rise", "samples": 8}, {"method": "rise", "samples": 8, "seed": 7},
]  # fmt: skip


@dataclass
class Runs:
    """Images that the network was given, in batches and aside; it can be held, and made to fail."""

    images: int = 0
    gate: threading.Event = field(default_factory=threading.Event)
    begun: threading.Event = field(default_factory=threading.Event)
    failures: list[Exception] = field(default_factory=list)

    def observe(self, works: Sequence[EngineRequest]) -> Exception | None:
        self.images += len(works)
        self.begun.set()
        self.gate.wait(10)
        return self.failures.pop() if self.failures else None


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Runs]:
    seen = Runs()
    seen.gate.set()
    run = Network.run

    def observed(network: Network, requests: Sequence[EngineRequest], *checkpoints: Any) -> list[EngineResult | Exception]:
        failure = seen.observe(requests)
        return run(network, requests, *checkpoints) if failure is None else [failure] * len(requests)

    monkeypatch.setattr(Network, "run", observed)
    yield seen
    seen.gate.set()


@pytest.fixture
async def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: Runs) -> AsyncIterator[SmallService]:
    async with small_service(tmp_path, monkeypatch, cache_entries=64) as ready:
        runs.images = 0
        yield ready


def told(answer: Answer) -> object:
    """All of an answer but how long it took and where it came from."""
    return answer.model, answer.results, answer.media


async def ask(small: SmallService, *images: bytes, policy: CachePolicy = "use", within_s: float = 30, **options: Any) -> Answer:
    return await small.explain(*images, policy=policy, within_s=within_s, **options)


@pytest.mark.parametrize("delivery", ["json", "png", "jpeg", "webp", "npy"])
async def test_a_hit_is_the_same_answer_byte_for_byte(small: SmallService, runs: Runs, delivery: Delivery) -> None:
    first = await small.explain(IMAGE, delivery=delivery)
    again = await small.explain(IMAGE, delivery=delivery)
    assert (first.cache, again.cache) == ("miss", "hit")
    assert told(first) == told(again)
    assert runs.images == 1
    assert (again.timings.queue, again.timings.infer, again.batch_size) == (0, 0, 0)
    assert again.timings.decode > 0
    assert again.timings.total > 0


async def test_however_it_is_drawn_the_network_runs_once(
    small: SmallService, runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And drawing leaves no trace in what is remembered: the last answer is still that of a service without memory."""
    classes: dict[str, Any] = {"class_id": "4,2,0"}
    drawn = [told(await small.explain(IMAGE, **classes, **options)) for options in DRAWN]
    assert runs.images == 1
    assert len({repr(one) for one in drawn}) == len(DRAWN), "every one of them shows"
    backwards = [told(await small.explain(IMAGE, **classes, **options)) for options in reversed(DRAWN)]
    assert backwards == drawn[::-1]
    (tmp_path / "without").mkdir()
    async with small_service(tmp_path / "without", monkeypatch) as forgetful:
        assert [told(await forgetful.explain(IMAGE, **classes, **options)) for options in DRAWN] == drawn
    assert 'camserve_cache_requests_total{result="miss"} 1.0' in small.metrics.render()[0].decode()
    assert f'camserve_cache_requests_total{{result="hit"}} {2 * len(DRAWN) - 1}.0' in small.metrics.render()[0].decode()


async def test_nothing_is_taken_for_something_else(
    small: SmallService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is asked with all the others remembered, and answered as a service without memory does."""
    answers = [await small.explain(IMAGE, **options) for options in ({}, *ASKED)]
    assert {answer.cache for answer in answers} == {"miss"}
    again = [await small.explain(IMAGE, **options) for options in ({}, *ASKED)]
    assert {answer.cache for answer in again} == {"hit"}
    (tmp_path / "without").mkdir()
    async with small_service(tmp_path / "without", monkeypatch) as forgetful:
        for options, one, other in zip(({}, *ASKED), answers, again, strict=True):
            assert told(one) == told(other) == told(await forgetful.explain(IMAGE, **options)), options


async def test_a_pixel_makes_another_image(small: SmallService) -> None:
    pixels = np.asarray(SCENE).copy()
    pixels[20, 40, 0] ^= 1
    other = make.save(Image.fromarray(pixels), "PNG")
    one, two = await ask(small, IMAGE), await ask(small, other)
    assert (one.cache, two.cache) == ("miss", "miss")
    assert one.results[0].image.sha256 != two.results[0].image.sha256


async def test_of_several_images_only_those_unknown_are_computed(small: SmallService, runs: Runs) -> None:
    images = [make.save(make.scene(96, 48 + 8 * number), "PNG") for number in range(4)]
    alone = [await ask(small, one) for one in images[:2]]
    runs.images = 0
    together = await ask(small, *images)
    assert (together.cache, runs.images) == ("miss", 2)
    assert together.batch_size in {1, 2}
    assert [result.image.height for result in together.results] == [48, 56, 64, 72]
    assert [one.results[0] for one in alone] == list(together.results[:2])
    again = await ask(small, *reversed(images))
    assert (again.cache, runs.images) == ("hit", 2)
    assert again.results == together.results[::-1]


async def test_at_once_it_is_computed_once(small: SmallService, runs: Runs) -> None:
    runs.gate.clear()
    callers = [asyncio.create_task(small.explain(IMAGE, alpha=0.1 + 0.02 * number, overlay=True)) for number in range(20)]
    await asyncio.to_thread(runs.begun.wait, 10)
    await asyncio.sleep(0.2)
    runs.gate.set()
    answers = [await one for one in callers]
    assert sorted(str(one.cache) for one in answers) == ["coalesced"] * 19 + ["miss"]
    assert runs.images == 1
    assert len({explained(one)[0].explanations[0].overlay for one in answers}) == 20
    for answer in answers:
        times = answer.timings
        assert times.decode + times.queue + times.infer + times.render <= times.total


async def test_who_leaves_or_is_late_is_not_missed(small: SmallService, runs: Runs) -> None:
    runs.gate.clear()
    runs.begun.clear()
    late = asyncio.create_task(ask(small, IMAGE, within_s=0.3))
    await asyncio.to_thread(runs.begun.wait, 10)
    patient = asyncio.create_task(ask(small, IMAGE))
    with pytest.raises(DeadlineExceeded):
        await late
    runs.gate.set()
    assert (await patient).cache == "miss"
    assert runs.images == 2
    assert (await ask(small, IMAGE)).cache == "hit"


async def test_a_failure_is_not_remembered(small: SmallService, runs: Runs) -> None:
    runs.failures.append(InferenceNonFinite("The network's numbers are not finite."))
    with pytest.raises(InferenceNonFinite):
        await ask(small, IMAGE)
    assert (await ask(small, IMAGE)).cache == "miss"
    assert (await ask(small, IMAGE)).cache == "hit"


async def test_asked_anew_and_without_a_trace(small: SmallService, runs: Runs) -> None:
    secret = await ask(small, IMAGE, policy="off")
    assert (secret.cache, runs.images) == ("miss", 1)
    assert (await ask(small, IMAGE)).cache == "miss"
    assert ((await ask(small, IMAGE, policy="renew")).cache, runs.images) == ("miss", 3)
    assert ((await ask(small, IMAGE)).cache, runs.images) == ("hit", 3)


async def test_without_memory_there_is_nothing_to_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: Runs) -> None:
    async with small_service(tmp_path, monkeypatch) as forgetful:
        runs.images = 0
        assert [(await ask(forgetful, IMAGE)).cache for _ in range(3)] == [None] * 3
        assert runs.images == 3
        assert "camserve_cache_requests_total{" not in forgetful.metrics.render()[0].decode()


async def test_predictions_are_remembered_for_themselves(small: SmallService, runs: Runs) -> None:
    first, again = await small.predict(IMAGE), await small.predict(IMAGE, top_k=3, method="rise", samples=9)
    assert (first.cache, again.cache, runs.images) == ("miss", "hit", 1)
    assert again.results[0].predictions == first.results[0].predictions[:3]
    assert not isinstance(again.results[0], ExplainResult)
    assert (await ask(small, IMAGE)).cache == "miss"


async def test_a_known_image_is_still_checked(small: SmallService) -> None:
    await ask(small, IMAGE)
    with pytest.raises(ImageTruncated):
        await ask(small, IMAGE, IMAGE[:200])
    with pytest.raises(ParameterInvalid, match="size"):
        await ask(small, IMAGE, size=16384)
    with pytest.raises(DeadlineExceeded):
        await ask(small, IMAGE, within_s=-1)


async def test_a_measured_answer_takes_its_maps_from_memory(small: SmallService, runs: Runs) -> None:
    first = await ask(small, IMAGE, class_id=2)
    measured = await ask(small, IMAGE, class_id=2, evaluate=True)
    assert (measured.cache, runs.images) == ("hit", 1)
    (plain,), (full,) = explained(first)[0].explanations, explained(measured)[0].explanations
    assert full.evaluation is not None
    assert replace(full, evaluation=None) == plain


async def test_layers_are_looked_into_every_time(small: SmallService) -> None:
    for _ in range(2):
        assert (await small.inspect(IMAGE)).cache is None


async def test_an_unloaded_model_takes_its_memory_along(small: SmallService) -> None:
    await ask(small, IMAGE)
    assert small.registry.get("tiny").cache.nbytes > 0
    assert 'camserve_cache_bytes{model="tiny"} 0.0' not in small.metrics.render()[0].decode()
    await small.registry.unload("tiny")
    assert 'camserve_cache_bytes{model="tiny"} 0.0' in small.metrics.render()[0].decode()
    await small.registry.load("tiny")
    assert (await ask(small, IMAGE)).cache == "miss"


async def test_it_keeps_as_many_as_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: Runs) -> None:
    images = [make.save(make.scene(64, 40 + number), "PNG") for number in range(6)]
    async with small_service(tmp_path, monkeypatch, cache_entries=4) as small:
        for one in images:
            await ask(small, one)
        cache = small.registry.get(None).cache
        assert len(cache) == 4
        assert [(await ask(small, one)).cache for one in (images[5], images[2], images[0])] == ["hit", "hit", "miss"]


async def test_a_hit_does_not_enter_the_queue(small: SmallService, runs: Runs) -> None:
    await ask(small, IMAGE)
    runs.gate.clear()
    runs.begun.clear()
    other = make.save(make.scene(64, 64), "PNG")
    waiting = asyncio.create_task(ask(small, other))
    await asyncio.to_thread(runs.begun.wait, 10)
    assert (await ask(small, IMAGE, color_map="viridis", overlay=True)).cache == "hit"  # while the network is busy
    assert not waiting.done()
    runs.gate.set()
    assert (await waiting).cache == "miss"


async def test_a_long_method_is_shared_too(small: SmallService, runs: Runs) -> None:
    asked: dict[str, Any] = {"method": "rise", "samples": 64, "class_id": 3}
    one, two = await asyncio.gather(ask(small, IMAGE, **asked), ask(small, IMAGE, **asked, polarity="both"))
    assert {one.cache, two.cache} == {"miss", "coalesced"}
    assert runs.images == 1
    assert (await ask(small, IMAGE, **asked)).cache == "hit"


async def test_who_waits_for_anothers_result_holds_no_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: Runs
) -> None:
    async with small_service(tmp_path, monkeypatch, cache_entries=64, max_queue_size=1, max_images_per_request=1) as small:
        runs.gate.clear()
        runs.begun.clear()
        waiting = [asyncio.create_task(ask(small, IMAGE))]
        await asyncio.to_thread(runs.begun.wait, 10)
        for number in range(5):  # one after the other: while one is decoded it holds the only place
            waiting.append(asyncio.create_task(ask(small, IMAGE, size=64 + number)))
            await asyncio.sleep(0.1)
        runs.gate.set()
        assert sorted([str((await one).cache) for one in waiting]) == ["coalesced"] * 5 + ["miss"]

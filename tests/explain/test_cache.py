"""What is remembered and for how long, and who waits for whom. The network is a function that counts."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.batch import EngineRequest
from service.engine.methods import METHODS
from service.engine.types import EngineResult, MethodParameters
from service.errors import CamserveError, DeadlineExceeded, EngineError, InferenceNonFinite, Overloaded
from service.explain.cache import Cache, CacheKey, CacheResult, costliest
from service.explain.scheduler import BatchResult
from service.vocabulary import CachePolicy, CacheStatus

pytestmark = pytest.mark.anyio

MANY = 1_000_000
PIXELS = np.zeros((8, 8, 3), np.uint8)
REQUEST = EngineRequest(pixels=PIXELS, best=1, layers=("block",), parameters=MethodParameters(seed=1))
KEY = CacheKey.of(REQUEST, "aa", "crop")


def named(*names: str) -> list[CacheKey]:
    return [replace(KEY, image=name) for name in names]


@dataclass
class StandInNetwork:
    """Answers each key with its own number, when it is let; fails as it is told."""

    keys: list[CacheKey] = field(default_factory=list)
    calls: list[list[str]] = field(default_factory=list)
    open: asyncio.Event = field(default_factory=asyncio.Event)
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    fail_with: BaseException | None = None
    grid: int = 2

    def __post_init__(self) -> None:
        self.open.set()

    async def find(self, cache: Cache, *names: str, policy: CachePolicy = "use") -> list[CacheResult]:
        keys = named(*names)

        async def compute(chosen: Sequence[int]) -> list[BatchResult[EngineResult]]:
            images = [keys[index].image for index in chosen]
            self.calls.append(images)
            failure, self.fail_with = self.fail_with, None
            self.begun.set()
            await self.open.wait()
            await asyncio.sleep(0)  # the world turns while a network runs
            if failure is not None:
                raise failure
            batch = np.stack([np.full((self.grid, self.grid), sum(name.encode()), np.float32) for name in images])
            return [
                BatchResult(
                    value=EngineResult(
                        logits=one[0], classes=(0,), maps=((one,),), layers=("block",), engine="torch", precision="fp32"
                    ),
                    queued_s=0.5,
                    ran_s=0.25,
                    batch_size=len(images),
                )
                for one in batch
            ]

        return await cache.find(keys, compute, policy)

    async def statuses(self, cache: Cache, *names: str, policy: CachePolicy = "use") -> list[CacheStatus]:
        found = await self.find(cache, *names, policy=policy)
        for one, name in zip(found, names, strict=True):
            assert (one.result.value.maps[0][0] == sum(name.encode())).all()
        return [one.status for one in found]


async def test_asked_again_it_is_not_computed() -> None:
    cache, network = Cache(9, MANY), StandInNetwork()
    assert await network.statuses(cache, "a", "b") == ["miss", "miss"]
    assert await network.statuses(cache, "b", "c", "a") == ["hit", "miss", "hit"]
    assert network.calls == [["a", "b"], ["c"]]
    [again] = await network.find(cache, "a")
    assert (again.result.queued_s, again.result.ran_s, again.result.batch_size) == (0, 0, 0)


async def test_the_least_recently_used_goes_first() -> None:
    cache, network = Cache(2, MANY), StandInNetwork()
    for name in ("a", "b", "a", "c"):
        await network.find(cache, name)
    assert len(cache) == 2
    assert await network.statuses(cache, "a", "c") == ["hit", "hit"]
    assert await network.statuses(cache, "b") == ["miss"]


async def test_memory_is_bounded_whatever_the_number() -> None:
    cache, network = Cache(1000, 40_000), StandInNetwork(grid=32)  # 4 KiB and its surroundings
    for number in range(50):
        await network.find(cache, str(number))
        assert cache.nbytes <= 40_000
    assert 5 < len(cache) < 10
    assert await network.statuses(cache, "49", "48") == ["hit", "hit"]


async def test_what_is_too_large_alone_is_not_kept_and_puts_nothing_out() -> None:
    cache, network = Cache(9, 3000), StandInNetwork()
    await network.find(cache, "a")
    network.grid = 64
    assert await network.statuses(cache, "b") == ["miss"]
    assert await network.statuses(cache, "b", "a") == ["miss", "hit"]


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(1, 24)), max_size=40), st.integers(1, 4))
def test_any_history_leaves_the_bounds_and_the_sum_right(history: list[tuple[str, int]], entries: int) -> None:
    async def live() -> None:
        cache, network = Cache(entries, 6000), StandInNetwork()
        for name, grid in history:
            network.grid = grid
            await network.find(cache, name, policy="renew")
            assert len(cache) <= entries
            assert 0 <= cache.nbytes <= 6000
        for name in "abcdef":  # all too large: each replaced entry gives its bytes back
            network.grid = 100
            await network.find(cache, name, policy="renew")
        assert (len(cache), cache.nbytes) == (0, 0)

    asyncio.run(live())


async def test_off_it_keeps_nothing_and_nobody_waits() -> None:
    cache, network = Cache(0, MANY), StandInNetwork()
    leader = await started(network, cache, "a", "a")
    [other] = await followers(network, cache, 1, "a", "a")
    network.open.set()
    assert [await leader, await other] == [["miss", "miss"]] * 2
    assert network.calls == [["a", "a"]] * 2
    assert len(cache) == 0


async def test_renewing_replaces_and_leaving_no_trace_neither_reads_nor_writes() -> None:
    cache, network = Cache(9, MANY), StandInNetwork()
    assert await network.statuses(cache, "a", policy="off") == ["miss"]
    assert len(cache) == 0
    old = (await network.find(cache, "a"))[0].result.value
    assert await network.statuses(cache, "a", policy="off") == ["miss"]
    assert (await network.find(cache, "a"))[0].result.value is old
    new = (await network.find(cache, "a", policy="renew"))[0]
    assert new.status == "miss"
    assert new.result.value is not old
    assert (await network.find(cache, "a"))[0].result.value is new.result.value
    assert len(cache) == 1


async def test_what_is_kept_is_its_own_and_cannot_be_changed() -> None:
    cache, network = Cache(9, MANY), StandInNetwork()
    for found in (*await network.find(cache, "a", "b"), *await network.find(cache, "b")):
        for values in (found.result.value.logits, found.result.value.maps[0][0]):
            assert values.base is None, "a view keeps its whole batch"
            with pytest.raises(ValueError, match="read-only"):
                values[:] = 0


# Who waits for whom ---------------------------------------------------------------------------------------------------------


async def started(
    network: StandInNetwork, cache: Cache, *names: str, policy: CachePolicy = "use"
) -> asyncio.Task[list[CacheStatus]]:
    """A caller whose computation is under way."""
    network.open.clear()
    network.begun.clear()
    task = asyncio.create_task(network.statuses(cache, *names, policy=policy))
    await network.begun.wait()
    return task


async def followers(network: StandInNetwork, cache: Cache, count: int, *names: str) -> list[asyncio.Task[list[CacheStatus]]]:
    tasks = [asyncio.create_task(network.statuses(cache, *names)) for _ in range(count)]
    for _ in range(5):
        await asyncio.sleep(0)
    return tasks


async def test_asked_at_once_it_is_computed_once() -> None:
    cache, network = Cache(9, MANY), StandInNetwork()
    leader = await started(network, cache, "a")
    others = await followers(network, cache, 50, "a")
    network.open.set()
    assert await leader == ["miss"]
    assert [await other for other in others] == [["coalesced"]] * 50
    assert network.calls == [["a"]]
    assert await network.statuses(cache, "a") == ["hit"]


async def test_the_same_image_twice_in_a_request_is_computed_once() -> None:
    cache, network = Cache(9, MANY), StandInNetwork()
    assert await network.statuses(cache, "a", "b", "a") == ["miss", "miss", "coalesced"]
    assert network.calls == [["a", "b"]]


async def test_it_is_shared_even_where_it_cannot_be_kept() -> None:
    cache, network = Cache(9, 1), StandInNetwork()
    leader = await started(network, cache, "a")
    others = await followers(network, cache, 3, "a")
    network.open.set()
    assert [await leader, *[await other for other in others]] == [["miss"], *[["coalesced"]] * 3]
    assert len(cache) == 0


async def test_times_of_who_waited_are_its_own_wait() -> None:
    cache, network = Cache(9, MANY), StandInNetwork()
    leader = await started(network, cache, "a")
    other = asyncio.create_task(network.find(cache, "a"))
    await asyncio.sleep(0.01)
    network.open.set()
    await leader
    [found] = await other
    assert found.status == "coalesced"
    assert 0.01 <= found.result.queued_s + found.result.ran_s < 0.25  # of the network's own 0.25 s only that
    assert found.result.batch_size == 1


async def test_requests_that_overlap_wait_for_each_other_and_none_for_ever() -> None:
    cache, network = Cache(9, MANY), StandInNetwork()
    one = await started(network, cache, "a", "b")
    two = await started(network, cache, "b", "c")
    three = await started(network, cache, "c", "d", "a")
    network.open.set()
    assert [await one, await two, await three] == [
        ["miss", "miss"], ["coalesced", "miss"], ["coalesced", "miss", "coalesced"],
    ]  # fmt: skip
    assert network.calls == [["a", "b"], ["c"], ["d"]]


async def test_who_leaves_takes_nothing_from_those_who_wait() -> None:
    cache, network = Cache(9, MANY), StandInNetwork()
    leader = await started(network, cache, "a")
    others = await followers(network, cache, 4, "a")
    leader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leader
    network.open.set()
    assert sorted([await other for other in others]) == [["coalesced"]] * 3 + [["miss"]]
    assert network.calls == [["a"], ["a"]]


async def test_a_follower_who_leaves_takes_nothing_from_the_others() -> None:
    cache, network = Cache(9, MANY), StandInNetwork()
    leader = await started(network, cache, "a")
    leaving, staying = await followers(network, cache, 2, "a")
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    network.open.set()
    assert [await leader, await staying] == [["miss"], ["coalesced"]]


@pytest.mark.parametrize("refusal", [DeadlineExceeded("too late"), Overloaded("full", retry_after_s=1)])
async def test_a_refusal_is_the_callers_own_and_the_next_one_computes(refusal: CamserveError) -> None:
    cache, network = Cache(9, MANY), StandInNetwork(fail_with=refusal)
    leader = await started(network, cache, "a")
    others = await followers(network, cache, 3, "a")
    network.open.set()
    with pytest.raises(type(refusal)):
        await leader
    assert sorted([await other for other in others]) == [["coalesced"]] * 2 + [["miss"]]
    assert network.calls == [["a"], ["a"]]


@pytest.mark.parametrize("failure", [EngineError("CUDA"), InferenceNonFinite("not finite")])
async def test_a_failure_is_nobody_elses_and_never_kept(failure: EngineError) -> None:
    cache, network = Cache(9, MANY), StandInNetwork(fail_with=failure)
    leader = await started(network, cache, "a", "b")
    others = await followers(network, cache, 3, "a")
    network.open.set()
    with pytest.raises(type(failure)):
        await leader
    # Everyone for himself and at once, not one behind the other: they may all fail again.
    assert [await other for other in others] == [["miss"]] * 3
    assert network.calls == [["a", "b"], ["a"], ["a"], ["a"]]
    assert await network.statuses(cache, "a", "b") == ["hit", "miss"]


async def test_nobody_waits_for_who_leaves_no_trace() -> None:
    cache, network = Cache(9, MANY), StandInNetwork()
    secret = await started(network, cache, "a", policy="off")
    leader = await started(network, cache, "a")
    renewing = await started(network, cache, "a", policy="renew")
    [other] = await followers(network, cache, 1, "a")
    network.open.set()
    assert [await secret, await leader, await renewing, await other] == [["miss"], ["miss"], ["miss"], ["coalesced"]]
    assert network.calls == [["a"]] * 3


# What tells two questions apart ---------------------------------------------------------------------------------------------

OTHER: dict[str, Any] = {
    "classes": (3,), "best": 2, "versus": 0, "method": METHODS["layercam"], "layers": ("stem",),
    "parameters": MethodParameters(seed=2),
}  # fmt: skip


def test_everything_that_shapes_an_outcome_is_in_the_key() -> None:
    """A field that is added to a request must be thought of here."""
    assert {one.name for one in fields(EngineRequest)} == OTHER.keys() | {"pixels"}
    keys = {CacheKey.of(replace(REQUEST, **{name: value}), "aa", "crop") for name, value in OTHER.items()}
    keys |= {KEY, CacheKey.of(REQUEST, "ab", "crop"), CacheKey.of(REQUEST, "aa", "pad")}
    assert len(keys) == len(OTHER) + 3


@pytest.mark.parametrize("name", MethodParameters.model_fields)
def test_every_parameter_of_a_method_is_in_the_key(name: str) -> None:
    changed: dict[str, Any] = {name: 7}
    assert CacheKey.of(replace(REQUEST, parameters=REQUEST.parameters.model_copy(update=changed)), "aa", "crop") != KEY


def test_the_order_of_classes_is_in_the_key() -> None:
    assert CacheKey.of(replace(REQUEST, classes=(1, 2)), "aa", "crop") != CacheKey.of(
        replace(REQUEST, classes=(2, 1)), "aa", "crop"
    )


def test_predictions_are_the_same_whatever_the_method() -> None:
    plain = CacheKey.of(EngineRequest(pixels=PIXELS), "aa", "crop")
    assert (
        CacheKey.of(EngineRequest(pixels=PIXELS, method=METHODS["rise"], parameters=MethodParameters(samples=9)), "aa", "crop")
        == plain
    )
    assert plain != KEY


def test_of_several_images_the_costliest_tells() -> None:
    done = BatchResult(
        value=EngineResult(logits=np.zeros(1, np.float32), classes=(), maps=(), layers=(), engine="torch", precision="fp32"),
        queued_s=0.0,
        ran_s=0.0,
        batch_size=0,
    )
    assert costliest([CacheResult(done, "hit"), CacheResult(done, "miss"), CacheResult(done, "coalesced")]) == "miss"
    assert costliest([CacheResult(done, "coalesced"), CacheResult(done, "hit")]) == "coalesced"
    assert costliest([CacheResult(done, "hit")]) == "hit"

"""Results of a network by what was asked. The least recently used leave first; equal requests at one time are computed once.

Knows no HTTP and no torch, and nothing of how a result is computed. One cache is one model's: a model that is unloaded takes
its results along, and nothing in a key need tell models apart.

Everything happens on the event loop, so there are no locks. Only what a network answered is kept, never an error.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, get_args

import numpy as np
from cachetools import LRUCache
from numpy.typing import NDArray

from service.engine.batch import EngineRequest
from service.engine.methods.method import NO_PARAMETERS
from service.engine.types import EngineResult, MethodParameters
from service.errors import EngineError
from service.explain.scheduler import BatchResult
from service.vocabulary import CachePolicy, CacheStatus

BY_COST: Final[tuple[CacheStatus, ...]] = get_args(CacheStatus)  # rising
# What is around the values: key, containers, headers of arrays. Measured with tracemalloc: 800 and 192 bytes.
ENTRY_BYTES: Final = 896
ARRAY_BYTES: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheKey:
    """Everything that decides a result, but the model.

    Attributes:
        image: SHA-256 of the bytes received.
        fit: how the image meets the network; with the model's own preprocessing and `reduction` it decides the pixels.
        reduction: how many times smaller it was decoded.
    """

    image: str
    fit: str
    reduction: int
    classes: tuple[int, ...] = ()
    best: int = 0
    versus: int | None = None
    method: str = ""
    layers: tuple[str, ...] = ()
    parameters: MethodParameters = NO_PARAMETERS

    @classmethod
    def of(cls, request: EngineRequest, image: str, fit: str, reduction: int = 1) -> CacheKey:
        """The key of a request; predictions are the same whatever method they were asked with."""
        if request.rows == 0:
            return cls(image=image, fit=fit, reduction=reduction)
        return cls(
            image=image,
            fit=fit,
            reduction=reduction,
            classes=request.classes,
            best=request.best,
            versus=request.versus,
            method=request.method.name,
            layers=request.layers,
            parameters=request.parameters,
        )


@dataclass(frozen=True, slots=True)
class CacheResult:
    """A result and where it came from. Of a hit the times are 0 and no batch had it; of a coalesced one, its own wait."""

    result: BatchResult[EngineResult]
    status: CacheStatus


Compute = Callable[[Sequence[int]], Awaitable[Sequence[BatchResult[EngineResult]]]]
# A result that one caller computes and others wait for; None: that caller left, or was refused.
SharedResult = asyncio.Future[BatchResult[EngineResult] | EngineError | None]


class Cache:
    """Results of one model.

    Args:
        max_entries: most results kept; with 0 nothing is kept, and no caller waits for another's result.
        max_bytes: most memory they may take, estimated.
    """

    def __init__(self, max_entries: int, max_bytes: int) -> None:
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._entries: LRUCache[CacheKey, EngineResult] = LRUCache(max_bytes, getsizeof=_size)
        self._shared: dict[CacheKey, SharedResult] = {}

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def nbytes(self) -> int:
        """Memory taken, estimated: exact for values, roughly for what surrounds them."""
        return int(self._entries.currsize)

    @property
    def enabled(self) -> bool:
        """Whether anything is kept."""
        return self._max_entries > 0

    async def find(self, keys: Sequence[CacheKey], compute: Compute, policy: CachePolicy = "use") -> list[CacheResult]:
        """A result for every key, in order: kept, awaited from another caller, or computed.

        What has to be computed is so in one call, equal keys once. Whoever waits for another's result shares the result only.
        If that caller leaves or is refused (its deadline, a full queue), the next one computes it; if the network failed,
        every caller tries for itself.

        Args:
            keys: of one request.
            compute: given indices of `keys`, answers with their results, in order.
            policy: `use` what is kept; `renew` it; `off` leaves no trace either.

        Raises:
            CamserveError: what `compute` raises.
        """
        if not self.enabled or policy == "off":
            return [CacheResult(result, "miss") for result in await compute(range(len(keys)))]
        found: dict[int, CacheResult] = {}
        failed: set[CacheKey] = set()
        while len(found) < len(keys):
            own: dict[CacheKey, list[int]] = {}
            others: dict[int, SharedResult] = {}
            for index, key in enumerate(keys):
                if index in found:
                    continue
                if policy == "use" and (kept := self._entries.get(key)) is not None:
                    found[index] = CacheResult(BatchResult(value=kept, queued_s=0.0, ran_s=0.0, batch_size=0), "hit")
                elif policy == "use" and key in self._shared and key not in failed:
                    others[index] = self._shared[key]
                else:
                    own.setdefault(key, []).append(index)
            started = time.perf_counter()
            if own:
                first = {key: indices[0] for key, indices in own.items()}
                for indices, result in zip(own.values(), await self._compute(first, compute), strict=True):
                    found[indices[0]] = CacheResult(result, "miss")
                    found |= {index: CacheResult(result, "coalesced") for index in indices[1:]}
            for index, shared in others.items():
                await asyncio.wait([shared])  # unlike `await`, does not cancel it with a caller who leaves
                outcome = shared.result()
                if isinstance(outcome, BatchResult):
                    found[index] = CacheResult(_within(outcome, time.perf_counter() - started), "coalesced")
                elif outcome is not None:
                    failed.add(keys[index])
        return [found[index] for index in range(len(keys))]

    async def _compute(self, own: Mapping[CacheKey, int], compute: Compute) -> list[BatchResult[EngineResult]]:
        """Computes and keeps results; other callers can wait for them meanwhile."""
        loop = asyncio.get_running_loop()
        shared: dict[CacheKey, SharedResult] = {key: loop.create_future() for key in own if key not in self._shared}
        self._shared |= shared
        failure: EngineError | None = None
        try:
            results = [_with_own_arrays(result) for result in await compute(tuple(own.values()))]
            for key, result in zip(own, results, strict=True):
                self._keep(key, result.value)
                if key in shared:
                    shared[key].set_result(result)
        except EngineError as error:
            failure = error
            raise
        finally:
            for key, future in shared.items():
                del self._shared[key]
                if not future.done():
                    future.set_result(failure)
        return results

    def _keep(self, key: CacheKey, result: EngineResult) -> None:
        """The newest stays, the least recently used leave; what alone would be too large is not kept."""
        self._entries.pop(key, None)  # also where the new one is not kept: the old one was renewed
        if _size(result) > self._max_bytes:
            return
        self._entries[key] = result  # the least recently used leave until the bytes suffice
        while len(self._entries) > self._max_entries:
            self._entries.popitem()


def costliest(results: Sequence[CacheResult]) -> CacheStatus:
    """Of several images: what cost most."""
    return max((result.status for result in results), key=BY_COST.index)


def _size(result: EngineResult) -> int:
    arrays = [result.logits, *(grid for layers in result.maps for grid in layers)]
    return ENTRY_BYTES + sum(ARRAY_BYTES + array.nbytes for array in arrays)


def _with_own_arrays(result: BatchResult[EngineResult]) -> BatchResult[EngineResult]:
    """A copy whose arrays are its own, for a view would keep its whole batch in memory, and read-only."""
    value = result.value
    maps = tuple(tuple(_frozen(grid) for grid in layers) for layers in value.maps)
    return replace(result, value=replace(value, logits=_frozen(value.logits), maps=maps))


def _frozen(values: NDArray[np.float32]) -> NDArray[np.float32]:
    copied = values.copy()
    copied.setflags(write=False)
    return copied


def _within(result: BatchResult[EngineResult], seconds: float) -> BatchResult[EngineResult]:
    """Another's result, with the part of its times that fell into one's own wait."""
    ran_s = min(result.ran_s, seconds)
    return replace(result, queued_s=seconds - ran_s, ran_s=ran_s)

"""What a network has said already: outcomes by what was asked, least recently used out first; and who asks the same waits.

Knows no HTTP and no torch, and nothing of how an outcome comes about. One cache is one model's: a model that is unloaded
takes its outcomes along, and nothing in a key need tell models apart.

Everything happens on the event loop, so there are no locks. Only what a network answered is kept, never an error.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from service.engine.types import EngineRequest, EngineResult, MethodParameters
from service.errors import EngineError
from service.explain.calls import BatchResult

CacheStatus = Literal["hit", "coalesced", "miss"]
CachePolicy = Literal["use", "renew", "off"]  # of what is kept; `renew` asks the network and keeps the answer

CACHE_STATUSES: Final[tuple[CacheStatus, ...]] = ("hit", "coalesced", "miss")  # by rising cost
# What is around the values: key, containers, headers of arrays. Measured with tracemalloc: 694 and 192 bytes.
ENTRY_BYTES: Final = 768
ARRAY_BYTES: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheKey:
    """Everything that decides an outcome, but the model.

    Attributes:
        image: SHA-256 of the bytes received.
        fit: how the image meets the network; with the model's own geometry and `shrunk` it decides the pixels.
        shrunk: how much smaller it was decoded.
    """

    image: str
    fit: str
    shrunk: int
    classes: tuple[int, ...]
    best: int
    versus: int | None
    method: str
    layers: tuple[str, ...]
    parameters: MethodParameters

    @classmethod
    def of(cls, work: EngineRequest, image: str, fit: str, shrunk: int = 1) -> CacheKey:
        """The key of a work; predictions are the same whatever method they were asked with."""
        if work.rows == 0:
            return cls(image, fit, shrunk, (), 0, None, "", (), MethodParameters())
        return cls(image, fit, shrunk, work.classes, work.best, work.versus, work.method, work.layers, work.parameters)


@dataclass(frozen=True, slots=True)
class CacheResult:
    """An outcome and where it came from. Of a hit the times are 0 and no batch had it; of a coalesced one, its own wait."""

    done: BatchResult[EngineResult]
    status: CacheStatus


Compute = Callable[[Sequence[int]], Awaitable[Sequence[BatchResult[EngineResult]]]]
Flight = asyncio.Future[BatchResult[EngineResult] | EngineError | None]  # None: who computed it left, or was refused


class Cache:
    """Outcomes of one model.

    Args:
        max_entries: most outcomes kept; with 0 nothing is kept, and nobody waits for another's outcome.
        max_bytes: most memory they may take, estimated.
    """

    def __init__(self, max_entries: int, max_bytes: int) -> None:
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._entries: OrderedDict[CacheKey, EngineResult] = OrderedDict()
        self._flights: dict[CacheKey, Flight] = {}
        self._size = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def nbytes(self) -> int:
        """Memory taken, estimated: exact for values, roughly for what surrounds them."""
        return self._size

    @property
    def enabled(self) -> bool:
        """Whether anything is kept."""
        return self._max_entries > 0

    async def find(self, keys: Sequence[CacheKey], compute: Compute, reuse: CachePolicy = "use") -> list[CacheResult]:
        """An outcome for every key, in order: kept, awaited from another caller, or computed.

        What has to be computed is so in one call, equal keys once. Whoever waits for another's outcome shares the outcome
        only. If that caller leaves or is refused (its deadline, a full line), the next one computes it; if the network failed,
        everyone tries for himself.

        Args:
            keys: of one request.
            compute: given indices of `keys`, answers with their outcomes, in order.
            reuse: `use` what is kept; `renew` it; `off` leaves no trace either.

        Raises:
            CamserveError: what `compute` raises.
        """
        if not self.enabled or reuse == "off":
            return [CacheResult(done, "miss") for done in await compute(range(len(keys)))]
        found: dict[int, CacheResult] = {}
        failed: set[CacheKey] = set()
        while len(found) < len(keys):
            own: dict[CacheKey, list[int]] = {}
            others: dict[int, Flight] = {}
            for index, key in enumerate(keys):
                if index in found:
                    continue
                if reuse == "use" and (outcome := self._recall(key)) is not None:
                    found[index] = CacheResult(BatchResult(value=outcome, queued_s=0.0, ran_s=0.0, batch_size=0), "hit")
                elif reuse == "use" and key in self._flights and key not in failed:
                    others[index] = self._flights[key]
                else:
                    own.setdefault(key, []).append(index)
            started = time.perf_counter()
            if own:
                first = {key: indices[0] for key, indices in own.items()}
                for indices, done in zip(own.values(), await self._compute(first, compute), strict=True):
                    found[indices[0]] = CacheResult(done, "miss")
                    found |= {index: CacheResult(done, "coalesced") for index in indices[1:]}
            for index, flight in others.items():
                await asyncio.wait([flight])  # unlike `await`, does not cancel it with a caller who leaves
                landed = flight.result()
                if isinstance(landed, BatchResult):
                    found[index] = CacheResult(_within(landed, time.perf_counter() - started), "coalesced")
                elif landed is not None:
                    failed.add(keys[index])
        return [found[index] for index in range(len(keys))]

    async def _compute(self, own: Mapping[CacheKey, int], compute: Compute) -> list[BatchResult[EngineResult]]:
        """Computes and keeps; whoever asks for the same meanwhile can wait for it."""
        loop = asyncio.get_running_loop()
        flights: dict[CacheKey, Flight] = {key: loop.create_future() for key in own if key not in self._flights}
        self._flights |= flights
        fate: EngineError | None = None
        try:
            done = [_own(one) for one in await compute(tuple(own.values()))]
            for key, one in zip(own, done, strict=True):
                self._keep(key, one.value)
                if key in flights:
                    flights[key].set_result(one)
        except EngineError as error:
            fate = error
            raise
        finally:
            for key, flight in flights.items():
                del self._flights[key]
                if not flight.done():
                    flight.set_result(fate)
        return done

    def _recall(self, key: CacheKey) -> EngineResult | None:
        outcome = self._entries.get(key)
        if outcome is not None:
            self._entries.move_to_end(key)
        return outcome

    def _keep(self, key: CacheKey, outcome: EngineResult) -> None:
        """The newest stays, the least recently used go; what alone would be too large is not kept."""
        replaced = self._entries.pop(key, None)
        if replaced is not None:
            self._size -= _size(replaced)
        if _size(outcome) > self._max_bytes:
            return
        self._entries[key] = outcome
        self._size += _size(outcome)
        while len(self._entries) > self._max_entries or self._size > self._max_bytes:
            self._size -= _size(self._entries.popitem(last=False)[1])


def worst(found: Sequence[CacheResult]) -> CacheStatus:
    """Of several images: what cost most."""
    return max((one.status for one in found), key=CACHE_STATUSES.index)


def _size(outcome: EngineResult) -> int:
    arrays = [outcome.logits, *(one for layers in outcome.maps for one in layers)]
    return ENTRY_BYTES + sum(ARRAY_BYTES + one.nbytes for one in arrays)


def _own(done: BatchResult[EngineResult]) -> BatchResult[EngineResult]:
    """With arrays of its own, for a view would keep its whole batch in memory, that nobody can change."""
    outcome = done.value
    maps = tuple(tuple(_frozen(one) for one in layers) for layers in outcome.maps)
    return BatchResult(
        value=replace(outcome, logits=_frozen(outcome.logits), maps=maps),
        queued_s=done.queued_s,
        ran_s=done.ran_s,
        batch_size=done.batch_size,
    )


def _frozen(values: NDArray[np.float32]) -> NDArray[np.float32]:
    copied = values.copy()
    copied.setflags(write=False)
    return copied


def _within(done: BatchResult[EngineResult], seconds: float) -> BatchResult[EngineResult]:
    """Another's outcome, with the part of its times that fell into one's own wait."""
    ran_s = min(done.ran_s, seconds)
    return BatchResult(value=done.value, queued_s=seconds - ran_s, ran_s=ran_s, batch_size=done.batch_size)

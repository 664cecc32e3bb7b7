"""Measuring side by side: rounds of A B A B in one run, a ratio for each round, and the median of those.

Knows nothing of what is measured. Machines drift and neighbours interfere; a ratio of two things measured a moment apart
hardly does.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """How long to measure. `quick` gives up precision for time."""

    rounds: int = 5
    quick: bool = False

    def seconds(self, full: float) -> float:
        """The length of one measurement that takes `full` seconds in a whole run."""
        return full / 3 if self.quick else full


@dataclass(frozen=True)
class Spread:
    """The median of a figure's rounds, and how far they lie apart."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one round."""
        return cls(statistics.median(values), min(values), max(values))


def ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """Round by round, one side's figure over the other's."""
    return [a / b for a, b in zip(over, under, strict=True)]


def rounds(sides: Mapping[str, Callable[[], float]], count: int) -> Iterator[dict[str, float]]:
    """Measures every side once per round, in the order given, and yields each round's figures."""
    for _ in range(count):
        yield {name: measure() for name, measure in sides.items()}


def columns(measured: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """Rounds of figures -> each side's figures, round by round."""
    return {name: [each[name] for each in measured] for name in measured[0]}


def seconds_of(call: Callable[[], object], *, span_s: float, least: int = 3) -> Callable[[], float]:
    """A measure: the median seconds of `call`, made at least `least` times and for `span_s` seconds."""

    def measure() -> float:
        taken: list[float] = []
        end = time.perf_counter() + span_s
        while len(taken) < least or time.perf_counter() < end:
            started = time.perf_counter()
            call()
            taken.append(time.perf_counter() - started)
        return statistics.median(taken)

    return measure

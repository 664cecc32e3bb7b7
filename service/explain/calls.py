"""What a caller of a batcher asked, and what became of it. Knows no line and no worker."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from service.errors import CamserveError, DeadlineExceeded

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchResult(Generic[Result]):
    """One item's result, with the seconds it waited, the seconds its batch ran, and the items in that batch."""

    value: Result
    queued_s: float
    ran_s: float
    batch_size: int


@dataclass(eq=False, slots=True, kw_only=True)
class Call(Generic[Result]):
    """One `submit`. A failure is a result of the future, not its exception: a caller who left need not collect it."""

    size: int
    deadline: float
    future: asyncio.Future[list[BatchResult[Result]] | CamserveError]
    answers: dict[int, BatchResult[Result]] = field(default_factory=dict)

    def answer(self, index: int, done: BatchResult[Result]) -> None:
        """One of its items has run; with the last of them the call is settled."""
        self.answers[index] = done
        if len(self.answers) == self.size:
            self.settle([self.answers[i] for i in range(self.size)])

    def expire(self) -> None:
        """Its deadline has passed."""
        self.settle(DeadlineExceeded("The answer was not ready in time. Try again, with fewer images or a later deadline."))

    def settle(self, outcome: list[BatchResult[Result]] | CamserveError) -> None:
        """Answers the caller; only the first does."""
        if not self.future.done():
            self.future.set_result(outcome)


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class Ticket(Generic[Item, Result]):
    """One item's place in the line. `queued_at` is of `perf_counter`: a loop's own clock may count in milliseconds."""

    item: Item
    index: int
    call: Call[Result]
    queued_at: float

"""When the answer to a request is due, and whether anybody still waits for it. Knows no HTTP, no queue and no network.

One object goes with a request from its first byte to the last chunk of its work. Its one timer is `enforce`; code that runs in
a thread, where no timer reaches it, calls `check` between its steps.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from service.errors import DeadlineExceeded


class Deadline:
    """The time by which a request is to be answered.

    Args:
        seconds: from now.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._due = time.monotonic() + seconds
        self._cancelled = threading.Event()

    @property
    def remaining_s(self) -> float:
        """Seconds left; below 0 once the deadline has passed."""
        return self._due - time.monotonic()

    @property
    def over(self) -> bool:
        """Whether nobody waits for the answer any more: the deadline has passed, or the request has ended."""
        return self._cancelled.is_set() or self.remaining_s <= 0

    def check(self) -> None:
        """To be called between steps of work, in any thread.

        Raises:
            DeadlineExceeded: nobody waits for the answer any more.
        """
        if self.over:
            raise self._exceeded()

    @asynccontextmanager
    async def enforce(self) -> AsyncIterator[None]:
        """Cancels what runs inside when the deadline passes; at its end, however it comes, nobody waits any more.

        Raises:
            DeadlineExceeded: the deadline passed.
        """
        try:
            async with asyncio.timeout(self.remaining_s) as timer:
                yield
        except TimeoutError:
            if not timer.expired():
                raise
            raise self._exceeded() from None
        finally:
            self._cancelled.set()

    def _exceeded(self) -> DeadlineExceeded:
        return DeadlineExceeded(
            f"There was no answer within {self.seconds:g} seconds. Send fewer images, ask for less, or try again."
        )

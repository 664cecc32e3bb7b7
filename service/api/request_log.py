"""What one request's log line, metrics and headers say of it. Knows no routes and no models.

The outermost middleware makes it and reads it at the end; code in between that learns something of the request writes it here.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from starlette.types import Scope

from service.explain.results import Answer


@dataclass(slots=True, kw_only=True)
class RequestLog:
    """`status` is 499 for a client that left, as nginx has it. `model` is the name of a served model, or ""."""

    id: str
    started: float = field(default_factory=time.perf_counter)
    status: int = 499
    model: str = ""
    code: str | None = None
    bytes_in: int = 0
    bytes_out: int = 0
    answer: Answer | None = None

    @property
    def seconds(self) -> float:
        """Seconds since the request came."""
        return time.perf_counter() - self.started

    def describe(self) -> dict[str, Any]:
        """The fields of the request's log line that do not depend on HTTP."""
        fields: dict[str, Any] = {"status": self.status, "ms": round(self.seconds * 1000, 3)}
        if self.code is not None:
            fields["code"] = self.code
        if self.model:
            fields["model"] = self.model
        if self.answer is not None:
            fields["images"] = [f"{r.image.format} {r.image.width}x{r.image.height}" for r in self.answer.results]
            fields["stages_ms"] = self.answer.timings
            fields["batch_size"] = self.answer.batch_size
            if self.answer.cache is not None:
                fields["cache"] = self.answer.cache
        return fields | {"bytes_in": self.bytes_in, "bytes_out": self.bytes_out}


def request_log_of(scope: Scope) -> RequestLog:
    """The log that the outermost middleware put into the request's scope."""
    request_log: RequestLog = scope["state"]["request_log"]
    return request_log

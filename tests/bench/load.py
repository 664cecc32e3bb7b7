"""A load generator in a process of its own: HTTP/1.1 over bare asyncio streams, so that the client takes little of the cores.

``python -m tests.bench.load`` reads one `Job` as JSON from standard input and writes one `Measured` to standard output.
Closed loop: so many clients, each sending when it has been answered. Open loop: requests leave at random times of a given
rate whether others have been answered or not, and latency counts from when a request was due: a server that stalls pays for it.
"""

from __future__ import annotations

import asyncio
import random
import re
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import orjson
import uvloop

from tests.bench.processes import HOST, REPOSITORY

ANSWER_S = 60.0  # longest wait for one answer
MAX_REQUESTS = 100_000
MAX_IN_FLIGHT = 128  # of an open loop
STAGE = re.compile(r"(\w+);dur=([\d.]+)")


@dataclass(frozen=True)
class Job:
    """What to send, to whom, and for how long.

    Attributes:
        port: of the loopback.
        path: of the POST.
        body: a file with the request's body.
        content_type: of the body.
        accept: what is asked back.
        clients: of a closed loop.
        rate: requests per second of an open loop; 0 for a closed one.
        seconds: how long answers are counted; requests still under way are then waited for, but not counted as throughput.
        headers: more headers, each a whole line.
        ramp: seconds of the same load before that, of which nothing is counted: until every client has had its first answer
            the line in front of the network is longer than it will ever be again.
    """

    port: int
    path: str
    body: str
    content_type: str
    accept: str
    clients: int
    rate: float
    seconds: float
    ramp: float = 0.0
    headers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Measured:
    """Seconds from a request to the last byte of its answer, and answers per second while requests were sent."""

    throughput: float
    p50: float
    p90: float
    p99: float
    answers: int
    errors: int
    answer_bytes: int
    stages_ms: dict[str, float] = field(default_factory=dict)

    def percentiles(self) -> str:
        """In milliseconds."""
        return f"p50 {1000 * self.p50:.0f}, p90 {1000 * self.p90:.0f}, p99 {1000 * self.p99:.0f} ms"


def send(job: Job) -> Measured:
    """Runs a job in a process of its own.

    Raises:
        RuntimeError: requests failed: what is not answered cannot be timed.
    """
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.load"],
        cwd=REPOSITORY,
        input=orjson.dumps(job),
        capture_output=True,
        check=False,
        timeout=job.ramp + job.seconds + 2 * ANSWER_S,
    )
    if done.returncode:
        raise RuntimeError(f"the load generator ended with {done.returncode}: {done.stderr.decode()[-1000:]}")
    measured = Measured(**orjson.loads(done.stdout))
    if measured.errors or not measured.answers:
        raise RuntimeError(f"{job.path}: {measured.errors} of {measured.answers + measured.errors} requests failed")
    return measured


class _Connection:
    """One kept-alive connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> None:
        self._reader, self._writer, self._request = reader, writer, request

    async def ask(self) -> tuple[int, str, int]:
        """One request and its answer: status, Server-Timing, bytes of the body."""
        self._writer.write(self._request)
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
        length = int(headers["content-length"])
        await self._reader.readexactly(length)
        return int(head[0].split()[1]), headers.get("server-timing", ""), length


class _Log:
    """What became of the requests; counts from `starts` to `ends`, in `perf_counter`'s seconds."""

    def __init__(self, job: Job) -> None:
        self.starts = time.perf_counter() + job.ramp
        self.ends = self.starts + job.seconds
        self.in_time = self.errors = self.size = 0
        self.latencies: list[float] = []
        self.stages: dict[str, list[float]] = {}

    async def timed(self, connection: _Connection, due: float) -> None:
        async with asyncio.timeout(ANSWER_S):
            status, timing, size = await connection.ask()
        now = time.perf_counter()
        if status != 200:
            self.errors += 1
            return
        self.in_time += self.starts <= now <= self.ends
        self.size = size
        if due < self.starts:
            return
        self.latencies.append(now - due)
        for stage, milliseconds in STAGE.findall(timing):
            self.stages.setdefault(stage, []).append(float(milliseconds))


@asynccontextmanager
async def _connections(job: Job, count: int) -> AsyncIterator[list[_Connection]]:
    body = await asyncio.to_thread(Path(job.body).read_bytes)
    more = "".join(f"{line}\r\n" for line in job.headers)
    head = (
        f"POST {job.path} HTTP/1.1\r\nHost: {HOST}:{job.port}\r\nContent-Type: {job.content_type}\r\n"
        f"Accept: {job.accept}\r\nContent-Length: {len(body)}\r\n{more}\r\n"
    )
    opened = [await asyncio.open_connection(HOST, job.port) for _ in range(count)]
    try:
        yield [_Connection(reader, writer, head.encode("ascii") + body) for reader, writer in opened]
    finally:
        for _, writer in opened:
            writer.close()


async def _closed(job: Job) -> _Log:
    async with _connections(job, job.clients) as connections:
        log = _Log(job)

        async def client(connection: _Connection) -> None:
            for _ in range(MAX_REQUESTS // job.clients):
                if time.perf_counter() >= log.ends:
                    return
                await log.timed(connection, time.perf_counter())

        await asyncio.gather(*map(client, connections))
    return log


async def _open(job: Job) -> _Log:
    gaps = random.Random(0)
    count = min(MAX_REQUESTS, int(job.rate * (job.ramp + job.seconds)))
    async with _connections(job, MAX_IN_FLIGHT) as connections:
        idle: asyncio.Queue[_Connection] = asyncio.Queue()
        for connection in connections:
            idle.put_nowait(connection)
        due, log = time.perf_counter(), _Log(job)

        async def one(connection: _Connection, due: float) -> None:
            await log.timed(connection, due)
            idle.put_nowait(connection)

        async with asyncio.TaskGroup() as group:
            for _ in range(count):
                due += gaps.expovariate(job.rate)
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                group.create_task(one(await idle.get(), due))
    return log


def percentile(values: Sequence[float], percent: int) -> float:
    """The value that `percent` of them do not exceed; 0 of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)] if ordered else 0.0


def run(job: Job) -> Measured:
    """Runs a job in this process."""
    log = uvloop.run(_open(job) if job.rate else _closed(job))
    p50, p90, p99 = (percentile(log.latencies, percent) for percent in (50, 90, 99))
    stages = {stage: statistics.median(values) for stage, values in log.stages.items()}
    return Measured(log.in_time / job.seconds, p50, p90, p99, len(log.latencies), log.errors, log.size, stages)


if __name__ == "__main__":
    sys.stdout.buffer.write(orjson.dumps(run(Job(**orjson.loads(sys.stdin.buffer.read())))))

"""Many at once: nobody gets another's answer, every answer is the one it would get alone, and stopping loses nothing."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.photographs import ALL

Map = NDArray[np.float32]

REQUESTS = 400
REPOSITORY = Path(__file__).resolve().parents[2]


@contextmanager
def process(**environment: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A real `camserve serve` on a free port of the loopback, ready; ended at the end, and only it."""
    with open(os.devnull, "wb") as nowhere, free_port() as port:
        running = subprocess.Popen(
            [sys.executable, "-m", "service", "serve", "--port", str(port)],
            cwd=REPOSITORY,
            env=os.environ | {f"CAMSERVE_{name.upper()}": value for name, value in environment.items()},
            stderr=nowhere,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        started = time.monotonic()
        while True:
            assert running.poll() is None, "the server ended"
            assert time.monotonic() - started < 120
            with suppress(httpx.TransportError):
                if httpx.get(f"{url}/readyz").status_code == 200:
                    break
            time.sleep(0.1)
        yield running, url
    finally:
        if running.poll() is None:
            running.kill()
        running.wait(30)


@contextmanager
def free_port() -> Iterator[int]:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    yield port


def variants(count: int) -> list[bytes]:
    """Distinct images: parts of the photographs, each of its own place and size."""
    photos = [Image.open(photo.path).convert("RGB") for photo in ALL]
    random = np.random.default_rng(3)
    files = []
    for number in range(count):
        photo = photos[number % len(photos)]
        side = int(random.integers(120, min(photo.size)))
        left, top = int(random.integers(0, photo.width - side)), int(random.integers(0, photo.height - side))
        file = io.BytesIO()
        photo.crop((left, top, left + side, top + side)).save(file, "JPEG", quality=85)
        files.append(file.getvalue())
    return files


@pytest.fixture(scope="module")
def served() -> Iterator[str]:
    with process(log_format="json", max_queue_size="1000", request_timeout_s="120", cache_entries="0") as (_, url):
        yield url


def test_concurrent_answers_equal_solo_answers(served: str) -> None:
    """Classes are among each image's 20 best: where an image shows nothing of a class, min-max magnifies rounding."""
    images = variants(REQUESTS)

    async def rank(client: httpx.AsyncClient, number: int) -> int:
        response = await client.post(f"{served}/predict?top_k=20", content=images[number])
        return int(response.json()["results"][0]["predictions"][number % 20]["class_id"])

    async def explain(client: httpx.AsyncClient, number: int, class_id: int) -> tuple[Map, int]:
        response = await client.post(f"{served}/explain?class_id={class_id}&format=npy&size=input", content=images[number])
        assert response.status_code == 200, response.text
        assert int(response.headers["x-explain-class-id"]) == class_id
        return np.load(io.BytesIO(response.content), allow_pickle=False), int(response.headers["x-batch-size"])

    async def everyone() -> tuple[list[int], list[tuple[Map, int]], list[tuple[Map, int]]]:
        # New connections each time: one that has waited for the others may be closed by the server while it is taken up again.
        limits = httpx.Limits(max_connections=REQUESTS, max_keepalive_connections=0)
        async with httpx.AsyncClient(timeout=120, limits=limits) as client:
            classes = await asyncio.gather(*(rank(client, number) for number in range(REQUESTS)))
            together = await asyncio.gather(*(explain(client, number, c) for number, c in enumerate(classes)))
            alone = [await explain(client, number, class_id) for number, class_id in enumerate(classes)]
            return classes, together, alone

    classes, together, alone = asyncio.run(everyone())
    assert len(set(classes)) > 100
    assert {size for _, size in alone} == {1}
    sizes = Counter(size for _, size in together)
    assert max(sizes) > 1, sizes
    worst = max(float(np.abs(a - b).max()) for (a, _), (b, _) in zip(together, alone, strict=True))
    print(f"\n{len(set(classes))} classes, batch sizes {dict(sorted(sizes.items()))}, largest difference {worst:.1e}")  # noqa: T201
    assert worst <= 1e-4


def test_termination_under_load_answers_everything_accepted() -> None:
    images = variants(60)
    with process(log_format="json", request_timeout_s="60", cache_entries="0") as (running, url):

        async def storm() -> list[int]:
            limits = httpx.Limits(max_connections=60, max_keepalive_connections=60)
            async with httpx.AsyncClient(timeout=60, limits=limits) as client:
                # What has been sent whole over a connection that stands is accepted, and the signal comes after the last.
                await asyncio.gather(*(client.get(f"{url}/livez") for _ in range(60)))
                sent = asyncio.Semaphore(0)

                async def watch(event: str, _: object) -> None:
                    if event == "http11.send_request_body.complete":
                        sent.release()

                requests = [
                    asyncio.create_task(client.post(f"{url}/explain", content=image, extensions={"trace": watch}))
                    for image in images
                ]
                for _ in requests:
                    await sent.acquire()
                running.send_signal(signal.SIGTERM)
                return [response.status_code for response in await asyncio.gather(*requests)]

        assert Counter(asyncio.run(storm())) == {200: 60}
        assert running.wait(30) == 0


def test_a_start_that_cannot_succeed_ends_with_a_reason(tmp_path: Path) -> None:
    (tmp_path / "broken.toml").write_text("[architecture]\nsource = 'timm'\n")
    command = [sys.executable, "-m", "service", "serve", "--models", "broken", "--models-dir", str(tmp_path)]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 3
    assert "broken.toml: architecture" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_model_that_cannot_be_loaded_ends_the_server_with_a_reason(tmp_path: Path) -> None:
    card = (REPOSITORY / "models" / "efficientnet_lite0.toml").read_text()
    (tmp_path / "changed.toml").write_text(card.replace('sha256 = "5', 'sha256 = "6'))
    command = [sys.executable, "-m", "service", "serve", "--port", "0", "--models", "changed", "--models-dir", str(tmp_path)]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 3
    assert "card changed: weights.sha256" in ended.stderr.strip().splitlines()[-1]

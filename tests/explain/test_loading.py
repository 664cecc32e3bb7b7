"""Loading and unloading while the service runs: once for many callers, nobody cut off, and the memory comes back."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from service.engine.batch import EngineRequest
from service.errors import ModelNotFound, ModelUnhealthy, NotReady
from service.explain.model import Model
from service.explain.registry import Registry
from service.explain.scheduler import Deadline
from service.settings import Settings
from service.telemetry import Metrics
from tests.networks import Pooled, seeded

pytestmark = pytest.mark.anyio

CARD = """
[architecture]
source = "local"
[weights]
file = "tiny.pt2"
sha256 = "{digest}"
[labels]
file = "labels.txt"
[preprocess]
mean = [0.5, 0.5, 0.5]
std = [0.5, 0.5, 0.5]
[explain]
layer = "block"
"""
BLANK = EngineRequest(pixels=np.zeros((32, 32, 3), np.uint8), best=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two cards of one small saved program, and one whose file is not there."""
    folder = tmp_path_factory.mktemp("models")
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(seeded(Pooled), (torch.zeros(2, 3, 32, 32),), dynamic_shapes=({0: batch},))
    torch.export.save(program, folder / "tiny.pt2")
    (folder / "labels.txt").write_text("a\nb\nc\nd\ne\n")
    digest = hashlib.sha256((folder / "tiny.pt2").read_bytes()).hexdigest()
    for name in ("first", "second"):
        (folder / f"{name}.toml").write_text(CARD.format(digest=digest))
    (folder / "broken.toml").write_text(CARD.format(digest="0" * 64))
    return folder


def registry_of(folder: Path) -> Registry:
    return Registry(Settings(models_dir=folder, models=("first",), max_batch_size=1), Metrics())


async def test_loaded_beside_the_first_and_unloaded_again(folder: Path) -> None:
    registry = registry_of(folder)
    await registry.start()
    with pytest.raises(ModelNotFound, match="served: first"):
        registry.get("second")
    await registry.load("second")
    assert registry.describe_one("second").state == "ready"
    (done,) = await registry.get("second").scheduler.fast.submit([BLANK], Deadline(60))
    assert done.value.maps[0][0].shape == (8, 8)
    await registry.unload("second")
    await registry.unload("second")
    assert registry.describe_one("second").state == "available"
    with pytest.raises(ModelNotFound, match="served: first"):
        registry.get("second")
    assert registry.ready
    await registry.close()


async def test_asked_twice_at_once_it_loads_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads = 0
    load = Model.load

    def counted(*args: object, **kwargs: object) -> Model:
        nonlocal loads
        loads += 1
        return load(*args, **kwargs)  # type: ignore[arg-type] # passed through as they came

    monkeypatch.setattr(Model, "load", counted)
    registry = registry_of(folder)
    asked = [asyncio.create_task(registry.load("second")) for _ in range(3)]
    await asyncio.sleep(0.01)
    with pytest.raises(NotReady):
        registry.get("second")
    asked[0].cancel()  # a caller who leaves takes nothing from the others
    await asyncio.gather(*asked[1:])
    await registry.load("second")
    assert loads == 1
    await registry.close()


async def test_loads_and_unloads_come_one_after_the_other(folder: Path) -> None:
    registry = registry_of(folder)
    await asyncio.gather(registry.load("first"), registry.unload("first"), registry.load("first"))
    assert registry.get("first").scheduler.alive
    await asyncio.gather(registry.load("first"), registry.unload("first"))
    assert registry.describe_one("first").state == "available"
    await registry.close()


async def test_requests_in_flight_finish_and_later_ones_are_refused(folder: Path) -> None:
    registry = registry_of(folder)
    await registry.start()
    model = registry.get("first")
    deadline = Deadline(60)
    async with model.scheduler.admit({"fast": 20}, 0, deadline) as reservation:  # a request that is still decoding
        unloading = asyncio.create_task(registry.unload("first"))
        await asyncio.sleep(0.05)
        with pytest.raises(ModelNotFound):
            registry.get("first")
        assert not unloading.done()
        waiting = asyncio.create_task(model.scheduler.run([BLANK] * 20, deadline, reservation))
        await asyncio.sleep(0)
    await unloading
    assert waiting.done()
    assert len(waiting.result()) == 20
    assert not model.scheduler.alive
    await registry.close()


async def test_readiness_counts_what_was_asked_for_at_start(folder: Path) -> None:
    registry = registry_of(folder)
    seen = [registry.ready]
    await registry.start()
    await registry.load("second")
    await registry.unload("first")
    seen.append(registry.ready)  # dismissed on purpose
    await registry.load("first")
    await registry.get("first").close()
    seen.append(registry.ready)
    assert seen == [False, True, False]
    await registry.close()


async def test_a_model_that_cannot_be_loaded_says_why_and_takes_nobody_down(folder: Path) -> None:
    registry = registry_of(folder)
    await registry.start()
    with pytest.raises(ModelUnhealthy):
        await registry.load("broken")
    described = registry.describe_one("broken")
    assert described.state == "failed"
    assert "sha256" in (described.error or "")
    await registry.unload("broken")
    assert registry.describe_one("broken").state == "available"
    with pytest.raises(ModelNotFound, match="broken, first, second"):
        await registry.load("nowhere")
    assert registry.get("first").scheduler.alive
    await registry.close()


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")
async def test_memory_comes_back(folder: Path) -> None:
    registry = registry_of(folder)
    sizes = []
    gc.freeze()  # what other tests have left need not be walked at every unloading
    for _ in range(20):
        await registry.load("first")
        await registry.unload("first")
        sizes.append(resident())
    gc.unfreeze()
    # The first cycles import and fill caches for good.
    assert max(sizes[5:]) <= 1.03 * sizes[4], sizes
    await registry.close()

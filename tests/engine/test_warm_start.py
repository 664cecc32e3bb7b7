"""A second start reads what the first has written: it exports and compares nothing, and answers the same."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from structlog.testing import capture_logs

from service.engine.batch import EngineRequest
from service.engine.cards.card import Card
from service.engine.disk_cache import DiskCache
from service.engine.graph import split_cache
from service.engine.graph.export import export
from service.engine.network import Network
from service.engine.runtimes import RuntimeOptions, openvino
from service.engine.sources import identity
from service.engine.types import EngineResult
from tests.model_cards import write_card

IMAGE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
TORCH = RuntimeOptions(engine="torch", precision="fp32")
AUTO = RuntimeOptions()
ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


@pytest.fixture
def card(tmp_path: Path) -> Card:
    write_card(tmp_path, "tiny")
    return Card.read(tmp_path / "tiny.toml")


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The input shapes that are exported from now on."""
    shapes: list[tuple[int, ...]] = []

    def recording(name: str, module: Any, shape: tuple[int, int, int], overrides: Any) -> Any:
        shapes.append(shape)
        return export(name, module, shape, overrides)

    monkeypatch.setattr(split_cache, "export", recording)
    return shapes


def explain(network: Network, method: str = "gradcam") -> EngineResult:
    found, parameters = network.resolve_method(method)
    (result,) = network.run([EngineRequest(pixels=IMAGE, classes=(3, 5), method=found, parameters=parameters)])
    assert isinstance(result, EngineResult)
    return result


def assert_same(one: EngineResult, other: EngineResult) -> None:
    assert np.array_equal(one.logits, other.logits)
    assert all(np.array_equal(a, b) for a, b in zip(one.maps, other.maps, strict=True))
    assert (one.engine, one.precision, one.layers) == (other.engine, other.precision, other.layers)


@pytest.mark.parametrize("options", [TORCH, AUTO], ids=["torch", "auto"])
@pytest.mark.parametrize("method", ["gradcam", "layercam", "smoothgrad"])
def test_a_warm_start_answers_what_a_cold_one_does(card: Card, tmp_path: Path, options: RuntimeOptions, method: str) -> None:
    if options == AUTO:
        pytest.importorskip("openvino")
    cache = DiskCache(tmp_path / "cache")
    cold = Network.load(card, CPU, options, cache=cache)
    warm = Network.load(card, CPU, options, cache=cache)
    assert_same(explain(cold, method), explain(warm, method))
    assert (cold.layers, cold.methods, cold.default_layers) == (warm.layers, warm.methods, warm.default_layers)
    assert (cold.engine, cold.precision, cold.digest) == (warm.engine, warm.precision, warm.digest)


def test_a_warm_start_neither_exports_nor_compares(
    card: Card, tmp_path: Path, exports: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    cache = DiskCache(tmp_path / "cache")
    with capture_logs() as cold:
        Network.load(card, CPU, AUTO, cache=cache)
    assert exports == [(3, 64, 64)]

    def refuse(*_: object) -> object:
        raise AssertionError("a warm start converts nothing")

    monkeypatch.setattr(openvino, "convert", refuse)
    with capture_logs() as warm:
        Network.load(card, CPU, AUTO, cache=cache)
    assert exports == [(3, 64, 64)]
    assert [{**log, "cached": True} for log in cold if log["event"] == "precision"] == [
        log for log in warm if log["event"] == "precision"
    ]


def test_a_refusal_of_openvino_is_kept_and_told_again(card: Card, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def riddle(*_: object) -> object:
        raise RuntimeError("No conversion rule found for operations: aten.riddle.default")

    monkeypatch.setattr(openvino, "available", lambda: True)
    monkeypatch.setattr(openvino, "convert", riddle)
    reasons = []
    for _ in range(2):
        with capture_logs() as logs:
            network = Network.load(card, CPU, AUTO, cache=DiskCache(tmp_path / "cache"))
        assert network.engine == "torch"
        reasons += [(log["reason"], log.get("cached", False)) for log in logs if log["event"] == "engine_fallback"]
    assert [cached for _, cached in reasons] == [False, True]
    assert reasons[0][0] == reasons[1][0]
    assert "riddle" in reasons[0][0]


@pytest.mark.parametrize(
    "change",
    ["seed", "size", "activation", "arguments", "version"],
    ids=["weights", "size", "activation", "arguments", "version"],
)
def test_what_the_graph_depends_on_is_part_of_its_key(
    card: Card, tmp_path: Path, exports: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    cache = DiskCache(tmp_path / "cache")
    Network.load(card, CPU, TORCH, cache=cache)
    other = {
        "seed": card.model_copy(update={"weights": card.weights.model_copy(update={"random": 1})}),
        "size": card.model_copy(update={"preprocess": card.preprocess.model_copy(update={"crop": 96})}),
        "activation": card.model_copy(update={"labels": card.labels.model_copy(update={"activation": "sigmoid"})}),
        "arguments": card.model_copy(
            update={"architecture": card.architecture.model_copy(update={"args": {"num_classes": 10, "drop_rate": 0.1}})}
        ),
        "version": card,
    }[change]
    if change == "version":
        monkeypatch.setattr(identity, "__version__", "0.0.0")
    Network.load(other, CPU, TORCH, cache=cache)
    assert len(exports) == 2


def test_the_choice_depends_on_layers_options_and_normalization(card: Card, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    cache = DiskCache(tmp_path / "cache")
    others = [
        (card, AUTO, {"graph", "layer", "runtime", "trunk"}),
        (card, replace(AUTO, threads=2), {"runtime", "trunk"}),
        (card, replace(AUTO, precision="fp32"), {"runtime", "trunk"}),
        (
            card.model_copy(update={"explain": card.explain.model_copy(update={"layer": ("layer2",)})}),
            AUTO,
            {"layer", "runtime", "trunk"},
        ),
        (
            card.model_copy(update={"preprocess": card.preprocess.model_copy(update={"mean": (0.1, 0.2, 0.3)})}),
            AUTO,
            {"layer", "runtime", "trunk"},
        ),
    ]
    for other, options, made in others:
        before = len(list((tmp_path / "cache").glob("*.entry"))) if (tmp_path / "cache").exists() else 0
        Network.load(other, CPU, options, cache=cache)
        added = len(list((tmp_path / "cache").glob("*.entry"))) - before
        assert added == len(made)


@pytest.mark.parametrize("damage", ["truncated", "garbage", "deleted"])
def test_damaged_entries_are_made_anew(card: Card, tmp_path: Path, exports: list[tuple[int, ...]], damage: str) -> None:
    cache = DiskCache(tmp_path / "cache")
    cold = Network.load(card, CPU, AUTO, cache=cache)
    if damage == "deleted":
        shutil.rmtree(tmp_path / "cache")
    else:
        for path in (tmp_path / "cache").glob("*.entry"):
            path.write_bytes(path.read_bytes()[:-7] if damage == "truncated" else b"garbage" * 100)
    again = Network.load(card, CPU, AUTO, cache=cache)
    assert len(exports) == 2
    assert np.array_equal(explain(cold).logits.argmax(), explain(again).logits.argmax())
    Network.load(card, CPU, AUTO, cache=cache)
    assert len(exports) == 2


def test_an_entry_with_a_valid_digest_that_no_longer_fits_is_made_anew(
    card: Card, tmp_path: Path, exports: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = DiskCache(tmp_path / "cache")
    Network.load(card, CPU, TORCH, cache=cache)
    for path in (tmp_path / "cache").glob("*.entry"):
        cache.write(path.stem, b"something else")
    with capture_logs() as logs:
        Network.load(card, CPU, TORCH, cache=cache)
    assert len(exports) == 2
    assert {"graph_not_read", "layer_choice_not_read"} <= {log["event"] for log in logs}


def test_other_sizes_are_kept_too(card: Card, tmp_path: Path, exports: list[tuple[int, ...]]) -> None:
    cache = DiskCache(tmp_path / "cache")
    wide = EngineRequest(pixels=np.zeros((64, 96, 3), np.uint8), classes=(1,))
    for _ in range(2):
        assert isinstance(Network.load(card, CPU, TORCH, cache=cache).run([wide])[0], EngineResult)
    assert exports == [(3, 64, 64), (3, 64, 96)]


def test_without_a_cache_every_start_exports(card: Card, exports: list[tuple[int, ...]]) -> None:
    for cache in (None, DiskCache(None)):
        Network.load(card, CPU, TORCH, cache=cache)
    assert exports == [(3, 64, 64)] * 2


def test_a_trunk_compiled_in_one_process_serves_in_another(tmp_path: Path) -> None:
    """Of a residual network several values cross the split; sets of nodes have another order in each process."""
    network = ("test_resnet", "test_vit"), ("crop = 64", "crop = 160"), ("layer3", "blocks.1.norm1")
    write_card(tmp_path, "tiny", *network)
    script = """
import sys, torch, numpy as np
from pathlib import Path
from service.engine.batch import EngineRequest
from service.engine.cards.card import Card
from service.engine.disk_cache import DiskCache
from service.engine.network import Network
from service.engine.runtimes import RuntimeOptions
folder = Path(sys.argv[1])
hold = [object() for _ in range(int(sys.argv[2]))]
options = RuntimeOptions(engine="auto", precision="fp32")
network = Network.load(Card.read(folder / "tiny.toml"), torch.device("cpu"), options, cache=DiskCache(folder / "cache"))
(result,) = network.run([EngineRequest(pixels=np.zeros((160, 160, 3), np.uint8), classes=(1,))])
print(result.logits.tolist(), result.maps[0][0].tolist())
"""
    outputs = [
        subprocess.run(
            [sys.executable, "-c", script, str(tmp_path), number], cwd=ROOT, capture_output=True, text=True, check=True
        )
        for number in ("1", "100000", "12345")
    ]
    assert len({output.stdout.splitlines()[-1] for output in outputs}) == 1
    assert len(list((tmp_path / "cache").glob("*.entry"))) == 4

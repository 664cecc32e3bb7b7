"""Which runtime a network gets, what happens where one cannot be had, and that every answer says what computed it."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from structlog.testing import capture_logs
from torch import Tensor, nn

from service.engine.batch import EngineRequest
from service.engine.cards.card import Card
from service.engine.methods import METHODS
from service.engine.network import Network
from service.engine.runtimes import TORCH_FP32, RuntimeOptions, openvino
from service.engine.runtimes import torch as eager
from service.engine.types import EngineResult, LayerStatisticsRequest
from service.errors import ConfigurationError
from tests.model_cards import write_card
from tests.networks import Pooled, network, seeded

pytest.importorskip("openvino")

IMAGE = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)


class Rounded(Pooled):
    """Adds and takes away a thousand before the cut: bfloat16, whose steps there are 4 wide, loses what it is about."""

    def forward(self, x: Tensor) -> Tensor:
        """Float ``[N, 3, h, w]`` -> ``[N, 5]``."""
        logits: Tensor = self.head(self.block(self.stem(x) + 1000.0 - 1000.0).mean(dim=(2, 3)))
        return logits


def module() -> nn.Module:
    return seeded(Pooled)


def fallbacks(monkeypatch: pytest.MonkeyPatch, options: RuntimeOptions) -> tuple[Network, list[str]]:
    def convert(trunk: object, example: object) -> object:
        raise RuntimeError("\nNo conversion rule found for operations: aten.riddle.default\n")

    monkeypatch.setattr(openvino, "convert", convert)
    with capture_logs() as logs:
        net = network(module(), "block", options=options)
    return net, [f"{log['wanted']}: {log['reason']}" for log in logs if log["event"] == "engine_fallback"]


def test_openvino_runs_the_trunk_on_a_cpu_unless_told_otherwise() -> None:
    assert network(module(), "block", options=RuntimeOptions(engine="auto", precision="fp32")).engine == "openvino"
    assert network(module(), "block", options=RuntimeOptions(engine="torch", precision="fp32")).engine == "torch"


def test_where_openvino_is_missing_torch_takes_its_place_and_asking_for_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino, "available", lambda: False)
    assert network(module(), "block", options=RuntimeOptions(engine="auto", precision="fp32")).engine == "torch"
    with pytest.raises(ConfigurationError, match="card test: engine openvino is not installed; install it, or use auto"):
        network(module(), "block", options=RuntimeOptions(engine="openvino", precision="fp32"))


def test_a_network_that_openvino_cannot_run_falls_back_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    net, reasons = fallbacks(monkeypatch, RuntimeOptions(engine="auto", precision="fp32"))
    assert net.engine == "torch"
    assert reasons == ["openvino: No conversion rule found for operations: aten.riddle.default"]
    with pytest.raises(ConfigurationError, match=r"card test: engine openvino cannot run this network: .*riddle"):
        network(module(), "block", options=RuntimeOptions(engine="openvino", precision="fp32"))


def test_an_engine_that_computes_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    convert = openvino.convert

    def broken(trunk: torch.fx.GraphModule, example: Tensor) -> object:
        other = copy.deepcopy(trunk)
        for number, value in enumerate(other.parameters()):
            value.copy_(torch.randn(value.shape, generator=torch.Generator().manual_seed(number)))
        return convert(other, example)

    monkeypatch.setattr(openvino, "convert", broken)
    with capture_logs() as logs:
        net = network(module(), "block", options=RuntimeOptions(engine="auto", precision="fp32"))
    assert net.engine == "torch"
    (reason,) = [log["reason"] for log in logs if log["event"] == "engine_fallback"]
    assert "its results disagree with torch's" in reason


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_bf16_where_answers_stay_the_same_and_it_is_faster(monkeypatch: pytest.MonkeyPatch, engine: str) -> None:
    monkeypatch.setattr(openvino, "has_bf16", lambda: True)
    monkeypatch.setattr("service.engine.runtimes.has_bf16", lambda _: True)
    monkeypatch.setattr("service.engine.runtimes.speedup", lambda *_: 1.5)
    options = RuntimeOptions(engine="torch" if engine == "torch" else "openvino", precision="auto")
    net = network(module(), "block", options=options)
    assert (net.engine, net.precision) == (engine, "bf16")
    (found,) = net.run([EngineRequest(pixels=IMAGE, best=1)])
    (exact,) = network(module(), "block").run([EngineRequest(pixels=IMAGE, best=1)])
    assert isinstance(found, EngineResult)
    assert isinstance(exact, EngineResult)
    assert (found.engine, found.precision) == (engine, "bf16")
    assert np.corrcoef(found.maps[0][0].ravel(), exact.maps[0][0].ravel())[0, 1] > 0.99
    monkeypatch.setattr("service.engine.runtimes.speedup", lambda *_: 1.05)
    assert network(module(), "block", options=options).precision == "fp32"


def test_bf16_is_refused_where_the_best_class_or_the_map_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.engine.runtimes.has_bf16", lambda _: True)
    monkeypatch.setattr("service.engine.runtimes.speedup", lambda *_: 9.0)
    with capture_logs() as logs:
        net = network(seeded(Rounded), "block", options=RuntimeOptions(engine="torch", precision="auto"))
    assert net.precision == "fp32"
    (refused,) = [log["bf16_refused"] for log in logs if log["event"] == "precision"]
    assert "photograph" in refused


def test_bf16_asked_for_by_name_needs_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.engine.runtimes.has_bf16", lambda _: False)
    monkeypatch.setattr(openvino, "has_bf16", lambda: False)
    for engine in (TORCH_FP32.engine, RuntimeOptions().engine):
        with pytest.raises(ConfigurationError, match="card test: precision bf16: this hardware does not compute in it"):
            network(module(), "block", options=RuntimeOptions(engine=engine, precision="bf16"))
        assert network(module(), "block", options=RuntimeOptions(engine=engine, precision="auto")).precision == "fp32"


def test_every_answer_says_what_computed_it() -> None:
    net = network(module(), "block", options=RuntimeOptions(engine="openvino", precision="fp32"))
    other_size = np.zeros((48, 48, 3), np.uint8)
    requests = [
        EngineRequest(pixels=IMAGE, best=1),
        EngineRequest(pixels=IMAGE, best=1, layers=("stem",)),
        EngineRequest(pixels=IMAGE),
        EngineRequest(pixels=IMAGE, best=1, layers=("block",)),
        EngineRequest(pixels=other_size, best=1),
        EngineRequest(pixels=IMAGE, best=1, method=METHODS["saliency"]),
    ]
    found = [result.engine for result in net.run(requests) if isinstance(result, EngineResult)]
    assert found == ["openvino", "torch", "openvino", "openvino", "torch", "torch"]
    statistics = net.layer_statistics(LayerStatisticsRequest(pixels=IMAGE, layers=("block",), channels=3))
    assert statistics.engine == "torch"


def test_a_card_overrides_the_service(tmp_path: Path) -> None:
    write_card(tmp_path, "tiny", ("[explain]", '[runtime]\nengine = "torch"\nprecision = "fp32"\n[explain]'))
    card = Card.read(tmp_path / "tiny.toml")
    assert Network.load(card, torch.device("cpu"), RuntimeOptions(engine="openvino", precision="auto")).engine == "torch"


def test_a_trunk_in_half_precision_gives_float32() -> None:
    net = network(module(), "block")
    trunk = net._torch_split.trunk
    assert isinstance(trunk, eager.TorchTrunk)
    (value,) = trunk.halved()(torch.zeros(1, 3, 32, 32))
    assert value.dtype == torch.float32
    assert next(iter(trunk.module.parameters())).dtype == torch.float32

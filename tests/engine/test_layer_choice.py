"""The layer that a network chooses itself: the first candidate whose maps of photographs are not blank; what is said of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import timm
import torch
from structlog.testing import capture_logs
from torch import Tensor, nn

from service.engine.batch import EngineRequest
from service.engine.graph.candidates import candidates
from service.engine.graph.export import export
from service.engine.layer_choice import (
    CONSTANT,
    NO_GRADIENT,
    NOT_FINITE,
    NOT_POSITIVE,
    choose_layer,
    find_blank,
)
from service.engine.runtimes import RuntimeOptions
from service.engine.types import EngineResult
from tests.networks import Pooled, network, seeded

transformers: Any = pytest.importorskip("transformers")


class ReadAtToken(nn.Module):
    """A class token attends to patches; the last module with a grid is a norm that is read at the class token alone.

    The attention is written as a sum of products, as in CvT, so that the graph does not tell that it is one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 8, stride=8)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.before = nn.LayerNorm(8)
        self.keys = nn.Linear(8, 8)
        self.values = nn.Linear(8, 8)
        self.unused = nn.LayerNorm(8)
        self.after = nn.LayerNorm(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Float ``[N, 3, h, w]`` -> ``[N, 5]``."""
        patches = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(x.shape[0], -1, -1), patches], dim=1)
        normed = self.before(tokens)
        self.unused(tokens)
        weights = (normed @ self.keys(normed).transpose(1, 2)).softmax(dim=-1)
        mixed = torch.einsum("nqk,nkc->nqc", weights, self.values(normed))
        logits: Tensor = self.head(self.after(tokens + mixed)[:, 0])
        return logits


def result(
    grid: Sequence[Sequence[float]], *others: Sequence[Sequence[float]], logits: tuple[float, ...] = (0, 1)
) -> EngineResult:
    return EngineResult(
        logits=np.array(logits, np.float32),
        classes=(1,),
        maps=(tuple(np.array(one, np.float32) for one in (grid, *others)),),
        layers=tuple(map(str, range(1 + len(others)))),
        engine="torch",
        precision="fp32",
    )


ZERO, NEGATIVE, POSITIVE = [[0.0, 0.0]], [[-1.0, 0.0]], [[-1.0, 2.0]]


@pytest.mark.parametrize(
    ("results", "reasons"),
    [
        ([result(ZERO, logits=(0, 1)), result(ZERO, logits=(0, 2))], [NO_GRADIENT]),
        ([result(NEGATIVE, logits=(0, 1)), result(ZERO, logits=(0, 2))], [NOT_POSITIVE]),
        ([result(NEGATIVE, logits=(0, 1)), result(POSITIVE, logits=(0, 2))], [None]),
        ([result(ZERO, POSITIVE), result(ZERO, ZERO)], [CONSTANT, None]),
        ([], [NOT_FINITE]),
    ],
)
def test_a_layer_is_blank_only_where_every_photograph_is(results: list[EngineResult], reasons: list[str | None]) -> None:
    assert find_blank(len(reasons), results) == reasons


def test_one_photograph_is_enough_where_the_first_candidate_shows_something() -> None:
    asked: list[tuple[str, ...]] = []

    def explain(layers: tuple[str, ...]) -> Iterator[EngineResult]:
        for _ in range(8):
            asked.append(layers)
            yield result(POSITIVE)

    choice = choose_layer("net", ["a", "b"], explain)
    assert (choice.chosen, choice.rejected, choice.alternatives, choice.warning) == (("a",), (), ("b",), None)
    assert asked == [("a",)]


@pytest.mark.parametrize("options", [RuntimeOptions(engine="torch", precision="fp32"), RuntimeOptions(precision="fp32")])
def test_a_norm_behind_which_only_the_class_token_is_read_is_left(options: RuntimeOptions) -> None:
    with capture_logs() as logs:
        net = network(seeded(ReadAtToken), options=options)
    choice = net.layer_choice
    assert (choice.chosen, choice.warning) == (("before",), None)
    assert net.default_layers == ("before",)
    assert choice.rejected == (("after", NO_GRADIENT),)
    (entry,) = [log for log in logs if log["event"] == "default_layer"]
    assert (entry["layer"], entry["rejected"], entry["reasons"]) == ("before", ["after"], [NO_GRADIENT])


def test_a_card_keeps_its_layer_and_is_warned() -> None:
    with capture_logs() as logs:
        net = network(seeded(ReadAtToken), "after")
    assert net.default_layers == net.layer_choice.chosen == ("after",)
    assert net.layer_choice.warning == f"after: {NO_GRADIENT}"
    assert net.layer_choice.alternatives[0] == "before"
    (entry,) = [log for log in logs if log["event"] == "default_layer"]
    assert (entry["log_level"], entry["layer"], entry["reasons"]) == ("warning", "after", [NO_GRADIENT])


@pytest.mark.parametrize("options", [RuntimeOptions(engine="torch", precision="fp32"), RuntimeOptions(precision="fp32")])
def test_a_card_whose_layer_is_right_hears_nothing(options: RuntimeOptions) -> None:
    with capture_logs() as logs:
        net = network(seeded(Pooled), "block", options=options)
    assert (net.layer_choice.chosen, net.layer_choice.warning) == (("block",), None)
    assert not [log for log in logs if log["event"] == "default_layer"]


def test_where_nothing_depends_on_the_image_the_deepest_layer_stays() -> None:
    module = seeded(Pooled)
    nn.init.zeros_(module.get_parameter("head.weight"))
    with capture_logs() as logs:
        net = network(module)
    assert (net.layer_choice.chosen, net.layer_choice.warning) == (("block",), CONSTANT)
    assert [log["log_level"] for log in logs if log["event"] == "default_layer"] == ["warning"]


def test_a_layer_on_which_no_logit_depends_is_not_offered() -> None:
    net = network(seeded(ReadAtToken))
    assert {"before", "after"} <= set(net.layers)
    assert "unused" not in net.layers


def test_cvt_is_explained_at_the_input_of_its_last_attention() -> None:
    sizes = {"embed_dim": [8, 16, 32], "depth": [1, 2, 3], "num_heads": [1, 1, 2], "num_labels": 5}
    module = seeded(transformers.CvtForImageClassification, transformers.CvtConfig(**sizes))
    module.register_forward_hook(lambda _module, _inputs, output: output.logits)
    net = network(module, size=64)
    assert net.layer_choice.chosen == ("cvt.encoder.stages.2.layers.2.layernorm_before",)
    assert net.layer_choice.rejected == (("cvt.encoder.stages.2.layers.2", NO_GRADIENT),)
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    (found,) = net.run([EngineRequest(pixels=pixels, best=1)])
    assert isinstance(found, EngineResult), found
    assert found.maps[0][0].shape == (4, 4)
    assert (found.maps[0][0] > 0).any()


def test_where_the_last_attentions_have_no_grid_the_deepest_grid_is_chosen() -> None:
    """Hiera with one block a stage: the last attention pools, and the tokens before it are in another order."""
    module = seeded(timm.create_model, "hiera_tiny_224", num_classes=10, img_size=64, stages=(1, 1, 1, 1))
    nn.init.normal_(module.get_parameter("head.fc.weight"))
    graph = export("test", module, (3, 64, 64))
    assert graph.default_layer() == "patch_embed"
    choice = network(module, size=64).layer_choice
    assert (choice.chosen, choice.rejected, choice.warning) == (("blocks.3",), (), None)


def test_projections_inside_an_attention_come_last() -> None:
    graph = export("test", seeded(ReadAtToken), (3, 32, 32))
    assert graph.default_layer() == "after"
    paths = candidates(graph)
    assert paths[:2] == ("after", "before")
    assert paths.index("before") < paths.index("keys")

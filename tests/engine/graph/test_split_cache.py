"""What stays exported and split: the most recently used, a bounded number of them, and each is made once."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import pytest
import timm
from torch import nn

from service.engine.graph import split_cache
from service.engine.graph.attention import AttentionGraph, attention_graph
from service.engine.graph.export import NetworkGraph, export
from service.engine.graph.layout import LayoutOverride
from service.engine.graph.split_cache import ImageSize, SizedNetwork, SplitCache
from service.errors import ConfigurationError, MethodNotApplicable
from tests.networks import Pooled, seeded

SIZE = (32, 32)
LAYERS = ("block",)
Overrides = Mapping[str, LayoutOverride]
PATIENCE_S = 60.0  # of a test for another thread


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch) -> SplitCache:
    """With room for two graphs, beside the card's, and two splits."""
    monkeypatch.setattr(split_cache, "MAX_GRAPHS", 2)
    monkeypatch.setattr(split_cache, "MAX_SPLITS", 2)
    return SplitCache("pooled", seeded(Pooled), 3, SIZE)


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> list[ImageSize]:
    """The image sizes that are exported from now on."""
    sizes: list[ImageSize] = []

    def recording(name: str, module: nn.Module, shape: tuple[int, int, int], overrides: Overrides) -> NetworkGraph:
        sizes.append(shape[1:])
        return export(name, module, shape, overrides)

    monkeypatch.setattr(split_cache, "export", recording)
    return sizes


def test_the_least_recently_used_size_is_exported_anew(cache: SplitCache, exported: list[ImageSize]) -> None:
    first, second = cache.graph_at((40, 40)), cache.graph_at((48, 48))
    assert cache.graph_at((40, 40)) is first
    cache.graph_at((56, 56))
    assert cache.graph_at((40, 40)) is first
    assert exported == [(40, 40), (48, 48), (56, 56)]
    assert cache.graph_at((48, 48)) is not second
    assert cache.graph_at(SIZE) is cache.graph  # which no other size pushes out
    assert exported == [(40, 40), (48, 48), (56, 56), (48, 48)]


def test_the_least_recently_used_split_is_made_anew(cache: SplitCache) -> None:
    first, second = cache.split_at(SIZE, LAYERS), cache.split_at((40, 40), LAYERS)
    assert cache.split_at(SIZE, LAYERS) is first
    cache.split_at((48, 48), LAYERS)
    assert cache.split_at(SIZE, LAYERS) is first
    assert cache.split_at((40, 40), LAYERS) is not second


def test_a_split_is_of_its_layers_in_their_order(cache: SplitCache) -> None:
    one, other = cache.split_at(SIZE, ("stem", "block")), cache.split_at(SIZE, ("block", "stem"))
    assert one is not other
    assert (one.layers, other.layers) == (("stem", "block"), ("block", "stem"))


def test_asked_by_many_at_once_each_is_made_once(cache: SplitCache, exported: list[ImageSize]) -> None:
    start = threading.Barrier(4)

    def ask(_: int) -> object:
        start.wait(PATIENCE_S)
        return cache.split_at((40, 40), LAYERS), cache.graph_at((40, 40))

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(ask, range(4)))
    assert all(one == found[0] for one in found)
    assert exported == [(40, 40)]


def hold_exports(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """Every export waits: the events that one has begun, and that lets it go on."""
    begun, release = threading.Event(), threading.Event()

    def held(name: str, module: nn.Module, shape: tuple[int, int, int], overrides: Overrides) -> NetworkGraph:
        begun.set()
        assert release.wait(PATIENCE_S)
        return export(name, module, shape, overrides)

    monkeypatch.setattr(split_cache, "export", held)
    return begun, release


def test_the_cards_own_graph_does_not_wait_for_another_to_be_exported(
    cache: SplitCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, release = hold_exports(monkeypatch)
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(cache.graph_at, (40, 40))
        assert begun.wait(PATIENCE_S)
        assert cache.graph_at(SIZE) is cache.graph
        assert not other.done()
        release.set()
        assert other.result() is cache.graph_at((40, 40))


def test_a_split_at_the_cards_size_does_not_wait_for_another_size_to_be_exported(
    cache: SplitCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, release = hold_exports(monkeypatch)
    with ThreadPoolExecutor(2) as pool:
        other = pool.submit(cache.split_at, (40, 40), LAYERS)
        assert begun.wait(PATIENCE_S)
        own = pool.submit(cache.split_at, SIZE, ("stem",))
        assert own.result(PATIENCE_S).layers == ("stem",)
        with pytest.raises(MethodNotApplicable):  # nor does attention
            cache.attention_at(SIZE)
        assert not other.done()
        release.set()
        assert other.result(PATIENCE_S) is cache.split_at((40, 40), LAYERS)


def test_an_export_that_fails_fails_for_all_who_wait_and_may_be_asked_for_again(
    cache: SplitCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> NetworkGraph:
        raise ConfigurationError("not this size")

    with monkeypatch.context() as patch:
        patch.setattr(split_cache, "export", fail)
        for _ in range(2):
            with pytest.raises(ConfigurationError, match="not this size"):
                cache.split_at((40, 40), LAYERS)
    assert cache.split_at((40, 40), LAYERS).layers == LAYERS


def test_attention_is_written_out_once_for_each_size(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = {"img_size": 64, "depth": 2, "num_classes": 10, "dynamic_img_size": True}
    cache = SplitCache("vit", seeded(timm.create_model, "vit_tiny_patch16_224", **arguments), 3, (64, 64))
    written: list[NetworkGraph] = []

    def recording(graph: NetworkGraph) -> AttentionGraph:
        written.append(graph)
        return attention_graph(graph)

    monkeypatch.setattr(split_cache, "attention_graph", recording)
    square, wide = SizedNetwork(cache, (64, 64)), SizedNetwork(cache, (64, 96))
    found = [network.attention for network in (square, wide, square, wide)]
    assert found[0] is found[2] is cache.attention_at((64, 64))
    assert found[1] is found[3] is cache.attention_at((64, 96))
    assert written == [square.graph, wide.graph]
    assert [(one.tokens.rows, one.tokens.columns) for one in found[:2]] == [(4, 4), (4, 6)]


def test_a_network_without_attention_says_so_each_time(cache: SplitCache) -> None:
    for _ in range(2):
        with pytest.raises(MethodNotApplicable, match="no attention"):
            cache.attention_at(SIZE)


def test_a_sized_network_is_a_view_of_the_cache(cache: SplitCache) -> None:
    own, other = SizedNetwork(cache, SIZE), SizedNetwork(cache, (40, 40))
    assert own.graph is cache.graph
    assert other.graph is cache.graph_at((40, 40)) is not cache.graph
    assert own.split(LAYERS) is cache.split_at(SIZE, LAYERS)
    assert other.split(LAYERS) is cache.split_at((40, 40), LAYERS)


def test_layouts_that_a_card_states_hold_for_every_size() -> None:
    overrides = {"block": LayoutOverride("nhwc")}
    cache = SplitCache("pooled", seeded(Pooled), 3, SIZE, overrides)
    layouts = [cache.graph_at(size).layers()["block"].layout for size in (SIZE, (40, 40))]
    assert layouts == ["nhwc", "nhwc"]
    with pytest.raises(ConfigurationError, match=r"card pooled: explain\.layout: block cannot be tokens"):
        SplitCache("pooled", seeded(Pooled), 3, SIZE, {"block": LayoutOverride("tokens")})

"""What stays exported and cut: the most recently used, a bounded number of them, and each is made once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from service.engine.graph.split_cache import SplitCache
from tests import networks

SIZE = (32, 32)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> SplitCache:
    """With room for two graphs, beside the card's, and two cuts."""
    monkeypatch.setattr(cuts, "KEPT_GRAPHS", 2)
    monkeypatch.setattr(cuts, "KEPT_SPLITS", 2)
    return SplitCache("pooled", networks.seeded(networks.Pooled), 3, SIZE, None)


def test_the_least_recently_used_size_is_exported_anew(made: SplitCache) -> None:
    first, second = made.at((40, 40)), made.at((48, 48))
    assert made.at((40, 40)) is first
    made.at((56, 56))
    assert made.at((40, 40)) is first
    assert made.at((48, 48)) is not second
    assert made.at(SIZE) is made.graph


def test_the_least_recently_used_layers_are_cut_anew(made: SplitCache) -> None:
    sizes = SIZE, (40, 40), (48, 48)
    first, second = (made.split(size, ("block",)) for size in sizes[:2])
    assert made.split(sizes[0], ("block",)) is first
    made.split(sizes[2], ("block",))
    assert made.split(sizes[0], ("block",)) is first
    assert made.split(sizes[1], ("block",)) is not second


def test_asked_by_many_at_once_it_is_made_once(made: SplitCache) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: made.split((40, 40), ("block",)), range(8)))
    assert all(one is found[0] for one in found)

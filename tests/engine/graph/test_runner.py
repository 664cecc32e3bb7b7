"""Chunks: how large they are, what is called before each, and that nothing is left out, doubled or put in another order."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from structlog.testing import capture_logs
from torch import Tensor

from service.engine.graph.export import NetworkGraph, export
from service.engine.graph.runner import LOG_INTERVAL, NETWORK_ROWS, ChunkedRunner
from service.errors import DeadlineExceeded
from tests.networks import Pooled, seeded

SIDE = 32


@pytest.fixture(scope="module")
def graph() -> NetworkGraph:
    return export("pooled", seeded(Pooled), (3, SIDE, SIDE))


def images(count: int) -> Tensor:
    return torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(count))


class Chunks:
    """Counts checkpoints, and keeps the sizes of what ran after each; at checkpoint `last` it raises."""

    def __init__(self, last: int | None = None) -> None:
        self.sizes: list[list[int]] = []
        self._last = last

    def checkpoint(self) -> None:
        if len(self.sizes) == self._last:
            raise DeadlineExceeded("nobody waits")
        self.sizes.append([])

    def run(self, rows: Tensor) -> Tensor:
        self.sizes[-1].append(len(rows))
        return 2 * rows


@pytest.mark.parametrize(("count", "expected"), [(1, [1]), (7, [7]), (8, [8]), (9, [8, 1]), (20, [8, 8, 4])])
def test_chunks_are_bounded_and_each_has_its_checkpoint_before_it(graph: NetworkGraph, count: int, expected: list[int]) -> None:
    chunks = Chunks()
    rows = torch.arange(count)
    assert torch.equal(ChunkedRunner(graph, chunks.checkpoint).chunked(chunks.run, rows, 8), 2 * rows)
    assert chunks.sizes == [[size] for size in expected]


def test_what_a_checkpoint_raises_ends_the_run(graph: NetworkGraph) -> None:
    for last, ran in ((0, []), (2, [[8], [8]])):
        chunks = Chunks(last)
        with pytest.raises(DeadlineExceeded, match="nobody waits"):
            ChunkedRunner(graph, chunks.checkpoint).chunked(chunks.run, torch.arange(30), 8)
        assert chunks.sizes == ran


def test_rows_may_be_made_when_they_are_sliced(graph: NetworkGraph) -> None:
    made: list[range] = []

    class Lazy(Sequence[Tensor]):
        def __len__(self) -> int:
            return 20

        def __getitem__(self, index: int | slice) -> Tensor | list[Tensor]:  # type: ignore[override]  # of slices alone
            assert isinstance(index, slice)
            made.append(range(20)[index])
            return [torch.tensor(number) for number in made[-1]]

    found = ChunkedRunner(graph).chunked(lambda rows: rows, Lazy(), 8)
    assert torch.equal(found, torch.arange(20))
    assert made == [range(8), range(8, 16), range(16, 20)]


def test_in_chunks_the_network_says_what_it_says_of_all_at_once(graph: NetworkGraph) -> None:
    batch = images(2 * NETWORK_ROWS + 3)
    called: list[None] = []
    runner = ChunkedRunner(graph, lambda: called.append(None))
    with torch.no_grad():
        expected = runner.logits(batch)
    assert not called
    found = runner.forward(batch)
    assert not found.requires_grad
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(runner.forward(list(batch)), expected, atol=1e-6, rtol=1e-5)
    assert len(called) == 2 * 3


def test_gradients_are_each_images_own(graph: NetworkGraph) -> None:
    batch = images(NETWORK_ROWS + 2)
    called: list[None] = []
    runner = ChunkedRunner(graph, lambda: called.append(None))
    found = runner.gradient(batch, lambda logits: logits[:, 1] - logits[:, 3])
    assert len(called) == 2
    for number in (0, NETWORK_ROWS, NETWORK_ROWS + 1):
        leaf = batch[number : number + 1].clone().requires_grad_()
        logits = runner.logits(leaf)[0]
        (expected,) = torch.autograd.grad(logits[1] - logits[3], leaf)
        assert expected.any()
        torch.testing.assert_close(found[number : number + 1], expected, atol=1e-7, rtol=1e-4)


def test_a_runner_of_another_network_has_the_same_checkpoint(graph: NetworkGraph) -> None:
    called: list[None] = []
    other = export("other", seeded(Pooled, seed=1), (3, SIDE, SIDE))
    found = ChunkedRunner(graph, lambda: called.append(None)).with_network(other).forward(images(1))
    assert len(called) == 1
    torch.testing.assert_close(found, ChunkedRunner(other).forward(images(1)))
    assert not torch.allclose(found, ChunkedRunner(graph).forward(images(1)))


def test_progress_of_a_long_run_is_logged(graph: NetworkGraph) -> None:
    total = 2 * LOG_INTERVAL + 5
    with capture_logs() as logs:
        ChunkedRunner(graph, task="rise").chunked(lambda rows: rows, torch.arange(total), 1)
    progress = [(log["method"], log["passes"], log["total"]) for log in logs if log["event"] == "progress"]
    assert progress == [("rise", LOG_INTERVAL, total), ("rise", 2 * LOG_INTERVAL, total)]

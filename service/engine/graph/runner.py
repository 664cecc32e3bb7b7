"""Runs a network, or a part of it, over many rows in chunks of bounded size, with a checkpoint before each chunk.

The runner knows no method and no scheduler: the caller passes the checkpoint, which may wait or raise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import structlog
import torch
from torch import Tensor

from service.engine.graph.export import NetworkGraph

Checkpoint = Callable[[], None]

HEAD_ROWS: Final = 32  # of one pass of the head: bounds memory where many classes are explained at an early, large layer
NETWORK_ROWS: Final = 8  # rows of one pass of the whole network; a request of the fast lane shares the device for one such pass
LOG_INTERVAL: Final = 10  # chunks between two log entries

log = structlog.get_logger(__name__)


def no_checkpoint() -> None:
    """A checkpoint that neither waits nor raises."""


class ChunkedRunner:
    """Runs a network chunk by chunk.

    Args:
        network: the whole network.
        checkpoint: called before each chunk; an exception that it raises ends the run.
        task: the name of the run in the log.
    """

    def __init__(self, network: NetworkGraph, checkpoint: Checkpoint = no_checkpoint, task: str = "") -> None:
        self._module = network.module
        self._checkpoint = checkpoint
        self._task = task

    def with_network(self, network: NetworkGraph) -> ChunkedRunner:
        """A runner of another network, with the same checkpoint."""
        return ChunkedRunner(network, self._checkpoint, self._task)

    def logits(self, images: Tensor) -> Tensor:
        """Logits ``[n, classes]`` of one batch of normalised images ``[n, C, H, W]``; differentiable."""
        result = self._module(images)
        logits: Tensor = result[0] if isinstance(result, (tuple, list)) else result
        return logits

    def forward(self, images: Tensor | Sequence[Tensor]) -> Tensor:
        """Logits ``[n, classes]`` of normalised images ``[n, C, H, W]``, without gradient."""
        return self.chunked(self.logits, images, NETWORK_ROWS)

    def gradient(self, images: Tensor, score: Callable[[Tensor], Tensor]) -> Tensor:
        """The gradient of each image's score, ``[n, C, H, W]``; `score` maps logits ``[n, classes]`` to ``[n]``."""

        def differentiate(chunk: Tensor) -> Tensor:
            leaf = chunk.detach().requires_grad_()
            with torch.enable_grad():
                total = score(self.logits(leaf)).sum()
            return torch.autograd.grad(total, leaf)[0]

        return self.chunked(differentiate, images, NETWORK_ROWS)

    def chunked(self, run: Callable[[Tensor], Tensor], rows: Tensor | Sequence[Tensor], size: int) -> Tensor:
        """Calls `run` on `size` rows at a time and concatenates its results; a sequence may create its tensors when sliced."""
        results = []
        total = -(-len(rows) // size)
        for number in range(total):
            self.checkpoint(number, total)
            chunk = rows[number * size : (number + 1) * size]
            with torch.no_grad():
                results.append(run(chunk if isinstance(chunk, Tensor) else torch.stack(list(chunk))))
        return torch.cat(results)

    def checkpoint(self, done: int, total: int) -> None:
        """Calls the checkpoint and logs the progress; for loops without `chunked`, which call it before each of their chunks.

        Args:
            done: number of chunks that have run.
            total: number of chunks of the loop.
        """
        self._checkpoint()
        if done and done % LOG_INTERVAL == 0:
            log.info("progress", method=self._task, passes=done, total=total)

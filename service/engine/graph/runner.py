"""Runs a network, or a part of it, over many rows in chunks of bounded size, with a checkpoint before each chunk.

Knows no method and no scheduler: the checkpoint is the caller's, and may wait or raise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import structlog
import torch
from torch import Tensor

from service.engine.graph.export import NetworkGraph

Checkpoint = Callable[[], None]

HEAD_ROWS: Final = 32  # of one pass of the head
NETWORK_ROWS: Final = 8  # of one pass of the whole network: so long may a faster request have to share the device
LOG_INTERVAL: Final = 10  # chunks

log = structlog.get_logger(__name__)


def no_checkpoint() -> None:
    """Neither waits nor raises."""


class ChunkedRunner:
    """Runs a network chunk by chunk.

    Args:
        network: the whole network.
        checkpoint: called before each chunk; what it raises ends the run.
        task: what the log calls the run.
    """

    def __init__(self, network: NetworkGraph, checkpoint: Checkpoint = no_checkpoint, task: str = "") -> None:
        self._module = network.module
        self._checkpoint = checkpoint
        self._task = task

    def with_network(self, network: NetworkGraph) -> ChunkedRunner:
        """A runner of another network with the same checkpoint."""
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
        """`run` over rows, `size` at a time, its results concatenated; `rows` may make its tensors when it is sliced."""
        results = []
        total = -(-len(rows) // size)
        for number in range(total):
            self.checkpoint(number, total)
            chunk = rows[number * size : (number + 1) * size]
            with torch.no_grad():
                results.append(run(chunk if isinstance(chunk, Tensor) else torch.stack(list(chunk))))
        return torch.cat(results)

    def checkpoint(self, done: int, total: int) -> None:
        """To be called before each chunk of a loop that does not use `chunked`; `done` of `total` chunks have run."""
        self._checkpoint()
        if done and done % LOG_INTERVAL == 0:
            log.info("progress", method=self._task, passes=done, of=total)

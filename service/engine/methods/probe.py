"""One image, one class, and a network that may be asked again and again: what methods beyond one gradient work with.

Every pass is bounded in rows. Between passes the probe looks whether somebody still waits, and lets quicker requests go first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from threading import Event

import structlog
import torch
from torch import Tensor

from service.engine.graph.export import NetworkGraph
from service.engine.graph.layout import Layout
from service.engine.graph.split import Split
from service.engine.types import MethodParameters
from service.errors import DeadlineExceeded

HEAD_ROWS = 32  # of one pass of the head
WHOLE_ROWS = 8  # of one pass of the whole network: so long may a quicker request have to share the device
REPORT_EVERY = 10  # passes

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class LayerSplit:
    """The network cut at one layer, for one image.

    Attributes:
        activations: float ``[1, K, h, w]``, whatever the network's own layout.
    """

    split: Split
    crossing: tuple[Tensor, ...]
    layout: Layout

    @property
    def activations(self) -> Tensor:
        """Of the layer, detached."""
        return self.layout.to_nchw(self._own).detach()

    def logits(self, activations: Tensor) -> Tensor:
        """Logits ``[n, classes]`` for other activations ``[n, K, h, w]`` in place of the layer's; differentiable in them."""
        rows = torch.zeros(len(activations), dtype=torch.long, device=activations.device)
        values = [how.select(value, rows) for how, value in zip(self.split.crossings, self.crossing, strict=True)]
        values[self._leaf] = self.layout.from_nchw(activations, values[self._leaf])
        logits: Tensor = self.split.head(*values)[0]
        return logits

    @property
    def _leaf(self) -> int:
        (leaf,) = self.split.leaves
        return leaf

    @property
    def _own(self) -> Tensor:
        return self.crossing[self._leaf]


@dataclass(kw_only=True)
class Probe:
    """Asks a network about one class of one image.

    Attributes:
        network: the whole network; `network.module(images)` gives a tuple with the logits.
        image: float ``[1, C, H, W]``, normalised.
        class_id, versus: the score is logit[class_id], less logit[versus] where there is one.
        logits: float ``[classes]`` of the image.
        cuts: the network cut at each layer asked for.
        tuning: the method's parameters.
    """

    network: NetworkGraph
    image: Tensor
    class_id: int
    versus: int | None
    logits: Tensor
    cuts: tuple[LayerSplit, ...]
    parameters: MethodParameters
    method: str
    abandoned: Event = field(default_factory=Event)
    step_aside: Callable[[], None] = lambda: None

    @property
    def generator(self) -> torch.Generator:
        """A fresh generator, on the CPU, of the tuning's seed: the same request gets the same answer."""
        return torch.Generator().manual_seed(self.parameters.seed or 0)

    def score(self, logits: Tensor) -> Tensor:
        """Of logits ``[n, classes]``: ``[n]``."""
        score = logits[:, self.class_id]
        return score if self.versus is None else score - logits[:, self.versus]

    def forward(self, images: Tensor | Sequence[Tensor]) -> Tensor:
        """Logits ``[n, classes]`` of normalised images ``[n, C, H, W]``, without gradient, a bounded number at a time."""
        return self.chunked(self.whole, images, WHOLE_ROWS)

    def head(self, cut: LayerSplit, activations: Tensor) -> Tensor:
        """Logits ``[n, classes]`` for activations ``[n, K, h, w]`` at a cut, without gradient."""
        return self.chunked(cut.logits, activations, HEAD_ROWS)

    def whole(self, images: Tensor) -> Tensor:
        """Logits of one batch through the whole network; differentiable."""
        result = self.network.module(images)
        logits: Tensor = result[0] if isinstance(result, (tuple, list)) else result
        return logits

    def gradient(self, images: Tensor) -> Tensor:
        """D score / d images, ``[n, C, H, W]``, a bounded number at a time."""

        def one(chunk: Tensor) -> Tensor:
            leaf = chunk.detach().requires_grad_()
            with torch.enable_grad():
                total = self.score(self.whole(leaf)).sum()
            return torch.autograd.grad(total, leaf)[0]

        return self.chunked(one, images, WHOLE_ROWS)

    def chunked(self, ask: Callable[[Tensor], Tensor], rows: Tensor | Sequence[Tensor], size: int) -> Tensor:
        """`ask` over rows, `size` at a time, the answers put together. `rows` may make its tensors only when it is sliced."""
        answers = []
        total = -(-len(rows) // size)
        for number in range(total):
            self.pause(number, total)
            chunk = rows[number * size : (number + 1) * size]
            with torch.no_grad():
                answers.append(ask(chunk if isinstance(chunk, Tensor) else torch.stack(list(chunk))))
        return torch.cat(answers)

    def pause(self, done: int, total: int) -> None:
        """To be called between passes: lets quicker requests go first, and ends when nobody waits any more.

        Raises:
            DeadlineExceeded: the request was given up.
        """
        if done:
            self.step_aside()
        if self.abandoned.is_set():
            raise DeadlineExceeded("The request was given up before its explanation was finished.")
        if done and done % REPORT_EVERY == 0:
            log.info("progress", method=self.method, passes=done, of=total)

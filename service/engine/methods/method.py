"""What a method is: its name, what it costs, the parameters that it has, and the pure function that computes its maps.

There are two kinds. A `BatchedMethod` needs activations and one gradient, which the batch's one pass of the head gives to
all of its rows. A `QueryMethod` runs the network again for its image and class.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from service.engine.graph.layout import Layout
from service.engine.graph.runner import HEAD_ROWS, ChunkedRunner
from service.engine.graph.split import Split
from service.engine.graph.split_cache import SizedNetwork
from service.engine.types import MethodParameters
from service.errors import MethodNotApplicable, ParameterInvalid
from service.vocabulary import Cost, LaneName

NO_PARAMETERS: Final = MethodParameters()

Cam = Callable[[Tensor, Tensor, MethodParameters], Tensor]


@dataclass(frozen=True, slots=True)
class Target:
    """What is explained: the score logit[class_id], less logit[versus] where there is one."""

    class_id: int
    versus: int | None = None

    def score(self, logits: Tensor) -> Tensor:
        """Of logits ``[n, classes]``: ``[n]``."""
        score = logits[:, self.class_id]
        return score if self.versus is None else score - logits[:, self.versus]


@dataclass(frozen=True, slots=True)
class LayerSplit:
    """The network split at one layer, with what its trunk gave for one image.

    Attributes:
        crossing: the crossing values, each of one image.
        layout: of the layer.
    """

    split: Split
    crossing: tuple[Tensor, ...]
    layout: Layout

    @property
    def activations(self) -> Tensor:
        """Of the layer, detached, float ``[1, K, h, w]`` whatever the network's own layout."""
        return self.layout.to_nchw(self.crossing[self._leaf]).detach()

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """What a `QueryMethod` is asked: one image, one target, and the network that it may run again.

    Attributes:
        network: for images of this size.
        runner: runs it, or parts of it, chunk by chunk.
        image: float ``[1, C, H, W]``, normalised.
        target: what is explained.
        logits: float ``[classes]`` of the image.
        layers: the network split at each layer asked for; none for methods that know no layer.
        parameters: all that the method has.
    """

    network: SizedNetwork
    runner: ChunkedRunner
    image: Tensor
    target: Target
    logits: Tensor
    layers: tuple[LayerSplit, ...]
    parameters: MethodParameters

    @property
    def generator(self) -> torch.Generator:
        """A fresh generator, on the CPU, of the request's seed: the same request gets the same answer."""
        return torch.Generator().manual_seed(self.parameters.seed or 0)

    def head(self, layer: LayerSplit, activations: Tensor) -> Tensor:
        """Logits ``[n, classes]`` for activations ``[n, K, h, w]`` at a layer, without gradient, chunk by chunk."""
        return self.runner.chunked(layer.logits, activations, HEAD_ROWS)


Explain = Callable[[Query], tuple[Tensor, ...]]


def _any_network(_network: SizedNetwork) -> object:
    return None


def _one_pass(_parameters: MethodParameters) -> int:
    return 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One way to explain; either a `BatchedMethod` or a `QueryMethod`.

    Attributes:
        name: as a request calls it.
        family: heading under which `GET /methods` shows it.
        cost: beside a prediction: `head` (passes of the head), `forward` (a few of the whole network), `many forwards`.
        paper: where it comes from.
        summary: one sentence.
        defaults: its parameters; those it does not have are None.
        layered: whether its maps belong to layers.
        lane: the queue that its requests wait in: `fast` where they share a batch, `slow` where one keeps the device for long.
        fits: raises `MethodNotApplicable` for a network that lacks what the method looks at; what it returns is not used.
        passes: how many forward passes of one image the parameters ask for, to be weighed against the deadline.
    """

    name: str
    family: str
    cost: Cost
    paper: str
    summary: str
    defaults: MethodParameters = NO_PARAMETERS
    layered: bool = True
    lane: LaneName = "fast"
    fits: Callable[[SizedNetwork], object] = _any_network
    passes: Callable[[MethodParameters], int] = _one_pass

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """Names of its parameters."""
        return tuple(name for name in MethodParameters.model_fields if getattr(self.defaults, name) is not None)

    def why_not(self, network: SizedNetwork) -> str | None:
        """Why the method does not fit a network; None where it does."""
        try:
            self.fits(network)
        except MethodNotApplicable as error:
            return error.detail
        return None

    def with_defaults(self, asked: MethodParameters) -> MethodParameters:
        """The parameters asked for, the method's defaults for the rest.

        Raises:
            ParameterInvalid: a parameter is asked for that the method does not have.
        """
        given = {name: value for name in MethodParameters.model_fields if (value := getattr(asked, name)) is not None}
        for name in given:
            if name not in self.parameter_names:
                own = ", ".join(self.parameter_names) or "none"
                raise ParameterInvalid(f"{name}: {self.name} has no such parameter; its own: {own}. Leave it out.")
        return self.defaults.model_copy(update=given) if given else self.defaults


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchedMethod(Method):
    """A method that is a function of a layer's activations and one gradient, computed for a whole batch at once.

    Attributes:
        cam: activations and gradients ``[N, K, h, w]`` -> signed maps ``[N, h, w]``.
        uses_gradients: where not, `cam` gets an empty tensor in their place.
    """

    cam: Cam
    uses_gradients: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryMethod(Method):
    """A method that runs the network again, for one image and one class at a time.

    Attributes:
        explain: gives a signed map per layer ``[h, w]``, or one of the input's size ``[H, W]``.
    """

    explain: Explain

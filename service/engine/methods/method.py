"""The description of a method: its name, its cost, its parameters, and the pure function that computes its maps.

There are two kinds. A `BatchedMethod` is a function of activations and one gradient, which one pass of the head computes for
all rows of a batch. A `QueryMethod` runs the network again for its image and class.
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
from service.vocabulary import Cost, LaneName, RawUnit

NO_PARAMETERS: Final = MethodParameters()

Cam = Callable[[Tensor, Tensor, MethodParameters], Tensor]


@dataclass(frozen=True, slots=True)
class Target:
    """The score to explain: logit[class_id], less logit[versus] unless `versus` is None."""

    class_id: int
    versus: int | None = None

    def score(self, logits: Tensor) -> Tensor:
        """The scores ``[n]`` of logits ``[n, classes]``."""
        score = logits[:, self.class_id]
        return score if self.versus is None else score - logits[:, self.versus]


@dataclass(frozen=True, slots=True)
class LayerSplit:
    """The network split at one layer, with the output of its trunk for one image.

    Attributes:
        split: the network, split at the layer.
        crossing: the crossing values, each of one image.
        layout: the layout of the layer's activations.
    """

    split: Split
    crossing: tuple[Tensor, ...]
    layout: Layout

    @property
    def activations(self) -> Tensor:
        """The layer's activations, detached, float ``[1, K, h, w]`` for every layout."""
        return self.layout.to_nchw(self.crossing[self._leaf]).detach()

    def logits(self, activations: Tensor) -> Tensor:
        """Logits ``[n, classes]`` for other activations ``[n, K, h, w]`` in place of the layer's; differentiable in them."""
        rows = torch.zeros(len(activations), dtype=torch.long, device=activations.device)
        values = [crossing.select(value, rows) for crossing, value in zip(self.split.crossings, self.crossing, strict=True)]
        values[self._leaf] = self.layout.from_nchw(activations, values[self._leaf])
        logits: Tensor = self.split.head(*values)[0]
        return logits

    @property
    def _leaf(self) -> int:
        (leaf,) = self.split.leaves
        return leaf


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """The argument of a `QueryMethod`: one image, one target, and the network that the method runs again.

    Attributes:
        network: the network for images of this size.
        runner: runs the network, or parts of it, chunk by chunk.
        image: float ``[1, C, H, W]``, normalised.
        target: the score to explain.
        logits: float ``[classes]`` of the image.
        layers: the network split at each layer of the request; () for methods without layers.
        parameters: all parameters of the method.
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
        """A new generator, on the CPU, with the request's seed, so that equal requests give equal maps."""
        return torch.Generator().manual_seed(self.parameters.seed or 0)

    def head(self, layer: LayerSplit, activations: Tensor) -> Tensor:
        """Logits ``[n, classes]`` for activations ``[n, K, h, w]`` at a layer, without gradient, chunk by chunk."""
        return self.runner.chunked(layer.logits, activations, HEAD_ROWS)


Explain = Callable[[Query], tuple[Tensor, ...]]


def _fits_any_network(_network: SizedNetwork) -> object:
    return None


def _one_pass(_parameters: MethodParameters) -> int:
    return 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One explanation method; either a `BatchedMethod` or a `QueryMethod`.

    Attributes:
        name: its name in requests.
        family: the heading of its entry in `GET /methods`.
        cost: the cost beyond a prediction: `head` (passes of the head), `forward` (a few passes of the whole network), or
            `many forwards`.
        paper: URL of its paper or source.
        summary: one sentence.
        raw_unit: what its maps count before they are scaled.
        defaults: its parameters; those it does not have are None.
        layered: whether its maps belong to layers.
        has_grid: whether its maps are on a grid, of a layer or of patches; else they have a value for each pixel of the input.
        lane: the queue of its requests: `fast` for requests that share a batch, `slow` for those that occupy the device long.
        fits: raises `MethodNotApplicable` for a network to which the method cannot be applied; its result is ignored.
        passes: parameters -> number of forward passes of one image, from which the time to the deadline is estimated.
    """

    name: str
    family: str
    cost: Cost
    paper: str
    summary: str
    raw_unit: RawUnit
    defaults: MethodParameters = NO_PARAMETERS
    layered: bool = True
    has_grid: bool = True
    lane: LaneName = "fast"
    fits: Callable[[SizedNetwork], object] = _fits_any_network
    passes: Callable[[MethodParameters], int] = _one_pass

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """Names of its parameters."""
        return tuple(name for name in MethodParameters.model_fields if getattr(self.defaults, name) is not None)

    def why_not(self, network: SizedNetwork) -> str | None:
        """Why the method cannot be applied to a network; None where it can."""
        try:
            self.fits(network)
        except MethodNotApplicable as error:
            return error.detail
        return None

    def with_defaults(self, overrides: MethodParameters) -> MethodParameters:
        """The method's defaults, with the overrides that are not None.

        Raises:
            ParameterInvalid: the method does not have an overridden parameter.
        """
        update = {name: value for name in MethodParameters.model_fields if (value := getattr(overrides, name)) is not None}
        for name in update:
            if name not in self.parameter_names:
                names = ", ".join(self.parameter_names) or "none"
                raise ParameterInvalid(f"{name}: {self.name} has no such parameter; its own: {names}. Leave it out.")
        return self.defaults.model_copy(update=update) if update else self.defaults


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchedMethod(Method):
    """A method that is a function of a layer's activations and one gradient, computed for a whole batch at once.

    Attributes:
        cam: activations and gradients ``[N, K, h, w]`` -> signed maps ``[N, h, w]``.
        uses_gradients: whether `cam` gets gradients; else it gets an empty tensor in their place.
    """

    cam: Cam
    uses_gradients: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryMethod(Method):
    """A method that runs the network again, for one image and one class at a time.

    Attributes:
        explain: query -> a signed map ``[h, w]`` for each layer, or one map of the input's size ``[H, W]``.
    """

    explain: Explain

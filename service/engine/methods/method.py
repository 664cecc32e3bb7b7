"""What a method is: how it is named, what it costs, which parameters it has, and the pure function that does it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Literal

from torch import Tensor

from service.engine.graph.export import NetworkGraph
from service.engine.methods.probe import Probe
from service.engine.types import MethodParameters
from service.errors import MethodNotApplicable, ParameterInvalid

NO_PARAMETERS = MethodParameters()

Cost = Literal["head", "forward", "many forwards"]
Cam = Callable[[Tensor, Tensor, MethodParameters], Tensor]
Explore = Callable[[Probe], "tuple[Tensor, ...]"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One way to explain. Exactly one of `cam` and `explore` does it.

    Attributes:
        name: as a request calls it.
        family: heading under which `GET /methods` shows it.
        cost: beside a prediction: `head` (passes of the head), `forward` (a few of the whole network), `many forwards`.
        paper: where it comes from.
        summary: one sentence.
        defaults: its parameters; those it does not have are None.
        cam: activations and gradients ``[N, K, h, w]`` -> signed maps ``[N, h, w]``. Shares its batch with other requests.
        gradient: whether `cam` looks at the gradients; where not they are an empty tensor.
        explore: one image and one class -> a signed map per layer ``[h, w]``, or one of the input's size ``[H, W]``.
        layered: whether the maps belong to layers.
        fits: raises `MethodNotApplicable` for a network that lacks what the method looks at; what it returns is not used.
        passes: how many forward passes of one image the parameters ask for, to be weighed against the deadline.
    """

    name: str
    family: str
    cost: Cost
    paper: str
    summary: str
    defaults: MethodParameters = NO_PARAMETERS
    cam: Cam | None = None
    gradient: bool = True
    explore: Explore | None = None
    layered: bool = True
    fits: Callable[[NetworkGraph], object] = lambda _: None
    passes: Callable[[MethodParameters], int] = lambda _: 1

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of its parameters."""
        return tuple(field.name for field in fields(MethodParameters) if getattr(self.defaults, field.name) is not None)

    def misfit(self, network: NetworkGraph) -> str | None:
        """Why it does not fit a network; None where it does."""
        try:
            self.fits(network)
        except MethodNotApplicable as error:
            return error.detail
        return None

    def resolve_parameters(self, asked: MethodParameters) -> MethodParameters:
        """The parameters asked for, the method's defaults for the rest.

        Raises:
            ParameterInvalid: a parameter is asked for that the method does not have.
        """
        given = {
            field.name: getattr(asked, field.name)
            for field in fields(MethodParameters)
            if getattr(asked, field.name) is not None
        }
        for name in given:
            if name not in self.parameters:
                own = ", ".join(self.parameters) or "none"
                raise ParameterInvalid(f"{name}: {self.name} has no such parameter; its own: {own}. Leave it out.")
        return replace(self.defaults, **given)

"""The interface of every source: a network and its preprocessing. This module imports no library but torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, fx, nn

from service.engine.cards.card import Card
from service.engine.cards.labels import LabelSet
from service.vocabulary import Activation, Preprocessing

Logits = Callable[[Any], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceNetwork:
    """A network as its source builds it, on the CPU, and what the source states about it.

    Attributes:
        activation: the function from logits to probabilities that the network was trained with; None where the source does not
            know it.
        labels: the classes of the weights; None where the source does not tell them.
        revision: the commit of the repository that the weights come from.
        weights_name: the source's own name of the weights, where the card says `default`.
    """

    module: nn.Module
    preprocessing: Preprocessing
    activation: Activation | None = None
    labels: LabelSet | None = None
    revision: str | None = None
    weights_name: str | None = None


class Source(Protocol):
    """One library of networks: a module of this package with these functions.

    Each function raises `ConfigurationError` where the source lacks a network or weights that the card names, and lets the
    library's own `OSError` and `RuntimeError` through where a hub cannot be reached.
    """

    def from_architecture(self, card: Card) -> SourceNetwork:
        """The network with its initial weights, random numbers from torch's global generator; nothing is fetched."""

    def from_file(self, card: Card, path: Path) -> SourceNetwork:
        """The network with the weights of a file whose digest has been checked."""

    def from_hub(self, card: Card) -> SourceNetwork:
        """The network with the weights that the card names, which the library fetches or reads from its cache."""


def returning(module: nn.Module, logits: Logits) -> nn.Module:
    """The same module, with `logits` applied to its output; a wrapper module would change the path of every layer."""
    if isinstance(module, fx.GraphModule):  # a saved program: torch.export ignores its hooks, so its graph is changed
        output = module.graph.output_node()
        (result,) = output.all_input_nodes
        with module.graph.inserting_before(output):
            output.replace_input_with(result, module.graph.call_function(logits, (result,)))
        module.recompile()
    else:
        module.register_forward_hook(lambda _module, _inputs, output: logits(output))
    return module

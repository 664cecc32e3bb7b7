"""What every source of networks gives: a network, and how its images are prepared. Knows no library but torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, fx, nn

from service.engine.cards.card import Card
from service.vocabulary import Preprocessing

Logits = Callable[[Any], Tensor]


@dataclass(frozen=True, slots=True)
class SourceNetwork:
    """A network as its source gives it, on the CPU, and that source's own preprocessing."""

    module: nn.Module
    preprocessing: Preprocessing


class Source(Protocol):
    """One library of networks: a module of this package with these functions.

    Each raises `ConfigurationError` where the card asks for what is not there, and lets the library's own `OSError` and
    `RuntimeError` through where a hub cannot be reached.
    """

    def from_architecture(self, card: Card) -> SourceNetwork:
        """The network with the weights it is born with, drawn from torch's global generator; nothing is fetched."""

    def from_file(self, card: Card, path: Path) -> SourceNetwork:
        """The network with the weights of a file whose digest has been checked."""

    def from_hub(self, card: Card) -> SourceNetwork:
        """The network with the weights that the card names, fetched by the library or taken from its cache."""


def returning(module: nn.Module, logits: Logits) -> nn.Module:
    """The same module, whose output goes through `logits` first: a wrapper around it would change every layer's path."""
    if isinstance(module, fx.GraphModule):  # a saved program, whose hooks torch.export does not see: it reads the graph
        output = module.graph.output_node()
        (result,) = output.all_input_nodes
        with module.graph.inserting_before(output):
            output.replace_input_with(result, module.graph.call_function(logits, (result,)))
        module.recompile()
    else:
        module.register_forward_hook(lambda _module, _inputs, output: logits(output))
    return module

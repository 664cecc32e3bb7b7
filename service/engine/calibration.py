"""What is measured on photographs when a network is loaded: the layer to explain at, and the runtime of the split's trunk.

Both choices are kept on disk, so that the next start measures nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from service.engine.disk_cache import Entries
from service.engine.graph.candidates import candidates
from service.engine.graph.export import NetworkGraph
from service.engine.graph.split import Split, split
from service.engine.layer_choice import (
    LayerChoice,
    check_card_layers,
    choose_layer,
    read_layer_choice,
    write_layer_choice,
)
from service.engine.runtimes import RuntimeOptions, choose
from service.engine.runtimes.choice import RuntimeChoice, choice_entries, read_trunk, write_choice
from service.engine.runtimes.torch import TorchTrunk, Trunk
from service.engine.types import EngineResult
from service.errors import ConfigurationError, InferenceNonFinite

Images = Sequence[NDArray[np.uint8]]
# Explains the best class of each image, uint8 [h, w, 3] RGB, at the layers of a split.
ExplainImages = Callable[[Split, Images], list[EngineResult]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """The choices for one network.

    Attributes:
        layer_choice: the layers of requests that name none, and why.
        runtime_choice: engine and precision of the trunk, and why.
        torch_split: the network split at these layers, with torch's trunk in float32.
        split: the same with the trunk that serves it.
    """

    layer_choice: LayerChoice
    runtime_choice: RuntimeChoice
    torch_split: Split
    split: Split


def calibrate(
    *,
    name: str,
    graph: NetworkGraph,
    layers: Sequence[str],
    options: RuntimeOptions,
    images: Images,
    normalized: Tensor,
    explain: ExplainImages,
    entries: Entries,
) -> Calibration:
    """Chooses layer and runtime.

    Args:
        name: the model's name, for messages.
        graph: the network at the card's image size.
        layers: module paths that the card names; () leaves the choice to the network.
        options: the configured engine and precision.
        images: photographs.
        normalized: the same for the network, float32 ``[n, C, h, w]``, on the device.
        explain: runs the network.
        entries: what is kept of the network on disk.

    Raises:
        ConfigurationError: the network has no layer to explain at, or not those that the card names, or the options cannot be
            fulfilled.
    """
    alternatives = candidates(graph)
    if not alternatives:
        raise ConfigurationError(f"card {name}: the network has no layer with a grid of more than one cell to explain")
    kept = read_layer_choice(entries, layers)
    layer_choice = kept
    if layer_choice is None and not layers:
        layer_choice = choose_layer(name, alternatives, lambda paths: _explain_each(explain, split(graph, paths), images))
    torch_split = split(graph, layer_choice.chosen if layer_choice is not None else layers)
    runtime_choice, trunk, results = _choose_trunk(name, torch_split, options, images, normalized, explain, entries)
    if layer_choice is None:
        each = results or _explain_each(explain, torch_split, images)
        layer_choice = check_card_layers(name, layers, alternatives, each)
    if kept is None:
        write_layer_choice(entries, layers, layer_choice)
    return Calibration(
        layer_choice=layer_choice,
        runtime_choice=runtime_choice,
        torch_split=torch_split,
        split=replace(torch_split, trunk=trunk),
    )


def _choose_trunk(
    name: str,
    torch_split: Split,
    options: RuntimeOptions,
    images: Images,
    normalized: Tensor,
    explain: ExplainImages,
    entries: Entries,
) -> tuple[RuntimeChoice, Trunk, Sequence[EngineResult]]:
    """The trunk that serves the split, why, and torch's explanations of photographs in float32, () where it needed none."""
    torch_trunk = torch_split.trunk
    assert isinstance(torch_trunk, TorchTrunk)
    if options.exact:
        return RuntimeChoice(engine="torch", precision="fp32"), torch_trunk, ()
    entries = choice_entries(entries, torch_trunk, torch_split.layers, options)
    kept = read_trunk(entries, torch_trunk, options.threads, options.calls)
    if kept is not None:
        choice, trunk = kept
        choice.report(name, cached=True)
        return choice, trunk, ()
    exact: list[EngineResult] = []

    def explain_with(candidate: Trunk, part: slice) -> list[EngineResult]:
        results = explain(replace(torch_split, trunk=candidate), images[part])
        if candidate is torch_trunk:
            exact.extend(results)
        return results

    choice, trunk = choose(name, torch_trunk, normalized, options, explain_with)
    choice.report(name)
    write_choice(entries, choice, trunk)
    return choice, trunk, exact


def _explain_each(explain: ExplainImages, at: Split, images: Images) -> Iterator[EngineResult]:
    """Explains one image after the other, only when its result is asked for; none for an image whose output is not finite."""
    for image in images:
        with suppress(InferenceNonFinite):
            yield from explain(at, [image])

"""One loaded network: takes a batch of mixed work, gives logits and raw maps. Thread-safe, for it keeps no state per call.

The whole batch shares one trunk pass per input size; classes share it too, each as a row of the head. Colours, scales and
sizes are none of its business.
"""

from __future__ import annotations

import difflib
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.engine.batch import Batch, explain_batch, is_batched
from service.engine.cards.card import Card
from service.engine.evaluation.faithfulness import evaluate
from service.engine.graph.layout import LayoutOverride
from service.engine.graph.split import Split, split
from service.engine.graph.split_cache import SplitCache
from service.engine.layer_statistics import inspect, stages
from service.engine.methods import METHODS
from service.engine.methods.method import Method
from service.engine.methods.probe import Probe
from service.engine.runtimes import TORCH_FP32, RuntimeOptions, choose
from service.engine.runtimes.precision import photographs
from service.engine.runtimes.torch import TorchTrunk, Trunk
from service.engine.sources import LoadedNetwork, load
from service.engine.types import (
    EngineRequest,
    EngineResult,
    Evaluation,
    EvaluationRequest,
    LayerInfo,
    LayerStatisticsRequest,
    LayerStatisticsResult,
    MethodParameters,
)
from service.errors import ConfigurationError, LayerNotFound, MethodNotApplicable

RATE_SMOOTHING = 0.1  # weight of the newest batch in the mean of seconds per image
LONGEST_WAIT_S = 0.5  # of a slow method for quicker ones: it must get on in the end


class Network:
    """A network on its device, cut at its card's layers, ready to run.

    Attributes:
        engine, precision: of the card's own cut at its own image size; other answers are computed by torch in fp32.
        device, digest: what every answer says.
        preprocessing: how an image becomes its input.
        seconds_per_image: of recent batches, to tell how long methods of many passes will take; 0 before it is warm.
        layers: where it can be explained, by module path, at the card's input size.
        methods: names of those that fit it.
        classes: number of logits.
    """

    seconds_per_image = 0.0

    def __init__(
        self,
        name: str,
        loaded: LoadedNetwork,
        layers: Sequence[str],
        device: torch.device,
        stated: LayoutOverride | None = None,
        plan: RuntimeOptions = TORCH_FP32,
    ) -> None:
        """Exports and cuts the network.

        Args:
            name: the model's.
            loaded: its module, and how images become its input.
            layers: to be cut at; the network's own choice where there are none.
            device: to run on.
            stated: layout of `layers`, where it is not to be read off the network.
            plan: engine and precision of the card's own cut.

        Raises:
            ConfigurationError: it cannot be exported, the card's layer does not exist or has no grid, or the plan cannot be
                fulfilled.
        """
        self.name = name
        self.device = str(device)
        self.digest = loaded.digest
        self.preprocessing = loaded.preprocessing
        self._device = device
        self._module = loaded.module.to(device)
        self._channels = len(loaded.preprocessing.mean)
        self._luminance = torch.tensor((0.299, 0.587, 0.114), device=device).view(1, -1, 1, 1)
        self._mean = torch.tensor(loaded.preprocessing.mean, device=device).view(1, -1, 1, 1) * 255
        self._std = torch.tensor(loaded.preprocessing.std, device=device).view(1, -1, 1, 1) * 255
        self._size = (loaded.preprocessing.height, loaded.preprocessing.width)
        self._lane = threading.Condition()
        self._slow = threading.Lock()
        self._hurried = 0
        stated_layers = (tuple(layers), stated) if stated is not None else None
        self._cuts = SplitCache(name, self._module, self._channels, self._size, stated_layers)
        graph = self._cuts.graph
        self.classes = int(graph.logits.meta["val"].shape[1])
        self.layers: dict[str, LayerInfo] = graph.layers()
        own = graph.default_layer()
        self.default_layers = tuple(layers) or ((own,) if own else ())
        if not self.default_layers:
            raise ConfigurationError(f"card {name}: the network has no layer with a grid of more than one cell to explain")
        try:
            self.check_layers(self.default_layers)
        except LayerNotFound as error:
            raise ConfigurationError(f"card {name}: explain.layer: {error.detail}") from error
        self._exact = split(graph, self.default_layers)
        self._default = self._calibrated(plan)
        self.engine, self.precision = self._default.trunk.engine, self._default.trunk.precision
        self._unfit = {name: reason for name, method in METHODS.items() if (reason := method.misfit(graph)) is not None}
        self.methods = tuple(name for name in METHODS if name not in self._unfit)

    @classmethod
    def load(
        cls, card: Card, device: torch.device, plan: RuntimeOptions = TORCH_FP32, *, random_weights: bool = False
    ) -> Network:
        """Builds, fills, exports and cuts the network that a card describes; what it says of its runtime overrides the plan.

        Raises:
            ConfigurationError: the card cannot be fulfilled; the message names card, field and what would be right.
        """
        own = card.explain
        stated = LayoutOverride(own.layout, own.prefix_tokens or 0) if own.layout is not None else None
        wanted = card.runtime
        plan = replace(plan, engine=wanted.engine or plan.engine, precision=wanted.precision or plan.precision)
        return cls(card.name, load(card, random_weights=random_weights), own.layer, device, stated, plan)

    def check_layers(self, layers: Sequence[str]) -> None:
        """Checks that the network can be explained at each of these module paths.

        Raises:
            LayerNotFound: one of them does not exist or has no grid; the message lists layers that fit.
        """
        for layer in layers:
            if layer not in self.layers:
                near = difflib.get_close_matches(layer, self.layers, n=3, cutoff=0.5)
                fit = list(dict.fromkeys([*near, *list(self.layers)[::-1]]))[:24]
                raise LayerNotFound(
                    f"layer: no layer of this model with a grid to explain. Layers that fit, among others: {', '.join(fit)}; "
                    f"GET /models/{self.name} lists all {len(self.layers)}."
                )

    def method(self, name: str) -> Method:
        """The method of that name.

        Raises:
            MethodNotApplicable: there is none, or it does not fit this network; the message lists those that do.
        """
        fitting = f"Methods that fit this model: {', '.join(self.methods)}."
        if name not in METHODS:
            raise MethodNotApplicable(f"method: no such method. {fitting}")
        if name in self._unfit:
            raise MethodNotApplicable(f"{self._unfit[name]} {fitting}")
        return METHODS[name]

    def run(self, works: Sequence[EngineRequest]) -> list[EngineResult | Exception]:
        """Runs a batch: as many answers as works, in order; an item whose numbers are not finite answers with its error."""
        with self._lane:
            self._hurried += 1
        started = time.perf_counter()
        try:
            return self._run(works, lambda: None)
        finally:
            if all(METHODS[work.method].cam is not None for work in works):
                self._measure((time.perf_counter() - started) / len(works))
            with self._lane:
                self._hurried -= 1
                self._lane.notify_all()

    def run_slowly(self, works: Sequence[EngineRequest]) -> list[EngineResult | Exception]:
        """As `run`, for methods of many forward passes: between passes it waits while `run` has something to do."""
        with self._slow:
            return self._run(works, self._step_aside)

    def evaluate(self, asked: EvaluationRequest) -> tuple[Evaluation, ...]:
        """Measures maps, in many forward passes; waits between them as `run_slowly` does.

        Raises:
            DeadlineExceeded: nobody waits any more.
        """
        images = self._normalised(np.stack([asked.pixels]))
        graph = self._cuts.at(asked.pixels.shape[:2])
        with self._slow:
            probe = Probe(
                network=graph,
                image=images,
                class_id=0,
                versus=None,
                logits=images.new_empty(0),
                cuts=(),
                parameters=MethodParameters(),
                method="evaluate",
                abandoned=asked.abandoned,
                step_aside=self._step_aside,
            )
            return evaluate(probe, asked)

    def inspect(self, asked: LayerStatisticsRequest) -> LayerStatisticsResult:
        """Looks into layers.

        Raises:
            InferenceNonFinite: the network's numbers are not finite.
        """
        parts = self._split(asked.pixels.shape[:2], asked.layers or stages(self._cuts.graph))
        with self._slow:
            return inspect(self._normalised(np.stack([asked.pixels])), parts, asked)

    def _step_aside(self) -> None:
        with self._lane:
            self._lane.wait_for(lambda: not self._hurried, timeout=LONGEST_WAIT_S)

    def _run(self, works: Sequence[EngineRequest], step_aside: Callable[[], None]) -> list[EngineResult | Exception]:
        answers: dict[int, EngineResult | Exception] = {}
        groups: dict[tuple[tuple[int, int], bool], list[int]] = {}
        for index, work in enumerate(works):
            size = (work.pixels.shape[0], work.pixels.shape[1])
            groups.setdefault((size, self._is_usual(size, work)), []).append(index)
        for (size, usual), indices in groups.items():
            outcomes = self._run_group(size, [works[i] for i in indices], step_aside, usual=usual)
            answers.update(zip(indices, outcomes, strict=True))
        return [answers[index] for index in range(len(works))]

    def _is_usual(self, size: tuple[int, int], work: EngineRequest) -> bool:
        """Whether the card's own cut answers it, whose trunk alone is compiled. What asks the network again needs it exact."""
        own = size == self._size and work.layers in {(), self.default_layers}
        return own and (work.rows == 0 or is_batched(work))

    def warm(self, batch_sizes: Sequence[int]) -> None:
        """Runs the whole way twice per batch size, so that the first request meets nothing cold."""
        blank = np.zeros((*self._size, 3), np.uint8)
        for size in batch_sizes:
            works = [EngineRequest(pixels=blank, best=1)] * size
            self.run(works)
            self.seconds_per_image = 0.0  # the first run of a size is no measure
            self.run(works)

    def _measure(self, seconds: float) -> None:
        """The mean of recent batches: a start on a busy machine must not count for ever."""
        known = self.seconds_per_image
        self.seconds_per_image = known + RATE_SMOOTHING * (seconds - known) if known else seconds

    def _run_group(
        self, size: tuple[int, int], works: Sequence[EngineRequest], step_aside: Callable[[], None], *, usual: bool
    ) -> list[EngineResult | Exception]:
        works = [work if work.layers else replace(work, layers=self.default_layers) for work in works]
        layers = tuple(dict.fromkeys(layer for work in works for layer in work.layers))
        return self._explain(self._default if usual else self._split(size, layers), works, step_aside)

    def _explain(
        self, parts: Split, works: Sequence[EngineRequest], step_aside: Callable[[], None]
    ) -> list[EngineResult | Exception]:
        """A batch of images of one size through one cut, which has every layer that they name."""
        images = self._normalised(np.stack([work.pixels for work in works]))
        size = works[0].pixels.shape[:2]
        with torch.no_grad():
            crossing = tuple(parts.trunk(images))
        return explain_batch(
            Batch(
                network=self._cuts.at(size),
                images=images,
                parts=parts,
                crossing=crossing,
                works=works,
                split_at=lambda layers: self._split(size, layers),
                step_aside=step_aside,
            )
        )

    def _calibrated(self, plan: RuntimeOptions) -> Split:
        """The card's own cut with the trunk to serve with."""
        if plan.exact:
            return self._exact
        works = [EngineRequest(pixels=image, best=1, layers=self.default_layers) for image in photographs(*self._size)]

        def answers(trunk: Trunk) -> list[EngineResult]:
            found = self._explain(replace(self._exact, trunk=trunk), works, lambda: None)
            broken = next((one for one in found if isinstance(one, Exception)), None)
            if broken is not None:
                raise broken
            return [one for one in found if isinstance(one, EngineResult)]

        assert isinstance(self._exact.trunk, TorchTrunk)
        images = self._normalised(np.stack([work.pixels for work in works]))
        return replace(self._exact, trunk=choose(self.name, self._exact.trunk, images, plan, answers))

    def _normalised(self, pixels: NDArray[np.uint8]) -> Tensor:
        """uint8 RGB ``[N, h, w, 3]`` -> float32 ``[N, C, h, w]`` with the card's mean and standard deviation, on the device.

        A network of one channel sees the luminance (ITU-R BT.601, as Pillow's "L").
        """
        images = torch.from_numpy(pixels).to(self._device).permute(0, 3, 1, 2)
        floats = images.to(torch.float32, memory_format=torch.contiguous_format)
        if self._channels == 1:
            floats = (floats * self._luminance).sum(dim=1, keepdim=True)
        return floats.sub_(self._mean).div_(self._std)

    def _split(self, size: tuple[int, int], layers: tuple[str, ...]) -> Split:
        """The network cut at these layers for this image size, in torch; the card's own without waiting."""
        return self._exact if size == self._size and layers == self.default_layers else self._cuts.split(size, layers)

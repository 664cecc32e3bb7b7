"""One loaded network, which maps a batch of requests to logits and raw maps. It is thread-safe: it keeps no state per call.

The whole batch shares one trunk pass per input size; classes share it too, each as a row of the head. The network knows
nothing of queues, colours, scales or the size of rendered images.
"""

from __future__ import annotations

import difflib
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.engine.batch import Batch, EngineRequest, explain_batch
from service.engine.calibration import calibrate
from service.engine.cards.card import Card
from service.engine.disk_cache import NO_ENTRIES, DiskCache, Entries
from service.engine.evaluation.faithfulness import evaluate
from service.engine.evaluation.sanity import shuffled
from service.engine.graph.layout import LayoutOverride
from service.engine.graph.runner import Checkpoint, ChunkedRunner, no_checkpoint
from service.engine.graph.split import Split
from service.engine.graph.split_cache import SizedNetwork, SplitCache
from service.engine.layer_statistics import default_layers, layer_statistics
from service.engine.methods import METHODS
from service.engine.methods.augmentation import augmented
from service.engine.methods.method import NO_PARAMETERS, BatchedMethod, Method
from service.engine.runtimes import TORCH_FP32, RuntimeOptions
from service.engine.runtimes.precision import photographs
from service.engine.runtimes.torch import TorchTrunk
from service.engine.sources import LoadedNetwork, load
from service.engine.sources.identity import network_identity
from service.engine.types import (
    EngineResult,
    Evaluation,
    EvaluationRequest,
    LayerInfo,
    LayerStatisticsRequest,
    LayerStatisticsResult,
    MethodParameters,
)
from service.errors import ConfigurationError, LayerNotFound, MethodNotApplicable

WARM_S: Final = 1.0  # of the first batch of a size, for a second one to follow


class Network:
    """A network on its device, split at its card's layers, ready to run.

    Attributes:
        engine, precision: those of the card's split at the card's image size; torch computes all other results, in fp32.
        device, digest: the device and the digest of the weights, which every response names.
        labels, revision, weights_name: what the source states about the weights, see `LoadedNetwork`.
        preprocessing: the way from an image to the network's input.
        activation: the function from logits to probabilities.
        layers: the layers at which the network can be explained, by module path, at the card's input size.
        default_layers: the layers of requests that name none.
        layer_choice: why these, and what else could be named.
        runtime_choice: why this engine and precision.
        methods: names of the methods that fit the network.
        inapplicable: the other methods -> why they do not fit.
        classes: number of logits.
    """

    def __init__(
        self,
        name: str,
        loaded: LoadedNetwork,
        layers: Sequence[str],
        device: torch.device,
        override: LayoutOverride | None = None,
        options: RuntimeOptions = TORCH_FP32,
        entries: Entries = NO_ENTRIES,
    ) -> None:
        """Exports and splits the network.

        Args:
            name: the model's name.
            loaded: its module and its preprocessing.
            layers: module paths to split the network at; () for the network's default layer.
            device: the device to run on.
            override: layout of `layers`, in place of the layout that the graph tells.
            options: engine and precision of the card's split.
            entries: what is kept of the network on disk.

        Raises:
            ConfigurationError: the network cannot be exported, the card's layer does not exist or has no grid, or the options
                cannot be fulfilled.
        """
        self.name = name
        self.device = str(device)
        self.digest = loaded.digest
        self.labels = loaded.labels
        self.revision = loaded.revision
        self.weights_name = loaded.weights_name
        self.preprocessing = loaded.preprocessing
        self.activation = loaded.activation
        self._device = device
        self._module = loaded.module.to(device)
        self._channels = len(loaded.preprocessing.mean)
        self._luminance = torch.tensor((0.299, 0.587, 0.114), device=device).view(1, -1, 1, 1)
        self._mean = torch.tensor(loaded.preprocessing.mean, device=device).view(1, -1, 1, 1) * 255
        self._std = torch.tensor(loaded.preprocessing.std, device=device).view(1, -1, 1, 1) * 255
        self._size = (loaded.preprocessing.height, loaded.preprocessing.width)
        overrides = dict.fromkeys(layers, override) if override is not None else {}
        self._splits = SplitCache(name, self._module, self._channels, self._size, overrides, entries)
        graph = self._splits.graph
        self.classes = int(graph.logits.meta["val"].shape[1])
        self.layers: dict[str, LayerInfo] = graph.layers()
        try:
            self.check_layers(layers)
        except LayerNotFound as error:
            raise ConfigurationError(f"card {name}: explain.layer: {error.detail}") from error
        calibration = calibrate(
            name=name,
            graph=graph,
            layers=layers,
            options=options,
            images=(images := photographs(*self._size)),
            normalized=self._normalize(np.stack(images)),
            explain=self._explain_photographs,
            entries=entries.extended(size=self._size, normalization=[self.preprocessing.mean, self.preprocessing.std]),
        )
        self.layer_choice, self.runtime_choice = calibration.layer_choice, calibration.runtime_choice
        self.default_layers = self.layer_choice.chosen
        self._torch_split, self._default_split = calibration.torch_split, calibration.split
        self.engine, self.precision = self._default_split.trunk.engine, self._default_split.trunk.precision
        network = SizedNetwork(self._splits, self._size)
        self.inapplicable = {name: why for name, method in METHODS.items() if (why := method.why_not(network)) is not None}
        self.methods = tuple(name for name in METHODS if name not in self.inapplicable)

    @classmethod
    def load(
        cls,
        card: Card,
        device: torch.device,
        options: RuntimeOptions = TORCH_FP32,
        *,
        random_weights: bool = False,
        cache: DiskCache | None = None,
    ) -> Network:
        """Builds a card's network, loads its weights, exports and splits it; the card's `[runtime]` overrides the options.

        What an earlier start has exported and chosen is read from the cache.

        Raises:
            ConfigurationError: the card cannot be fulfilled; the message names the card, the field and the remedy.
        """
        explain, runtime = card.explain, card.runtime
        override = LayoutOverride(explain.layout, explain.prefix_tokens or 0) if explain.layout is not None else None
        options = replace(options, engine=runtime.engine or options.engine, precision=runtime.precision or options.precision)
        loaded = load(card, random_weights=random_weights)
        entries = NO_ENTRIES
        if cache is not None:
            entries = Entries(cache, network_identity(card, loaded, device))
        return cls(card.name, loaded, explain.layer, device, override, options, entries)

    @property
    def parameter_bytes(self) -> int:
        """Memory of parameters and buffers, in float32; another runtime may hold a copy of the trunk's."""
        return sum(tensor.nbytes for tensor in (*self._module.parameters(), *self._module.buffers()))

    def check_layers(self, layers: Sequence[str]) -> None:
        """Checks that the network can be explained at each of these module paths.

        Raises:
            LayerNotFound: one of them does not exist or has no grid; the message lists layers that fit.
        """
        for layer in layers:
            if layer not in self.layers:
                similar = difflib.get_close_matches(layer, self.layers, n=3, cutoff=0.5)
                suggestions = list(dict.fromkeys([*similar, *list(self.layers)[::-1]]))[:24]
                raise LayerNotFound(
                    "layer: no layer of this model with a grid to explain. Layers that fit, among others: "
                    f"{', '.join(suggestions)}; GET /models/{self.name} lists all {len(self.layers)}."
                )

    def resolve_method(self, name: str, overrides: MethodParameters = NO_PARAMETERS) -> tuple[Method, MethodParameters]:
        """The method of a name, with all of its parameters: those of the request, and the method's defaults.

        With `aug_smooth` a `BatchedMethod` becomes a `QueryMethod` that runs the network on augmented views.

        Raises:
            MethodNotApplicable: no method has that name, or it does not fit this network; the message lists methods that fit.
            ParameterInvalid: the request sets a parameter that the method does not have.
        """
        fitting = f"Methods that fit this model: {', '.join(self.methods)}."
        if name not in METHODS:
            raise MethodNotApplicable(f"method: no such method. {fitting}")
        if name in self.inapplicable:
            raise MethodNotApplicable(f"{self.inapplicable[name]} {fitting}")
        method = METHODS[name]
        parameters = method.with_defaults(overrides)
        if isinstance(method, BatchedMethod) and parameters.aug_smooth:
            return augmented(method), parameters
        return method, parameters

    def run(
        self, requests: Sequence[EngineRequest], checkpoints: Sequence[Checkpoint] | None = None
    ) -> list[EngineResult | Exception]:
        """Runs a batch.

        Args:
            requests: one per image.
            checkpoints: for each request the function that a method of many passes calls before each of its chunks; it may
                wait or raise.

        Returns:
            As many results as requests, in order; in place of the result of a request that failed, its error.
        """
        checkpoints = checkpoints or [no_checkpoint] * len(requests)
        groups: dict[tuple[tuple[int, int], bool], list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault((request.size, self._takes_default_split(request)), []).append(index)
        results: dict[int, EngineResult | Exception] = {}
        for (size, takes_default_split), indices in groups.items():
            group = [self._with_layers(requests[index]) for index in indices]
            layers = tuple(dict.fromkeys(layer for request in group for layer in request.layers))
            split = self._default_split if takes_default_split else self._split(size, layers)
            results.update(zip(indices, self._explain(split, group, [checkpoints[index] for index in indices]), strict=True))
        return [results[index] for index in range(len(requests))]

    def evaluate(self, request: EvaluationRequest, checkpoint: Checkpoint = no_checkpoint) -> tuple[Evaluation, ...]:
        """Measures the faithfulness of maps in many forward passes, and calls the checkpoint before each chunk of them.

        Raises:
            DeadlineExceeded: raised by the checkpoint.
        """
        graph = self._splits.graph_at((request.pixels.shape[0], request.pixels.shape[1]))
        runner = ChunkedRunner(graph, checkpoint, "evaluate")
        return evaluate(runner, self._normalize(np.stack([request.pixels])), request)

    def layer_statistics(
        self, request: LayerStatisticsRequest, checkpoint: Checkpoint = no_checkpoint
    ) -> LayerStatisticsResult:
        """Computes statistics of layers in one forward and one backward pass, and calls the checkpoint before them.

        Raises:
            DeadlineExceeded: raised by the checkpoint.
            InferenceNonFinite: the network's output, activations or gradients are not finite.
        """
        checkpoint()
        size = (request.pixels.shape[0], request.pixels.shape[1])
        split = self._split(size, request.layers or default_layers(self._splits.graph))
        checkpoint()
        return layer_statistics(self._normalize(np.stack([request.pixels])), split, request)

    @contextmanager
    def shuffled_head(self, seed: int = 0) -> Iterator[None]:
        """The network with the weights behind the card's layers in random order, until the context ends.

        For the sanity check of methods, see `evaluation.sanity`; nobody else may use the network meanwhile.
        """
        head, trunk = self._torch_split.head, self._torch_split.trunk
        assert isinstance(trunk, TorchTrunk)
        of_trunk = {node.target for node in trunk.module.graph.find_nodes(op="get_attr")}
        names = dict.fromkeys(node.target for node in head.graph.find_nodes(op="get_attr"))
        parameters = dict(head.named_parameters())
        with shuffled([parameters[name] for name in names if name in parameters and name not in of_trunk], seed):
            yield

    def warm(self, batch_sizes: Sequence[int]) -> None:
        """Explains blank batches of each size, so that kernels and buffers exist before the first request.

        The second batch of a size is slower than later ones too; where the first takes longer than `WARM_S`, it is left out.
        """
        blank = np.zeros((*self._size, 3), np.uint8)
        for size in batch_sizes:
            start = time.perf_counter()
            self.run([EngineRequest(pixels=blank, best=1)] * size)
            if time.perf_counter() - start < WARM_S:
                self.run([EngineRequest(pixels=blank, best=1)] * size)

    def _takes_default_split(self, request: EngineRequest) -> bool:
        """Whether the card's split computes the result of a request; only its trunk may be run by another engine than torch.

        A `QueryMethod` runs the network again in torch, in float32.
        """
        is_default = request.size == self._size and request.layers in {(), self.default_layers}
        return is_default and (request.rows == 0 or isinstance(request.method, BatchedMethod))

    def _with_layers(self, request: EngineRequest) -> EngineRequest:
        return request if request.layers else replace(request, layers=self.default_layers)

    def _explain(
        self, split: Split, requests: Sequence[EngineRequest], checkpoints: Sequence[Checkpoint]
    ) -> list[EngineResult | Exception]:
        """Explains a batch of images of one size with one split, which has every layer that the requests name."""
        images = self._normalize(np.stack([request.pixels for request in requests]))
        with torch.no_grad():
            crossing = tuple(split.trunk(images))
        return explain_batch(
            Batch(
                network=SizedNetwork(self._splits, requests[0].size),
                images=images,
                split=split,
                crossing=crossing,
                requests=requests,
                checkpoints=checkpoints,
            )
        )

    def _explain_photographs(self, split: Split, images: Sequence[NDArray[np.uint8]]) -> list[EngineResult]:
        """Explains the best class of each image, at the layers of a split.

        Raises:
            InferenceNonFinite: the network's output for an image is not finite.
        """
        requests = [EngineRequest(pixels=image, best=1, layers=split.layers) for image in images]
        results = self._explain(split, requests, [no_checkpoint] * len(requests))
        for result in results:
            if isinstance(result, Exception):
                raise result
        return [result for result in results if isinstance(result, EngineResult)]

    def _normalize(self, pixels: NDArray[np.uint8]) -> Tensor:
        """uint8 RGB ``[N, h, w, 3]`` -> float32 ``[N, C, h, w]`` with the card's mean and standard deviation, on the device.

        The input of a network of one channel is the luminance (ITU-R BT.601, as in Pillow's mode "L").
        """
        images = torch.from_numpy(pixels).to(self._device).permute(0, 3, 1, 2)
        floats = images.to(torch.float32, memory_format=torch.contiguous_format)
        if self._channels == 1:
            floats = (floats * self._luminance).sum(dim=1, keepdim=True)
        return floats.sub_(self._mean).div_(self._std)

    def _split(self, size: tuple[int, int], layers: tuple[str, ...]) -> Split:
        """The network split at these layers for this image size, in torch; the card's split takes no lock."""
        if size == self._size and layers == self.default_layers:
            return self._torch_split
        return self._splits.split_at(size, layers)

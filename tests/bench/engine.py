"""P1, P2, P3, P9, P11: the engine alone, in this process: what an explanation costs beside a prediction, and beside others."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from service.engine.batch import EngineRequest
from service.engine.device import prepare_device
from service.engine.methods import METHODS
from service.engine.network import Network
from service.engine.runtimes import RuntimeOptions
from service.engine.types import EngineResult
from service.imaging.heatmap import scale_maps
from service.settings import Settings
from tests.bench import peers
from tests.bench.image import batch
from tests.bench.report import Row, Side, Skipped, Target
from tests.bench.timing import Schedule, columns, ratios, rounds, seconds_of

MODEL = "resnet50"
SPAN_S = 1.2  # of one measurement
CUDA_BATCHES = (8, 32, 64, 128)


def measure(plan: Schedule, wanted: set[str]) -> Iterator[Row | Skipped]:
    """The rows wanted of P1, P2, P3, P9, P11."""
    if "P11" in wanted:
        yield on_cuda(plan)
    if not wanted & {"P1", "P2", "P3", "P9"}:
        return
    network, module = load(MODEL), peers.loaded(MODEL).module
    for size in (1, 8):
        if "P1" in wanted:
            yield explain_to_predict(network, size, plan)
        if "P2" in wanted:
            yield from against_libraries(network, module, size, plan)
    if "P3" in wanted:
        yield five_classes(network, plan)
    if "P9" in wanted:
        yield ablation(network, module, plan)


def load(name: str) -> Network:
    """A card's network as the service would load it; random weights where a hub has the real ones."""
    settings = Settings()
    device = prepare_device(settings.device, settings.engine_threads)
    options = RuntimeOptions(
        engine=settings.engine, precision=settings.precision, threads=settings.engine_threads, calls=settings.replicas
    )
    return Network.load(peers.card(name), device, options, random_weights=True)


def image_batch(network: Network, size: int) -> NDArray[np.uint8]:
    """A batch of the network's input size."""
    return batch(size, network.preprocessing.height, network.preprocessing.width)


def explanation(network: Network, size: int) -> Callable[[], list[EngineResult]]:
    """A call that explains the best class of each image of a batch."""
    requests = [EngineRequest(pixels=image, best=1) for image in image_batch(network, size)]
    return lambda: run(network, requests)


def run(network: Network, requests: list[EngineRequest]) -> list[EngineResult]:
    """The network's results; a failure is not worth timing."""
    results = []
    for result in network.run(requests):
        if isinstance(result, Exception):
            raise result
        results.append(result)
    return results


def explain_to_predict(network: Network, size: int, plan: Schedule) -> Row:
    """P1."""
    predicted = [EngineRequest(pixels=image) for image in image_batch(network, size)]
    sides = {"explain": explanation(network, size), "predict": lambda: run(network, predicted)}
    took = _interleaved(sides, plan)
    return Row(
        "P1",
        f"explain / predict, {MODEL}, batch {size}, {network.engine} {network.precision}",
        tuple(ratios(took["explain"], took["predict"])),
        "x",
        Target("<=", 1.10),
        _milliseconds(took),
    )


def against_libraries(network: Network, module: nn.Module, size: int, plan: Schedule) -> Iterator[Row]:
    """P2: from pixels or tensors to maps of the input's size, 0..1; captum stops at the grid."""
    images = peers.normalised(image_batch(network, size), network.preprocessing)
    layer, input_size = network.default_layers[0], (images.shape[2], images.shape[3])
    grad_cam, captum = peers.grad_cam(peers.fresh(module), layer), peers.captum(peers.fresh(module), layer)
    explain = explanation(network, size)

    def camserve() -> object:
        return [scale_maps(result.maps, polarity="positive", scale="minmax", input_size=input_size) for result in explain()]

    sides = {"camserve": camserve, "pytorch-grad-cam": lambda: grad_cam(images), "captum": lambda: captum(images)}
    took = _interleaved(sides, plan)
    bound = 5 if network.precision == "fp32" else 20
    for peer in ("pytorch-grad-cam", "captum"):
        yield Row(
            "P2",
            f"explanations/s against {peer}, {MODEL}, batch {size}, {network.engine} {network.precision}",
            tuple(ratios(took[peer], took["camserve"])),
            "x",
            Target(">=", bound) if (peer, size) == ("pytorch-grad-cam", 8) else None,
            _milliseconds({name: took[name] for name in ("camserve", peer)}),
        )


def five_classes(network: Network, plan: Schedule) -> Row:
    """P3."""
    image = image_batch(network, 1)[0]
    five, one = [EngineRequest(pixels=image, classes=(1, 2, 3, 4, 5))], [EngineRequest(pixels=image, classes=(1,))]
    took = _interleaved({"five": lambda: run(network, five), "one": lambda: run(network, one)}, plan)
    return Row(
        "P3",
        f"five classes / one class of an image, {MODEL}",
        tuple(ratios(took["five"], took["one"])),
        "x",
        Target("<=", 1.15),
        _milliseconds(took),
    )


def ablation(network: Network, module: nn.Module, plan: Schedule) -> Row:
    """P9: every channel left out once. The library's side takes minutes, so there are two rounds at most."""
    pixels = image_batch(network, 1)
    images = peers.normalised(pixels, network.preprocessing)
    library = peers.ablation_cam(peers.fresh(module), network.default_layers[0])
    method = METHODS["ablationcam"]
    requests = [EngineRequest(pixels=pixels[0], best=1, method=method, parameters=method.defaults)]
    run(network, requests)
    sides: dict[str, Callable[[], object]] = {
        "camserve": lambda: run(network, requests),
        "pytorch-grad-cam": lambda: library(images),
    }
    once = {name: seconds_of(call, span_s=0, least=1) for name, call in sides.items()}
    took = columns(list(rounds(once, 1 if plan.quick else 2)))
    channels = network.layers[network.default_layers[0]].channels
    return Row(
        "P9",
        f"AblationCAM of one image against pytorch-grad-cam, {MODEL}, {channels} channels",
        tuple(ratios(took["pytorch-grad-cam"], took["camserve"])),
        "x",
        Target(">=", 20),
        tuple(Side(name, tuple(values), "s") for name, values in took.items()),
    )


def on_cuda(plan: Schedule) -> Row | Skipped:
    """P11: at the batch size at which the device classifies most images a second."""
    what = f"explain / predict in images a second, {MODEL}, CUDA, best batch"
    if not torch.cuda.is_available():
        return Skipped("P11", what, "there is no CUDA device")
    network = load(MODEL)
    rates: dict[int, dict[str, list[float]]] = {}
    for size in CUDA_BATCHES:
        predicted = [EngineRequest(pixels=image) for image in image_batch(network, size)]
        sides: dict[str, Callable[[], object]] = {
            "explain": explanation(network, size),
            "predict": functools.partial(run, network, predicted),
        }
        took = _interleaved(sides, plan)
        rates[size] = {name: [size / seconds for seconds in values] for name, values in took.items()}
    best = max(rates, key=lambda size: max(rates[size]["predict"]))
    return Row(
        "P11",
        f"{what} {best}, {network.precision}",
        tuple(ratios(rates[best]["explain"], rates[best]["predict"])),
        "x",
        Target(">=", 0.9),
        tuple(Side(name, tuple(values), "/s") for name, values in rates[best].items()),
    )


def _interleaved(sides: Mapping[str, Callable[[], object]], plan: Schedule) -> dict[str, list[float]]:
    """Seconds of each side, round by round."""
    for call in sides.values():
        call()
    measures = {name: seconds_of(call, span_s=plan.seconds(SPAN_S)) for name, call in sides.items()}
    return columns(list(rounds(measures, plan.rounds)))


def _milliseconds(took: dict[str, list[float]]) -> tuple[Side, ...]:
    return tuple(Side(name, tuple(1000 * seconds for seconds in values), "ms") for name, values in took.items())

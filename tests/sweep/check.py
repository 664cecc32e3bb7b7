"""One network of the sweep: loaded as the service loads it, its own layer chosen, its Grad-CAM compared with plain hooks."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import time
import warnings
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import numpy as np
import structlog
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from service.engine.batch import EngineRequest
from service.engine.cards.card import Card
from service.engine.network import Network
from service.engine.runtimes.precision import photographs
from service.engine.sources import LoadedNetwork, load
from service.engine.types import LayerInfo
from service.errors import ConfigurationError
from tests.sweep.families import FAMILIES, Family
from tests.sweep.rows import Row

MAX_DIFFERENCE: Final = 1e-4  # of a map from the map by plain hooks, relative to its largest magnitude
MAX_ROUNDING_ERRORS: Final = 3  # a larger difference is no more than this times the rounding error of the hooks themselves
TINY: Final = 1e-2  # a parameter whose values are all smaller was set so by hand
NOISE_CELLS: Final = (1, 4, 16, 64)  # images of these give the statistics of batch norms
MIN_VARIANCE: Final = 0.1  # of a channel, in a batch norm, as a part of the mean of all its channels
CARD = """
[architecture]
source = "{source}"
name = "{network}"
args = {{{args}}}
[weights]
random = 0
[labels]
dataset = "imagenet-1k"
"""


def check(family: Family) -> Row:
    """The row of one network; whatever goes wrong is in the row."""
    start = time.perf_counter()
    try:
        loaded = load_family(family)
        network = Network(family.network, loaded, (), torch.device("cpu"))
    except ConfigurationError as error:
        return Row(key=family.key, refusal=str(error))
    except Exception as error:
        return Row(key=family.key, failure=f"load: {type(error).__name__}: {error}"[:300])
    seconds = time.perf_counter() - start
    choice = network.layer_choice
    (layer,) = choice.chosen
    info = network.layers[layer]
    row = Row(
        key=family.key,
        layer=layer,
        grid=info.grid,
        layout=info.layout,
        seconds=seconds,
        rejected=len(choice.rejected),
        failure=f"no evidence: {choice.warning}" if choice.warning else None,
    )
    try:
        difference = map_difference(loaded, network, info)
        bound = MAX_DIFFERENCE
        if difference > bound:
            bound = max(bound, MAX_ROUNDING_ERRORS * rounding_error(loaded, info))
        return row.with_difference(difference, bound)
    except Exception as error:
        return row.with_failure(f"map: {type(error).__name__}: {error}"[:300])


def load_family(family: Family) -> LoadedNetwork:
    """A network of the sweep with weights that are nowhere zero, as `service.engine.sources.load` builds it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sweep.toml"
        path.write_text(CARD.format(source=family.source, network=family.network, args=family.args), encoding="utf-8")
        loaded = load(Card.read(path))
    initialise(loaded)
    return loaded


def initialise(loaded: LoadedNetwork) -> None:
    """Gives seeded random values to parameters that are constant at first, and batch norms the statistics of noise.

    A classifier of zeros has no gradient; with a layer scale of 1e-6 blocks do nothing; with the statistics that batch norms
    start with, activations fade from layer to layer. With those of a few photographs, channels that hardly vary would be
    multiplied by thousands: Inception-v4 in float32 then differs from itself in float64 by 1.5e-3 of a map's peak.
    """
    generator = torch.Generator().manual_seed(0)
    for parameter in loaded.module.parameters():
        values = parameter.detach()
        largest = float(values.abs().max()) if values.numel() else 0.0
        if largest < TINY:
            values.normal_(std=0.02 if values.dim() > 1 else 0.2, generator=generator)
        elif values.numel() > 1 and float(values.std()) == 0:
            values.mul_(1 + 0.1 * torch.randn(values.shape, generator=generator))
    norms = [layer for layer in loaded.module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    for norm in norms:
        norm.momentum, norm.training = None, True  # the mean of all batches, of which there is one
        norm.reset_running_stats()
    size = (loaded.preprocessing.height, loaded.preprocessing.width)
    images = [noise(size, cell) for cell in NOISE_CELLS]
    with torch.no_grad(), contextlib.suppress(ValueError):  # one value per channel: the network pools before the norm
        loaded.module(torch.cat([normalise(image, loaded) for image in images]))
    for norm in norms:
        norm.training = False
        variances = norm.get_buffer("running_var")
        variances.clamp_(min=MIN_VARIANCE * float(variances.mean()))


def noise(size: tuple[int, int], cell: int) -> NDArray[np.uint8]:
    """Uniform noise in squares of `cell` pixels, uint8 ``[height, width, 3]``."""
    height, width = size
    colors = np.random.default_rng(cell).integers(0, 256, (-(-height // cell), -(-width // cell), 3), np.uint8)
    return colors.repeat(cell, axis=0).repeat(cell, axis=1)[:height, :width]


def map_difference(loaded: LoadedNetwork, network: Network, info: LayerInfo) -> float:
    """The largest difference of the network's Grad-CAM map from the map by plain hooks, over the largest magnitude of that.

    Raises:
        ValueError: the map is zero, or the module's output is not the grid that the network names.
    """
    size = (loaded.preprocessing.height, loaded.preprocessing.width)
    image = photographs(*size)[0]
    (result,) = network.run([EngineRequest(pixels=image, best=1)])
    if isinstance(result, Exception):
        raise result
    expected = hooked_gradcam(loaded, image, info, result.classes[0])
    peak = float(np.abs(expected).max())
    if peak == 0:
        raise ValueError("the map by plain hooks is zero")
    return float(np.abs(result.maps[0][0] - expected).max()) / peak


def rounding_error(loaded: LoadedNetwork, info: LayerInfo) -> float:
    """The largest difference of the map by plain hooks in float32 from that in float64, over the largest magnitude of that.

    The module is in float64 afterwards.
    """
    image = photographs(loaded.preprocessing.height, loaded.preprocessing.width)[0]
    class_id = int(loaded.module(normalise(image, loaded)).argmax())
    single = hooked_gradcam(loaded, image, info, class_id)
    loaded.module.double()
    double = hooked_gradcam(loaded, image, info, class_id)
    return float(np.abs(single - double).max() / np.abs(double).max())


def hooked_gradcam(loaded: LoadedNetwork, image: NDArray[np.uint8], info: LayerInfo, class_id: int) -> NDArray[np.float32]:
    """Grad-CAM as a reader of the paper would write it: a forward hook, autograd, the formula. Signed, float32 ``[h, w]``."""
    outputs: list[Tensor] = []
    rows, columns = info.grid

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        if isinstance(output, Tensor):
            outputs.append(output)
            return output.clone()  # an operation behind the layer may write into its input
        values = output.values() if isinstance(output, Mapping) else output
        outputs.append(next(value for value in values if isinstance(value, Tensor) and value.dim() >= 3))
        return None

    handle = loaded.module.get_submodule(info.name).register_forward_hook(keep)
    try:
        logits = loaded.module(normalise(image, loaded).requires_grad_())
    finally:
        handle.remove()
    activations = outputs[-1]
    (gradients,) = torch.autograd.grad(logits[0, class_id], activations)
    grids = []
    for values in (activations.detach()[0], gradients[0]):
        if info.layout == "tokens":
            cells = values[values.shape[0] - rows * columns :]  # class tokens and registers come first
            grids.append(cells.T.reshape(-1, rows, columns))
        else:
            grids.append(values if info.layout == "nchw" else values.permute(2, 0, 1))
    a, g = grids
    if tuple(a.shape) != (info.channels, rows, columns):
        raise ValueError(f"the module's output is {tuple(activations.shape)}")
    weights = g.mean(dim=(1, 2))
    heatmap: NDArray[np.float32] = torch.einsum("k,khw->hw", weights, a).numpy()
    return heatmap


def normalise(image: NDArray[np.uint8], loaded: LoadedNetwork) -> Tensor:
    """uint8 ``[h, w, 3]`` -> ``[1, 3, h, w]``, of the dtype of the network."""
    own = loaded.preprocessing
    scaled = (torch.tensor(image) / 255 - torch.tensor(own.mean)) / torch.tensor(own.std)
    return scaled.permute(2, 0, 1)[None].to(next(loaded.module.parameters()).dtype)


def send_row(key: str, connection: Connection) -> None:
    """Checks one network in a process of its own and sends its row."""
    warnings.simplefilter("ignore")  # libraries deprecate what they use themselves
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    with (
        Path(os.devnull).open("w", encoding="utf-8") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        row = check(FAMILIES[key])
    connection.send(row)

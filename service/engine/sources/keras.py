"""Keras 3 networks, run by torch: `keras.applications` by name, or a model saved as `.keras`.

A Keras model is one torch module whose layers torch.export cannot tell apart; its input has channels last, and it ends in a
softmax. This module converts it to a torch module with a child for each layer, which takes channels first and ends in logits.
"""

from __future__ import annotations

import inspect
import os
import random
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from service.engine.cards.card import Card
from service.engine.cards.labels import imagenet_labels
from service.engine.sources.base import SourceNetwork
from service.errors import ConfigurationError
from service.vocabulary import Preprocessing


def _import_keras() -> Any:
    """Imports Keras with torch as its backend, which Keras reads from the environment when it is first imported."""
    before = os.environ.get("KERAS_BACKEND")
    if "keras" not in sys.modules:
        os.environ["KERAS_BACKEND"] = "torch"
    try:
        import keras  # noqa: PLC0415 # after the backend is set
    finally:
        if before is None:
            os.environ.pop("KERAS_BACKEND", None)
        else:
            os.environ["KERAS_BACKEND"] = before
    return keras


keras: Any = _import_keras()
DEFAULT_WEIGHTS: Final = "imagenet"


def from_architecture(card: Card) -> SourceNetwork:
    """See `Source`."""
    with _use_cpu(card), _seed_from_torch():
        return _source_network(card, _application(card, None))


def from_file(card: Card, path: Path) -> SourceNetwork:
    """See `Source`: a whole model (`.keras`), or the weights alone (`.weights.h5`, `.h5`) of a named application.

    A saved model is read in safe mode: a model with Python code of its own (Lambda layers) is refused.
    """
    with _use_cpu(card), warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # layers without weights in the file stay random, and Keras only warns
        try:
            if path.suffix == ".keras":
                return _source_network(card, keras.saving.load_model(path, compile=False, safe_mode=True))
            model = _application(card, None)
            model.load_weights(path)
        except (OSError, TypeError, ValueError, KeyError, UserWarning) as error:
            raise ConfigurationError(
                f"card {card.name}: weights.file: {path} does not hold weights of this network: {str(error)[:400]}"
            ) from error
        return _source_network(card, model)


def from_hub(card: Card) -> SourceNetwork:
    """See `Source`; Keras checks the digests of its files itself."""
    if card.weights.name is None:
        raise ConfigurationError(f"card {card.name}: weights: source keras takes name, such as imagenet; not hub")
    with _use_cpu(card):
        weights = DEFAULT_WEIGHTS if card.weights.name == "default" else card.weights.name
        return replace(_source_network(card, _application(card, weights)), weights_name=weights)


class Layers(nn.Module):
    """A functional Keras model with its layers as children, by name; a model inside it is a child with children of its own.

    Args:
        model: the Keras model, whose layers are shared, not copied.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self._model = [model]  # in a list, for as a plain attribute it would be a child and register every layer twice
        for layer in model.layers:
            functional = _functional(layer)
            self.add_module(layer.name, layer if functional is None else Layers(functional))

    def forward(self, inputs: Tensor, **_options: object) -> Tensor:
        """Float ``[N, h, w, C]`` -> the model's output; a mask or a training flag that Keras passes is ignored."""
        output: Tensor = self._model[0]._run_through_graph(inputs, operation_fn=self._child)
        return output

    def _child(self, operation: Any) -> Any:
        # An operation that is no layer (an addition written as `a + b`) has no weights and is called directly.
        return self._modules.get(operation.name, operation)


class Classifier(Layers):
    """A Keras classifier with the interface of torch's: float ``[N, C, h, w]`` -> logits ``[N, classes]``.

    Args:
        model: a functional model.
        is_bgr: whether the model's input is BGR.
    """

    def __init__(self, model: Any, *, is_bgr: bool) -> None:
        super().__init__(model)
        self._is_bgr = is_bgr

    def forward(self, inputs: Tensor, **_options: object) -> Tensor:
        """Float ``[N, C, h, w]`` -> logits ``[N, classes]``; the layers' activations are ``[N, h, w, C]``."""
        images = inputs.flip(1) if self._is_bgr else inputs
        with keras.device(str(inputs.device)):  # otherwise Keras would move every tensor to its default device
            return super().forward(images.permute(0, 2, 3, 1))


def _application(card: Card, weights: str | None) -> Any:
    name = card.architecture.name
    builder = getattr(keras.applications, name, None)
    if not inspect.isfunction(builder):
        known = sorted(key for key, value in vars(keras.applications).items() if inspect.isfunction(value))
        raise ConfigurationError(
            f"card {card.name}: architecture.name: keras.applications has {', '.join(known)}; not {name!r}"
        )
    crop, shape = card.preprocess.crop, None
    if crop is not None:
        shape = (*((crop, crop) if isinstance(crop, int) else crop), 3)
    return builder(weights=weights, input_shape=shape, **card.architecture.args)


def _source_network(card: Card, model: Any) -> SourceNetwork:
    functional = _functional(model)
    shape = getattr(functional, "input_shape", None)
    if functional is None or not isinstance(shape, tuple) or len(shape) != 4:
        raise ConfigurationError(f"card {card.name}: architecture: the Keras model must be a functional one of one image")
    _remove_last_activation(card, functional)
    _, height, width, channels = shape
    crop = card.preprocess.crop
    if height is None or width is None:
        if crop is None:
            raise ConfigurationError(f"card {card.name}: preprocess.crop: the network takes any size; the card must state one")
        height, width = (crop, crop) if isinstance(crop, int) else crop
    mean, std, is_bgr = _normalization(card, functional, channels)
    module = Classifier(functional, is_bgr=is_bgr)
    preprocessing = Preprocessing(
        height=height, width=width, resize=min(height, width), interpolation="bilinear", mean=mean, std=std, fit="squash"
    )
    # The applications' classes are those of ImageNet, in the usual order.
    labels = imagenet_labels("imagenet-1k") if _is_application(card) else None
    return SourceNetwork(module=module, preprocessing=preprocessing, labels=labels)


def _is_application(card: Card) -> bool:
    return inspect.isfunction(getattr(keras.applications, card.architecture.name, None))


def _functional(layer: Any) -> Any:
    """The functional model of a model; None for a plain layer or a model with a `call` of its own."""
    model = layer._functional if isinstance(layer, keras.Sequential) else layer
    return model if hasattr(model, "_run_through_graph") else None


def _remove_last_activation(card: Card, model: Any) -> None:
    """Removes the activation of the last layer: the score to explain is the logit, not the probability."""
    last = model.outputs[0]._keras_history.operation
    while (inner := _functional(last)) is not None:
        last = inner.outputs[0]._keras_history.operation
    if not hasattr(last, "activation"):
        raise ConfigurationError(
            f"card {card.name}: architecture: the network must end in a dense, convolution or activation layer whose output is "
            "the classes; a Softmax layer of its own cannot be removed"
        )
    last.activation = keras.activations.linear


def _normalization(card: Card, model: Any, channels: int) -> tuple[Any, Any, bool]:
    """Mean and std for values 0..1, and whether the input is BGR: of the card, the application or the model's own layers.

    `preprocess_input` is linear in each channel, so its values for black, white and red determine it. A model that scales its
    input itself takes values 0..255.
    """
    overrides = card.preprocess
    if overrides.mean is not None and overrides.std is not None:
        return overrides.mean, overrides.std, False
    applications = {name.lower(): value for name, value in vars(keras.applications).items() if inspect.isfunction(value)}
    builder = applications.get((card.architecture.name or model.name).lower())
    if builder is None and any(
        isinstance(layer, keras.layers.Rescaling | keras.layers.Normalization) for layer in model.layers
    ):
        return (0.0,) * channels, (1 / 255,) * channels, False
    if builder is None or channels != 3:
        raise ConfigurationError(
            f"card {card.name}: preprocess: this Keras model has no mean and std of its own; state them in the card, or with a "
            "reference: ?mean=0.5&std=0.5 for values -1..1, ?mean=0&std=1 for 0..1, ?mean=0&std=0.00392157 for 0..255"
        )
    module: Any = sys.modules[inspect.unwrap(builder).__module__]
    colors = np.array([[0, 0, 0], [255, 255, 255], [255, 0, 0]], np.float32).reshape(3, 1, 1, 3)
    black, white, red = module.preprocess_input(colors.copy(), data_format="channels_last").reshape(3, 3)
    is_bgr = bool(red[0] == black[0])
    difference = white - black
    mean, std = (-black / difference), 1 / difference
    if is_bgr:
        mean, std = mean[::-1], std[::-1]
    return tuple(map(float, mean)), tuple(map(float, std)), is_bgr


@contextmanager
def _use_cpu(card: Card) -> Iterator[None]:
    """Keras creates variables on the CPU in this context.

    Raises:
        ConfigurationError: the process uses Keras on another backend already.
    """
    if keras.backend.backend() != "torch":
        raise ConfigurationError(
            f"card {card.name}: architecture.source: Keras runs on another backend; set KERAS_BACKEND=torch"
        )
    with keras.device("cpu"):
        yield


@contextmanager
def _seed_from_torch() -> Iterator[None]:
    """Seeds Python's generator, from which Keras takes its seeds, with torch's seed, and restores its state afterwards."""
    state = random.getstate()
    random.seed(torch.initial_seed())
    try:
        yield
    finally:
        random.setstate(state)

"""Keras 3 networks, run by torch: `keras.applications` by name, or a model saved as `.keras`.

A Keras model is one torch module whose layers torch.export cannot tell apart, takes channels last, and ends in a softmax. Here
it becomes a module with a child for each layer, run in the model's own order, that takes channels first and ends in logits.
"""

from __future__ import annotations

import inspect
import os
import random
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from service.engine.cards.card import Card
from service.engine.sources.base import SourceNetwork
from service.errors import ConfigurationError
from service.vocabulary import Preprocessing


def _import_keras() -> Any:
    """Keras on torch: it reads its backend from the environment, once, when it is first imported."""
    before = os.environ.get("KERAS_BACKEND")
    if "keras" not in sys.modules:
        os.environ["KERAS_BACKEND"] = "torch"
    try:
        import keras  # noqa: PLC0415 # only now, with the backend chosen
    finally:
        if before is None:
            os.environ.pop("KERAS_BACKEND", None)
        else:
            os.environ["KERAS_BACKEND"] = before
    return keras


keras: Any = _import_keras()


def from_architecture(card: Card) -> SourceNetwork:
    """See `Source`."""
    with _cpu(card), _seeded():
        return _built(card, _application(card, None))


def from_file(card: Card, path: Path) -> SourceNetwork:
    """See `Source`: a whole model (`.keras`), or the weights alone (`.weights.h5`, `.h5`) of a named application.

    A saved model is read in safe mode: one that carries Python code of its own (Lambda layers) is refused.
    """
    with _cpu(card), warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # layers that found no weights keep random ones, and Keras only warns
        try:
            if path.suffix == ".keras":
                return _built(card, keras.saving.load_model(path, compile=False, safe_mode=True))
            model = _application(card, None)
            model.load_weights(path)
        except (OSError, TypeError, ValueError, KeyError, UserWarning) as error:
            raise ConfigurationError(
                f"card {card.name}: weights.file: {path} does not hold weights of this network: {str(error)[:400]}"
            ) from error
        return _built(card, model)


def from_hub(card: Card) -> SourceNetwork:
    """See `Source`; Keras checks its files' digests itself."""
    if card.weights.name is None:
        raise ConfigurationError(f"card {card.name}: weights: source keras takes name, such as imagenet; not hub")
    with _cpu(card):
        return _built(card, _application(card, card.weights.name))


class Layers(nn.Module):
    """A functional Keras model with its layers as children, by name; those of a model inside it as its children.

    Args:
        model: its layers are run in place; nothing is copied.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self._model = [model]  # in a list: as an attribute it would be a child and hold every layer a second time
        for layer in model.layers:
            functional = _functional(layer)
            self.add_module(layer.name, layer if functional is None else Layers(functional))

    def forward(self, inputs: Tensor, **_options: object) -> Tensor:
        """Float ``[N, h, w, C]`` -> what the model gives; a mask or a training flag that Keras hands in means nothing here."""
        output: Tensor = self._model[0]._run_through_graph(inputs, operation_fn=self._child)
        return output

    def _child(self, operation: Any) -> Any:
        # What is no layer (an addition written as `a + b`) has no weights and is run as it is.
        return self._modules.get(operation.name, operation)


class Classifier(Layers):
    """A Keras classifier as torch knows one: float ``[N, C, h, w]`` -> logits ``[N, classes]``.

    Args:
        model: a functional model.
        reversed_channels: it wants BGR.
    """

    def __init__(self, model: Any, *, reversed_channels: bool) -> None:
        super().__init__(model)
        self._reversed = reversed_channels

    def forward(self, inputs: Tensor, **_options: object) -> Tensor:
        """The layers' activations are ``[N, h, w, C]``."""
        images = inputs.flip(1) if self._reversed else inputs
        with keras.device(str(inputs.device)):  # Keras would carry every tensor to a device of its own choice
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


def _built(card: Card, model: Any) -> SourceNetwork:
    functional = _functional(model)
    shape = getattr(functional, "input_shape", None)
    if functional is None or not isinstance(shape, tuple) or len(shape) != 4:
        raise ConfigurationError(f"card {card.name}: architecture: the Keras model must be a functional one of one image")
    _end_in_logits(card, functional)
    _, height, width, channels = shape
    crop = card.preprocess.crop
    if height is None or width is None:
        if crop is None:
            raise ConfigurationError(f"card {card.name}: preprocess.crop: the network takes any size; the card must say one")
        height, width = (crop, crop) if isinstance(crop, int) else crop
    mean, std, reversed_channels = _scaling(card, channels)
    module = Classifier(functional, reversed_channels=reversed_channels)
    return SourceNetwork(
        module,
        Preprocessing(
            height=height, width=width, resize=min(height, width), interpolation="bilinear", mean=mean, std=std, fit="squash"
        ),
    )


def _functional(layer: Any) -> Any:
    """A model's functional form, or None of what is a plain layer or a model with code of its own."""
    form = layer._functional if isinstance(layer, keras.Sequential) else layer
    return form if hasattr(form, "_run_through_graph") else None


def _end_in_logits(card: Card, model: Any) -> None:
    """Takes the last layer's activation away: the score to explain is the logit, not the probability."""
    last = model.outputs[0]._keras_history.operation
    while (inner := _functional(last)) is not None:
        last = inner.outputs[0]._keras_history.operation
    if not hasattr(last, "activation"):
        raise ConfigurationError(
            f"card {card.name}: architecture: the network must end in a dense, convolution or activation layer that gives the "
            "classes; a softmax in a layer of its own cannot be taken off"
        )
    last.activation = keras.activations.linear


def _scaling(card: Card, channels: int) -> tuple[Any, Any, bool]:
    """Mean and std for values 0..1, and whether channels are reversed: asked of the application's own `preprocess_input`.

    It is linear in each channel, so that black, white and red tell everything.
    """
    own = card.preprocess
    builder = getattr(keras.applications, card.architecture.name, None)
    if own.mean is not None and own.std is not None:
        return own.mean, own.std, False
    if not inspect.isfunction(builder) or channels != 3:
        raise ConfigurationError(
            f"card {card.name}: preprocess: this Keras model knows no mean and std; the card must say them"
        )
    module: Any = sys.modules[inspect.unwrap(builder).__module__]
    colours = np.array([[0, 0, 0], [255, 255, 255], [255, 0, 0]], np.float32).reshape(3, 1, 1, 3)
    black, white, red = module.preprocess_input(colours.copy(), data_format="channels_last").reshape(3, 3)
    reversed_channels = bool(red[0] == black[0])
    spread = white - black
    mean, std = (-black / spread), 1 / spread
    if reversed_channels:
        mean, std = mean[::-1], std[::-1]
    return tuple(map(float, mean)), tuple(map(float, std)), reversed_channels


@contextmanager
def _cpu(card: Card) -> Iterator[None]:
    """Variables are made on the CPU.

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
def _seeded() -> Iterator[None]:
    """Keras draws its seeds from Python's generator; here they follow torch's, and Python's goes on as if nothing had been."""
    state = random.getstate()
    random.seed(torch.initial_seed())
    try:
        yield
    finally:
        random.setstate(state)

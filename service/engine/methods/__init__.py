"""Explanation methods, one file per family; `METHODS` is the list that `GET /methods` shows."""

from __future__ import annotations

from service.engine.methods import activation, attention, gradient, guided, head, input_gradients, perturbation, surrogate
from service.engine.methods.augmentation import augmented
from service.engine.methods.method import BatchedMethod, Method
from service.engine.types import MethodParameters

METHODS: dict[str, Method] = {
    method.name: method
    for family in (gradient, activation, head, input_gradients, guided, perturbation, surrogate, attention)
    for method in family.METHODS
}


def resolve(method: Method, asked: MethodParameters) -> tuple[Method, MethodParameters]:
    """The method that computes what a request asks for, with all of its parameters.

    With `aug_smooth` a method that shares its batch becomes one that runs the network on augmented views.

    Raises:
        ParameterInvalid: a parameter is asked for that the method does not have.
    """
    parameters = method.with_defaults(asked)
    if isinstance(method, BatchedMethod) and parameters.aug_smooth:
        return augmented(method), parameters
    return method, parameters

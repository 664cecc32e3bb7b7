"""Explanation methods, one file per family; `METHODS` is the list that `GET /methods` shows."""

from __future__ import annotations

from service.engine.methods import activation, attention, gradient, guided, head, input_gradients, perturbation, surrogate
from service.engine.methods.method import Method

METHODS: dict[str, Method] = {
    method.name: method
    for family in (gradient, activation, head, input_gradients, guided, perturbation, surrogate, attention)
    for method in family.METHODS
}

"""Explanation methods, one file per family; `METHODS` is the list that `GET /methods` shows."""

from __future__ import annotations

from service.engine.methods import gradient, guided, perturbation, saliency, surrogate
from service.engine.methods.method import Method

METHODS: dict[str, Method] = {
    method.name: method for family in (gradient, saliency, guided, perturbation, surrogate) for method in family.METHODS
}

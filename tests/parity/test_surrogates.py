"""The oracle matrix: LIME and KernelSHAP against captum's, over the same superpixels and the same coalitions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from captum._utils.models.linear_model import SkLearnLinearModel
from captum.attr import KernelShap, Lime
from captum.attr._core.lime import get_exp_kernel_similarity_function
from torch import Tensor

from service.engine.methods.superpixels import superpixels
from service.engine.methods.surrogate import Coalitions, coalitions
from tests.parity.matrix import Record
from tests.parity.oracle import hold_raw
from tests.parity.subjects import SMALL, Subject

pytestmark = pytest.mark.slow

SEGMENTS, SAMPLES, SEED = 9, 24, 3
nine = pytest.mark.parametrize("subject", SMALL.values(), ids=list(SMALL))


def mask_of(subject: Subject) -> Tensor:
    """The superpixel of every pixel, int64 ``[H, W]``."""
    return torch.from_numpy(superpixels(subject.images()[0].permute(1, 2, 0).numpy(), SEGMENTS))


def given(shown: Coalitions) -> Any:
    """These coalitions in place of captum's draws."""

    def draws(*_: Any, **__: Any) -> Iterator[Tensor]:
        yield from torch.from_numpy(shown).long()[:, None]

    return draws


def attributed(oracle: Any, subject: Subject, shown: Coalitions) -> Tensor:
    """The coefficients that captum finds, spread over the pixels of their superpixels."""
    spread: Tensor = oracle.attribute(
        subject.images(),
        target=subject.class_id,
        feature_mask=mask_of(subject)[None, None],
        n_samples=len(shown),
        perturbations_per_eval=8,
    )
    return spread[0, 0]


@nine
def test_lime(record_property: Record, subject: Subject) -> None:
    count = int(mask_of(subject).max()) + 1
    shown = np.random.default_rng(SEED).random((SAMPLES, count)) < 0.5
    shown[0] = True
    kernel = get_exp_kernel_similarity_function("cosine", kernel_width=0.25)
    oracle = Lime(
        subject.module,
        interpretable_model=SkLearnLinearModel("linear_model.Ridge", alpha=1.0),
        # captum's own would compare images, the authors' lime_image compares coalitions.
        similarity_func=lambda _, __, z, **___: kernel(torch.ones_like(z), z, None),
        perturb_func=given(shown),
    )
    found = subject.raw("lime", segments=SEGMENTS, samples=SAMPLES, seed=SEED)
    convention = "captum given the coalitions, and the authors' penalty, kernel width and distance between coalitions"
    hold_raw(record_property, "captum", "lime", subject.name, found, attributed(oracle, subject, shown), convention)


@nine
def test_kernel_shap(record_property: Record, subject: Subject) -> None:
    count = int(mask_of(subject).max()) + 1
    drawn = coalitions(np.random.default_rng(SEED), SAMPLES, count)
    oracle = KernelShap(subject.module)
    oracle.perturb_func = given(np.concatenate([np.ones((1, count), bool), np.zeros((1, count), bool), drawn]))
    found = subject.raw("kernel_shap", segments=SEGMENTS, samples=SAMPLES, seed=SEED)
    expected = attributed(oracle, subject, np.zeros((SAMPLES + 2, count), bool))
    hold_raw(record_property, "captum", "kernel_shap", subject.name, found, expected, "captum given the coalitions")

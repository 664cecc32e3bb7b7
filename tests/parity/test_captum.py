"""The oracle matrix: input gradients and occlusion against captum. The same weights and images.

Where captum draws at random it is asked about the very points that were drawn here. The figures are differences relative to the
peak of captum's map; the contract is 1e-4.
"""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
import torch
from captum.attr import InputXGradient, IntegratedGradients, Occlusion, Saliency
from captum.attr._core.gradient_shap import InputBaselineXGradient

from service.engine.graph.split_cache import SizedNetwork
from tests.engine.methods.queries import explain, points_of, sized_query
from tests.parity.matrix import Record
from tests.parity.oracle import hold_raw
from tests.parity.subjects import SMALL, Subject

pytestmark = pytest.mark.slow

nine = pytest.mark.parametrize("subject", SMALL.values(), ids=list(SMALL))


def sized(subject: Subject) -> SizedNetwork:
    """What methods are given of the subject's network."""
    return SizedNetwork(subject.network._splits, subject.size)


@nine
def test_saliency(record_property: Record, subject: Subject) -> None:
    expected = Saliency(subject.module).attribute(subject.images().requires_grad_(), target=subject.class_id)
    hold_raw(record_property, "captum", "saliency", subject.name, subject.raw("saliency"), expected[0].amax(0))


@nine
def test_input_x_gradient(record_property: Record, subject: Subject) -> None:
    expected = InputXGradient(subject.module).attribute(subject.images().requires_grad_(), target=subject.class_id)
    found = subject.raw("input_x_gradient")
    hold_raw(record_property, "captum", "input_x_gradient", subject.name, found, expected.detach()[0].sum(0))


@nine
def test_integrated_gradients(record_property: Record, subject: Subject) -> None:
    expected = IntegratedGradients(subject.module).attribute(
        subject.images(), target=subject.class_id, n_steps=12, internal_batch_size=4
    )
    found = subject.raw("integrated_gradients", steps=12)
    hold_raw(record_property, "captum", "integrated_gradients", subject.name, found, expected[0].sum(0).float())


@nine
def test_smoothgrad_at_the_same_points(record_property: Record, subject: Subject) -> None:
    query = sized_query(sized(subject), subject.images(), "smoothgrad", subject.class_id, samples=10, noise=0.2)
    found = explain("smoothgrad", query)
    gradients = Saliency(subject.module).attribute(points_of(query).requires_grad_(), target=subject.class_id, abs=False)
    hold_raw(record_property, "captum", "smoothgrad", subject.name, found, gradients.mean(0).abs().amax(0))


@nine
def test_gradient_shap_at_the_same_points(record_property: Record, subject: Subject) -> None:
    # Without noise a point is b + alpha (x - b); with the generator's own alphas the plain colours b can be told.
    samples, image = 8, subject.images()
    query = sized_query(sized(subject), image, "gradient_shap", subject.class_id, samples=samples, noise=0)
    found = explain("gradient_shap", query)
    generator = query.generator
    colors = torch.randn(samples, 3, 1, 1, generator=generator)
    alphas = torch.rand(samples, 1, 1, 1, generator=generator)
    inputs, baselines = image.repeat(samples, 1, 1, 1), colors.expand(-1, -1, *image.shape[2:])
    torch.testing.assert_close(points_of(query), baselines + alphas * (inputs - baselines))
    with mock.patch.object(np.random, "uniform", return_value=alphas.numpy().ravel()):
        oracle = InputBaselineXGradient(subject.module)
        expected = oracle.attribute(inputs.requires_grad_(), baselines, target=subject.class_id).detach()
    hold_raw(record_property, "captum", "gradient_shap", subject.name, found, expected.mean(0).sum(0))


@nine
def test_occlusion(record_property: Record, subject: Subject) -> None:
    side = subject.size[0]
    window, stride = side // 3, side // 4  # squares overlap, and the last of a row is cut off
    expected = Occlusion(subject.module).attribute(
        subject.images(), (3, window, window), strides=(3, stride, stride), target=subject.class_id, perturbations_per_eval=4
    )
    found = subject.raw("occlusion", window=window, stride=stride)
    hold_raw(record_property, "captum", "occlusion", subject.name, found, expected[0, 0].float())

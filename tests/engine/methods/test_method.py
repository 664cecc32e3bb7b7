"""What every method says of itself: its cost, its lane, its parameters, and whether it fits a network."""

from __future__ import annotations

import pytest
import torch

from service.engine.graph.split_cache import SizedNetwork, SplitCache
from service.engine.methods import METHODS
from service.engine.methods.method import BatchedMethod, QueryMethod, Target
from service.engine.types import MethodParameters
from service.errors import ParameterInvalid
from tests.networks import Pooled, seeded


def test_every_method_has_its_name_and_is_of_one_kind() -> None:
    for name, method in METHODS.items():
        assert method.name == name
        assert isinstance(method, (BatchedMethod, QueryMethod))


@pytest.mark.parametrize("name", ["ablationcam", "reciprocam"])
def test_a_method_that_asks_the_head_alone_but_often_is_slow(name: str) -> None:
    assert (METHODS[name].cost, METHODS[name].lane) == ("head", "slow")


def test_many_forward_passes_are_slow_and_a_shared_pass_is_fast() -> None:
    for method in METHODS.values():
        if method.cost == "many forwards":
            assert method.lane == "slow", method.name
        if isinstance(method, BatchedMethod):
            assert (method.cost, method.lane) == ("head", "fast"), method.name


def test_parameters_not_asked_for_are_the_methods_own() -> None:
    occlusion = METHODS["occlusion"]
    assert occlusion.parameter_names == ("window", "stride")
    assert occlusion.with_defaults(MethodParameters()) is occlusion.defaults
    assert occlusion.with_defaults(MethodParameters(stride=9)) == MethodParameters(window=48, stride=9)
    assert occlusion.defaults == MethodParameters(window=48, stride=24)  # as it was


def test_complete_parameters_are_what_they_are() -> None:
    for method in METHODS.values():
        assert method.with_defaults(method.defaults) == method.defaults, method.name


@pytest.mark.parametrize(
    ("name", "asked", "own"),
    [
        ("rise", MethodParameters(window=8), "samples, seed"),
        ("saliency", MethodParameters(seed=0), "none"),
        ("eigengradcam", MethodParameters(eigen_smooth=False), "aug_smooth"),
    ],
)
def test_a_parameter_that_a_method_does_not_have_is_refused(name: str, asked: MethodParameters, own: str) -> None:
    with pytest.raises(ParameterInvalid, match=f"{name} has no such parameter; its own: {own}. Leave it out"):
        METHODS[name].with_defaults(asked)


def test_why_a_method_does_not_fit() -> None:
    network = SizedNetwork(SplitCache("pooled", seeded(Pooled), 3, (32, 32)), (32, 32))
    reasons = {name: reason for name, method in METHODS.items() if (reason := method.why_not(network)) is not None}
    assert set(reasons) == {"attention", "attention_rollout", "chefer", "legrad"}
    assert all("no attention" in reason for reason in reasons.values())


def test_a_target_is_a_logit_or_a_difference_of_two() -> None:
    logits = torch.tensor([[1.0, 5.0, 2.0], [4.0, 0.0, 7.0]])
    assert Target(1).score(logits).tolist() == [5, 0]
    assert Target(1, 2).score(logits).tolist() == [3, -7]

"""When answers agree, and which of two trunks is faster."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.engine.runtimes.precision import disagreement, photographs, speedup
from service.engine.types import EngineResult
from service.vocabulary import Engine, Precision

GRID = np.random.default_rng(0).normal(size=(7, 7)).astype(np.float32)


def result(grid: NDArray[np.floating[Any]], best: int = 1) -> EngineResult:
    logits = np.zeros(3, np.float32)
    logits[best] = 1
    return EngineResult(
        logits=logits, classes=(best,), maps=((grid.astype(np.float32),),), layers=("block",), engine="torch", precision="fp32"
    )


def test_the_photographs_are_few_different_and_small() -> None:
    images = photographs(40, 30)
    assert {image.shape for image in images} == {(40, 30, 3)}
    assert len(images) == len({image.tobytes() for image in images}) == 8


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (result(GRID * 3 + 1), None),
        (result(GRID, best=2), "the best class"),
        (result(np.roll(GRID, 1)), "correlates by"),
        (result(np.zeros((7, 7))), "correlates by 0.000"),
        (result(-GRID), "correlates by -1.000"),
    ],
)
def test_answers_agree_in_class_and_map(found: EngineResult, reason: str | None) -> None:
    told = disagreement([result(GRID), result(GRID)], [result(GRID), found])
    assert (told is None) if reason is None else (told is not None and reason in told)


def test_maps_without_contrast_agree_with_their_like() -> None:
    blank = result(np.zeros((7, 7)))
    assert disagreement([blank], [blank]) is None
    assert disagreement([blank], [result(GRID)]) is not None


class Sleeper:
    engine: Engine = "torch"
    precision: Precision = "fp32"

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.calls = 0

    def __call__(self, images: Tensor) -> Sequence[Tensor]:
        self.calls += 1
        time.sleep(self.seconds)
        return (images,)


def test_the_faster_is_found_in_bounded_time() -> None:
    images = torch.zeros(1, 3, 8, 8)
    assert speedup(Sleeper(0.02), Sleeper(0.005), images) > 1.5
    slow = Sleeper(0.4)
    speedup(slow, Sleeper(0.0), images)
    assert slow.calls == 2

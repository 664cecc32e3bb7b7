"""Whether a faster trunk may stand in for the exact one: whether its answers agree on photographs, and whether it is faster.

The photographs come with the package; see service/engine/runtimes/calibration/README.md.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from service.engine.runtimes.torch import Trunk
from service.engine.types import EngineResult

PHOTOGRAPHS: Final = Path(__file__).parent / "calibration"
CORRELATION: Final = 0.99  # of each map, at least
TIMED_S: Final = 0.5  # both trunks together, at most one round longer
ROUNDS: Final = 5


def photographs(height: int, width: int) -> list[NDArray[np.uint8]]:
    """Four photographs and their mirror images, uint8 ``[height, width, 3]`` RGB each."""
    images = []
    for path in sorted(PHOTOGRAPHS.glob("*.jpg")):
        with Image.open(path) as opened:
            image = opened.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
        images += [np.asarray(image), np.asarray(ImageOps.mirror(image))]
    return images


def disagreement(expected: Sequence[EngineResult], found: Sequence[EngineResult]) -> str | None:
    """Where answers differ too much from those expected, for the log; None where they agree.

    They agree when for every image the best class is the same, and its maps correlate by at least `CORRELATION`.
    """
    for one, other in zip(expected, found, strict=True):
        if one.logits.argmax() != other.logits.argmax():
            return "the best class of a photograph is another"
        for grid, stand_in in zip(one.maps[0], other.maps[0], strict=True):
            alike = _correlation(grid, stand_in)
            if alike < CORRELATION:
                return f"a photograph's map correlates by {alike:.3f} only"
    return None


def speedup(exact: Trunk, fast: Trunk, images: Tensor) -> float:
    """How many times as fast the second is; the best of a few rounds in turn, for no longer than `TIMED_S`."""
    best = [float("inf"), float("inf")]
    started = time.perf_counter()
    for number in range(ROUNDS):
        if number > 1 and time.perf_counter() - started > TIMED_S:
            break
        for which, trunk in enumerate((exact, fast)):
            before = time.perf_counter()
            with torch.no_grad():
                trunk(images)
            if images.is_cuda:
                torch.cuda.synchronize(images.device)
            best[which] = min(best[which], time.perf_counter() - before)
    return best[0] / best[1]


def _correlation(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Pearson's; of maps without contrast, 1 where both have none."""
    one, other = (grid.astype(np.float64).ravel() - grid.mean(dtype=np.float64) for grid in (a, b))
    lengths = float(np.linalg.norm(one) * np.linalg.norm(other))
    if lengths == 0:
        return float(np.array_equal(one, other))
    return float(one @ other) / lengths

"""The two measurements of the calibration check: whether results agree on photographs, and which of two trunks is faster.

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
MIN_CORRELATION: Final = 0.99  # of each map
TIMED_S: Final = 0.5  # seconds of both trunks together; the last round may take longer
ROUNDS: Final = 5


def photographs(height: int, width: int) -> list[NDArray[np.uint8]]:
    """Four photographs and their mirror images, uint8 ``[height, width, 3]`` RGB each."""
    images = []
    for path in sorted(PHOTOGRAPHS.glob("*.jpg")):
        with Image.open(path) as photograph:
            image = photograph.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
        images += [np.asarray(image), np.asarray(ImageOps.mirror(image))]
    return images


def disagreement(expected: Sequence[EngineResult], actual: Sequence[EngineResult]) -> str | None:
    """How results differ too much from the expected ones, for the log; None where they agree.

    They agree when for every image the best class is the same, and its maps correlate by at least `MIN_CORRELATION`.
    """
    for expected_result, result in zip(expected, actual, strict=True):
        if expected_result.logits.argmax() != result.logits.argmax():
            return "the best class of a photograph differs"
        for expected_map, grid in zip(expected_result.maps[0], result.maps[0], strict=True):
            correlation = _correlation(expected_map, grid)
            if correlation < MIN_CORRELATION:
                return f"a photograph's map correlates by {correlation:.3f} only"
    return None


def speedup(exact: Trunk, fast: Trunk, images: Tensor) -> float:
    """How many times as fast the second trunk is, by the shortest of a few alternating runs within `TIMED_S`."""
    shortest = [float("inf"), float("inf")]
    start = time.perf_counter()
    for number in range(ROUNDS):
        if number > 1 and time.perf_counter() - start > TIMED_S:
            break
        for index, trunk in enumerate((exact, fast)):
            before = time.perf_counter()
            with torch.no_grad():
                trunk(images)
            if images.is_cuda:
                torch.cuda.synchronize(images.device)
            shortest[index] = min(shortest[index], time.perf_counter() - before)
    return shortest[0] / shortest[1]


def _correlation(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Pearson's correlation; 1 for two constant maps, 0 where only one of them is constant."""
    x, y = (grid.astype(np.float64).ravel() - grid.mean(dtype=np.float64) for grid in (a, b))
    norms = float(np.linalg.norm(x) * np.linalg.norm(y))
    if norms == 0:
        return float(np.array_equal(x, y))
    return float(x @ y) / norms

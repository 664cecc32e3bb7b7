"""Evaluations as plots: which lines there are and what they are called. The pen is imaging's."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from service.engine.types import Evaluation
from service.explain.results import Prediction
from service.imaging.plots import INKS, Axes, Line, plot


def evaluation_curves(evaluation: Evaluation, method: str, prediction: Prediction) -> NDArray[np.uint8]:
    """Deletion and insertion of one explanation beside its baselines, uint8 ``[H, W, 3]``."""
    measured = ((method, evaluation.map), ("random map", evaluation.random), ("map of the centre", evaluation.center))
    own = evaluation.map
    return plot(
        (
            Axes(
                "Deletion: probability of the class, low is good",
                "part of the pixels removed, hottest first",
                tuple(
                    Line(f"{name}: area {one.deletion:.3f}", one.deletion_curve, ink)
                    for (name, one), ink in zip(measured, INKS, strict=False)
                ),
            ),
            Axes(
                "Insertion: probability of the class, high is good",
                "part of the pixels put into the blurred image, hottest first",
                tuple(
                    Line(f"{name}: area {one.insertion:.3f}", one.insertion_curve, ink)
                    for (name, one), ink in zip(measured, INKS, strict=False)
                ),
            ),
        ),
        title=f"{prediction.label}  {prediction.probability:.1%}",
        note=f"average drop {own.average_drop:.3f} (random {evaluation.random.average_drop:.3f}, centre "
        f"{evaluation.center.average_drop:.3f}), ROAD {own.road:+.3f} (random {evaluation.random.road:+.3f}, centre "
        f"{evaluation.center.road:+.3f})",
    )

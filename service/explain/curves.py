"""Evaluations as plots: which curves there are and what they are called. How they are drawn is imaging's."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from service.engine.types import Evaluation, Faithfulness
from service.explain.results import Prediction
from service.imaging.plots import GREY, OKABE_ITO, Color, Curve, CurveChart, LineStyle, plot_curves


def evaluation_curves(evaluation: Evaluation, method: str, prediction: Prediction) -> NDArray[np.uint8]:
    """Deletion and insertion of one explanation beside its baselines, uint8 ``[H, W, 3]`` RGB."""
    own, random, center = evaluation.map, evaluation.random, evaluation.center
    lines: tuple[tuple[str, Faithfulness, Color, LineStyle], ...] = (
        (method, own, OKABE_ITO[0], "solid"),
        ("random map", random, GREY, "dashed"),
        ("map of the centre", center, GREY, "dotted"),
    )
    return plot_curves(
        (
            CurveChart(
                title="Deletion: lower is better",
                x_label="fraction of the pixels removed, hottest first",
                y_label="probability of the class",
                curves=tuple(
                    Curve(label=name, note=f"area {one.deletion:.3f}", values=one.deletion_curve, color=color, line_style=style)
                    for name, one, color, style in lines
                ),
            ),
            CurveChart(
                title="Insertion: higher is better",
                x_label="fraction of the pixels put into the blurred image, hottest first",
                y_label="probability of the class",
                curves=tuple(
                    Curve(
                        label=name, note=f"area {one.insertion:.3f}", values=one.insertion_curve, color=color, line_style=style
                    )
                    for name, one, color, style in lines
                ),
            ),
        ),
        title=prediction.label,
        note=f"probability {prediction.probability:.1%}, average drop {own.average_drop:.3f} "
        f"(random {random.average_drop:.3f}, centre {center.average_drop:.3f}), "
        f"ROAD {own.road:+.3f} (random {random.road:+.3f}, centre {center.road:+.3f})",
    )

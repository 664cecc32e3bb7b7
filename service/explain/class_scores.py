"""Logits read with a model's labels, and the classes that a request selects. Knows no image and no map."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.engine.cards.labels import LabelSet
from service.errors import ParameterInvalid
from service.explain.options import Targets
from service.explain.results import Prediction
from service.vocabulary import Activation

DEFAULT_TOP_K = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassSelection:
    """The classes of one image that a request asks for.

    Attributes:
        classes: to explain, in this order.
        best: where `classes` is empty: explain so many of the best classes; 0 only predicts.
        versus: to contrast with, or None.
        listed: predictions in the answer.
    """

    classes: tuple[int, ...]
    best: int
    versus: int | None
    listed: int

    @property
    def count(self) -> int:
        """Explanations asked for."""
        return len(self.classes) or self.best


def select_classes(targets: Targets, labels: LabelSet, *, explain: bool, max_classes: int) -> ClassSelection:
    """Which classes an image's targets mean.

    Args:
        targets: class ids and names.
        labels: of the model.
        explain: False selects none, for predictions only.
        max_classes: most classes of one image.

    Raises:
        ClassNotFound: an id or name that the model does not have.
        ParameterInvalid: more than `max_classes` classes.
    """
    listed = min(targets.top_k or DEFAULT_TOP_K, len(labels))
    if not explain:
        return ClassSelection(classes=(), best=0, versus=None, listed=listed)
    classes = (*map(labels.check, targets.class_id), *map(labels.find, targets.class_name))
    best = 0 if classes else min(targets.top_k or 1, len(labels))
    if max(len(classes), best) > max_classes:
        raise ParameterInvalid(f"class_id, class_name, top_k: at most {max_classes} classes of an image are explained at once.")
    versus = targets.versus
    if isinstance(versus, str):
        versus = labels.find(versus)
    elif versus is not None:
        versus = labels.check(versus)
    return ClassSelection(classes=classes, best=best, versus=versus, listed=listed)


class ClassScores:
    """An image's logits, float32 ``[classes]``, read with the model's labels.

    Args:
        logits: of one image.
        labels: of the model.
        activation: `softmax`: one of the classes is true; `sigmoid`: each is or is not, for itself.
    """

    def __init__(self, logits: NDArray[np.float32], labels: LabelSet, activation: Activation = "softmax") -> None:
        wide = logits.astype(np.float64)
        if activation == "softmax":
            powers = np.exp(wide - wide.max())
            self._probabilities = powers / powers.sum()
        else:
            self._probabilities = np.exp(-np.logaddexp(0, -wide))  # 1 / (1 + exp(-z)) that no z overflows
        self._logits = logits
        self._labels = labels

    def of(self, class_id: int) -> Prediction:
        """What the network says of one class."""
        return Prediction(
            class_id=class_id,
            label=self._labels.label(class_id),
            wordnet_id=self._labels.wordnet_id(class_id),
            probability=float(self._probabilities[class_id]),
            logit=float(self._logits[class_id]),
        )

    def best(self, count: int) -> tuple[Prediction, ...]:
        """The `count` best classes, best first."""
        return tuple(self.of(int(class_id)) for class_id in np.argsort(-self._logits, kind="stable")[:count])

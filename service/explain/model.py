"""One served model: its network, labels, scheduler and cache; and its logits, read with its labels."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import structlog
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from service.engine.batch import EngineRequest
from service.engine.cards.card import Card
from service.engine.cards.labels import LabelSet, fit_labels, read_labels
from service.engine.cards.reference import LABELS_FILE
from service.engine.device import Device
from service.engine.disk_cache import DiskCache
from service.engine.network import Network
from service.engine.runtimes import RuntimeOptions
from service.engine.types import EngineResult, LayerStatisticsResult
from service.errors import ConfigurationError, ParameterInvalid
from service.explain.cache import Cache
from service.explain.options import Targets
from service.explain.results import ClassInfo, ClassList, ModelCheck, ModelIdentity, ModelInfo, Prediction
from service.explain.scheduler import Deadline, Scheduler
from service.settings import Settings
from service.telemetry import Metrics
from service.vocabulary import Activation

START_S = 60.0  # for the first prediction of a model that is warm
DEFAULT_TOP_K = 5

log = structlog.get_logger(__name__)


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
    listed = min(targets.top_k or DEFAULT_TOP_K, len(labels.labels))
    if not explain:
        return ClassSelection(classes=(), best=0, versus=None, listed=listed)
    classes = (*map(labels.check, targets.class_id), *map(labels.find, targets.class_name))
    best = 0 if classes else min(targets.top_k or 1, len(labels.labels))
    if max(len(classes), best) > max_classes:
        raise ParameterInvalid(f"class_id, class_name, top_k: at most {max_classes} classes of an image are explained at once.")
    versus = targets.versus
    if isinstance(versus, str):
        versus = labels.find(versus)
    elif versus is not None:
        versus = labels.check(versus)
    return ClassSelection(classes=classes, best=best, versus=versus, listed=listed)


def list_classes(labels: LabelSet) -> ClassList:
    """Every class of a set of labels, in order of class ids."""
    wordnet_ids = labels.wordnet_ids or (None,) * len(labels)
    return ClassList(
        tuple(
            ClassInfo(class_id=class_id, label=label, wordnet_id=wordnet_id)
            for class_id, (label, wordnet_id) in enumerate(zip(labels.labels, wordnet_ids, strict=True))
        )
    )


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
            label=self._labels.labels[class_id],
            wordnet_id=self._labels.wordnet_ids[class_id] if self._labels.wordnet_ids else None,
            probability=float(self._probabilities[class_id]),
            logit=float(self._logits[class_id]),
        )

    @property
    def probabilities(self) -> NDArray[np.float32]:
        """Of every class, float32 ``[classes]``."""
        return np.asarray(self._probabilities, np.float32)

    def best(self, count: int) -> tuple[Prediction, ...]:
        """The `count` best classes, best first."""
        return tuple(self.of(int(class_id)) for class_id in np.argsort(-self._logits, kind="stable")[:count])


class Model:
    """A network, its labels and its scheduler.

    Attributes:
        scheduler: runs the network; started by `start`, ended by `close`.
        cache: what the network has said.
    """

    def __init__(self, card: Card, network: Network, labels: LabelSet, settings: Settings, metrics: Metrics) -> None:
        self.card = card
        self.network = network
        self.labels = labels
        self.max_batch_size = card.runtime.max_batch_size or settings.max_batch_size
        self.identity = ModelIdentity(
            name=card.name,
            version=network.revision or card.version if card.reference else card.version,
            digest=network.digest,
            precision=network.precision,
            engine=network.engine,
            device=network.device,
        )
        self.cache = Cache(settings.cache_entries, settings.cache_bytes)
        self.scheduler: Scheduler[EngineRequest, EngineResult] = Scheduler(
            network.run,
            name=card.name,
            metrics=metrics,
            max_batch_size=self.max_batch_size,
            max_queue_size=settings.max_queue_size,
            max_delay_s=settings.max_queue_delay_ms / 1000,
            workers=settings.replicas,
        )

    @classmethod
    def load(cls, card: Card, device: Device, settings: Settings, metrics: Metrics) -> Model:
        """Loads, exports and warms; blocks for seconds.

        Raises:
            ConfigurationError: the card cannot be fulfilled.
        """
        labels = read_labels(card)  # before the network, for a file that is missing is found in no time
        options = RuntimeOptions(
            engine=settings.engine, precision=settings.precision, threads=settings.engine_threads, calls=settings.replicas
        )
        cache = DiskCache(settings.cache_dir)
        network = Network.load(card, device, options, random_weights=settings.random_weights, cache=cache)
        if network.classes == 1 and network.activation == "softmax":
            raise ConfigurationError(
                f"card {card.name}: labels.activation: the network has one logit, of which a softmax makes 1 whatever it sees; "
                "say sigmoid, and give two labels: what a low logit means, and what a high one means"
            )
        labels = labels or _source_labels(card, network)
        if len(labels) != network.classes:
            raise ConfigurationError(
                f"card {card.name}: labels: there are {len(labels)} labels, but the network has {network.classes} classes"
            )
        model = cls(card, network, labels, settings, metrics)
        network.warm([1, model.max_batch_size])
        return model

    async def start(self) -> None:
        """Starts the workers and sends one prediction through; ends them again if it fails."""
        await self.scheduler.start()
        preprocessing = self.network.preprocessing
        blank = np.zeros((preprocessing.height, preprocessing.width, 3), np.uint8)
        deadline = Deadline(START_S)
        try:
            async with deadline.enforce():
                await self.scheduler.fast.submit([EngineRequest(pixels=blank)], deadline)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Answers everything accepted, then ends the workers."""
        await self.scheduler.close()

    def scores(self, result: EngineResult | LayerStatisticsResult) -> ClassScores:
        """The logits of a result, read with the model's labels."""
        return ClassScores(result.logits, self.labels, self.network.activation)

    def identity_of(self, results: Sequence[EngineResult | LayerStatisticsResult]) -> ModelIdentity:
        """The model's identity, with what computed these results; images of several sizes may have met several engines."""
        engine, precision = (
            ", ".join(sorted({getattr(result, name) for result in results})) for name in ("engine", "precision")
        )
        return replace(self.identity, engine=engine, precision=precision)

    @functools.cached_property
    def classes(self) -> ClassList:
        """Every class, as predictions name it."""
        return list_classes(self.labels)

    def describe(self) -> ModelInfo:
        """What `GET /models/{model}` tells of a loaded model; the state is the registry's to say."""
        preprocessing = self.network.preprocessing
        return ModelInfo(
            name=self.card.name,
            version=self.identity.version,
            description=self.card.description,
            reference=self.card.reference,
            revision=self.network.revision,
            state="ready",
            error=None,
            device=self.network.device,
            precision=self.network.precision,
            engine=self.network.engine,
            input_size=(preprocessing.height, preprocessing.width),
            classes=self.network.classes,
            default_layer=self.network.default_layers,
            layers=tuple(self.network.layers.values()),
            methods=self.network.methods,
            digest=self.network.digest,
            check=_kept_check(self.card, self.network),
        )


def check_path(card: Card) -> Path:
    """Where `camserve check --keep` keeps what it found of a card's model: beside the card."""
    return card.folder / f"{card.name}.check.json"


def _kept_check(card: Card, network: Network) -> ModelCheck | None:
    """What a check found that was kept beside the card; None where there is none, or one of other weights."""
    try:
        check = TypeAdapter(ModelCheck).validate_json(check_path(card).read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        log.warning("check_unreadable", model=card.name, reason=type(error).__name__)
        return None
    return check if check.digest == network.digest else None


def _source_labels(card: Card, network: Network) -> LabelSet:
    """The labels that the source states; numbers, with a warning, where it states none or other than so many."""
    labels = fit_labels(network.labels, network.classes)
    if labels is not network.labels:
        log.warning("no_labels", model=card.name, classes=network.classes, stated=len(network.labels) if network.labels else 0,
                    remedy=f"put {LABELS_FILE} beside the weights, or give ?labels=FILE with the reference")  # fmt: skip
    return labels

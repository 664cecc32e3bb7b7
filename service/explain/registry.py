"""Which models live: reads the cards, loads those asked for once, in parallel, and hands them out by name."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial

import structlog

from service.engine.cards.card import Card
from service.engine.cards.reference import is_reference
from service.engine.cards.repository import read_cards, select_cards
from service.engine.device import prepare_device, release_memory
from service.errors import ConfigurationError, ModelNotFound, ModelUnhealthy, NotReady
from service.explain.model import Model
from service.explain.results import ClassList, ModelInfo
from service.settings import Settings
from service.telemetry import Metrics
from service.vocabulary import ModelState

log = structlog.get_logger(__name__)


class Registry:
    """The cards of the models folder and of references, and the models made of them.

    Attributes:
        startup_models: names of the models that the operator asked for at start; the first is the default model.

    Raises:
        ConfigurationError: a card is bad, or a model is asked for that has none.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._cards, self.startup_models = _find_cards(settings)
        self._states: dict[str, ModelState] = {
            name: "loading" if name in self.startup_models else "available" for name in self._cards
        }
        self._errors: dict[str, str] = {}
        self._models: dict[str, Model] = {}
        self._unloaded: set[str] = set()
        self._changes: dict[str, asyncio.Task[None]] = {}
        for name in self.startup_models:
            self._add_metrics(name)
        if settings.model_name in self._cards and settings.model_name != self.default:
            raise ConfigurationError(
                f"model_name: there is a card {settings.model_name}, and the default model is {self.default}; name it first in "
                "models, or choose another name"
            )

    def __contains__(self, name: object) -> bool:
        """Whether there is a card of that name."""
        return name in self._cards

    @property
    def default(self) -> str:
        """The name of the model that answers where a request names none: the first one asked for at start."""
        return self.startup_models[0]

    def resolve(self, name: str) -> str:
        """The name of the card that a client of another server's protocol means: its own, or the default model's other name.

        Raises:
            ModelNotFound: there is no such card.
        """
        return self._card(self.default if name == self._settings.model_name else name).name

    def is_ready(self, name: str) -> bool:
        """Whether the model of a card is loaded and warm, and its worker alive."""
        return self._alive(name)

    @property
    def ready(self) -> bool:
        """Whether every model asked for at start is loaded and warm, and its worker alive, but for those unloaded since."""
        return all(self._alive(name) for name in self.startup_models if name not in self._unloaded)

    @property
    def failed(self) -> bool:
        """Whether a model asked for at start could not be loaded."""
        return any(self._states[name] == "failed" for name in self.startup_models)

    async def start(self) -> None:
        """Loads every model asked for, each in a thread of its own.

        Raises:
            ConfigurationError: one of them cannot be loaded; which, and why.
        """
        if self._settings.cache_dir is None:
            log.info("disk_cache_off", meaning="every start exports the networks anew; CAMSERVE_CACHE_DIR names a folder")
        await asyncio.gather(*(self._change(name, self._load) for name in self.startup_models))

    async def load(self, name: str) -> None:
        """Loads a model and waits until it is ready. Asked twice at once, it loads once.

        Raises:
            ModelNotFound: there is no such card.
            ModelUnhealthy: it could not be loaded; `describe_one` tells why.
        """
        self._card(name)
        try:
            await self._change(name, self._load)
        except Exception as error:
            log.warning("model_not_loaded", model=name, exc_info=not isinstance(error, ConfigurationError), reason=str(error))
            raise ModelUnhealthy("This model could not be loaded; GET /models tells why.", retry_after_s=5) from error

    async def unload(self, name: str) -> None:
        """Refuses new requests for a model, finishes those it has, and gives its memory back.

        Raises:
            ModelNotFound: there is no such card.
        """
        self._card(name)
        self._unloaded.add(name)
        await self._change(name, self._unload)

    async def close(self) -> None:
        """Answers everything accepted, refuses what comes after, and ends the workers."""
        for change in self._changes.values():
            change.cancel()
        await asyncio.gather(*self._changes.values(), return_exceptions=True)
        await asyncio.gather(*(model.close() for model in self._models.values()))

    def get(self, name: str | None) -> Model:
        """The model of that name, the first one served if None.

        Raises:
            ModelNotFound: there is no such model here.
            NotReady: it is still loading.
            ModelUnhealthy: its worker has died, or it could not be loaded.
        """
        name = self.default if name is None else name
        if self._alive(name):
            return self._models[name]
        match self._states.get(name):
            case "ready":
                raise ModelUnhealthy("This model has stopped working. Try again later.", retry_after_s=5)
            case "failed":
                raise ModelUnhealthy("This model could not be loaded; GET /models tells why.", retry_after_s=5)
            case "loading":
                raise NotReady("This model is still loading. Try again in a moment; GET /readyz tells when.", retry_after_s=2)
            case _:
                raise ModelNotFound(f"No such model is served here. Models served: {', '.join(self._models)}.")

    def list_classes(self, name: str) -> tuple[ClassList, str]:
        """The classes of a model, and the digest of its weights; raises as `get` does."""
        model = self.get(name)
        return model.classes, model.identity.digest

    def describe(self) -> list[ModelInfo]:
        """Every card, those asked for at start first."""
        others = (name for name in self._cards if name not in self.startup_models)
        return [self.describe_one(name) for name in (*self.startup_models, *others)]

    def describe_one(self, name: str) -> ModelInfo:
        """One card and the state of its model.

        Raises:
            ModelNotFound: there is no such card.
        """
        if self._alive(name):
            return self._models[name].describe()
        if self._states.get(name) == "ready":
            return replace(self._models[name].describe(), state="failed", error="It has stopped working; see the log.")
        card = self._card(name)
        return ModelInfo(
            name=card.name,
            version=card.version,
            description=card.description,
            reference=card.reference,
            revision=card.weights.revision,
            state=self._states[name],
            error=self._errors.get(name),
            device=None,
            precision=None,
            engine=None,
            input_size=None,
            classes=None,
            default_layer=card.explain.layer,
            layers=(),
            methods=(),
            digest=f"sha256:{card.weights.sha256}" if card.weights.sha256 else None,
            check=None,
        )

    def _card(self, name: str) -> Card:
        if name not in self._cards:
            raise ModelNotFound(f"There is no such model card. Cards: {', '.join(self._cards)}.")
        return self._cards[name]

    async def _change(self, name: str, change: Callable[[str], Awaitable[None]]) -> None:
        """Waits for a change of a model: joins one of the same kind that runs already, and follows one of another kind.

        A caller who leaves does not end the change.
        """
        before = self._changes.get(name)
        if before is None or before.done() or before.get_name() != change.__name__:
            self._changes[name] = asyncio.create_task(self._after(before, change, name), name=change.__name__)
        await asyncio.shield(self._changes[name])

    @staticmethod
    async def _after(before: asyncio.Task[None] | None, change: Callable[[str], Awaitable[None]], name: str) -> None:
        if before is not None:
            await asyncio.wait([before])
        await change(name)

    async def _load(self, name: str) -> None:
        if self._alive(name):
            return
        self._states[name] = "loading"
        self._errors.pop(name, None)
        self._add_metrics(name)
        card, settings = self._cards[name], self._settings
        loop = asyncio.get_running_loop()
        started = loop.time()
        if settings.random_weights and card.weights.from_hub:
            log.warning("random_weights", model=name, meaning="the answers of this model mean nothing")
        try:
            device = prepare_device(settings.device, settings.engine_threads)
            model = await asyncio.to_thread(Model.load, card, device, settings, self._metrics)
            await model.start()
        except Exception as error:
            self._states[name] = "failed"
            self._errors[name] = str(error) if isinstance(error, ConfigurationError) else "It could not be loaded; see the log."
            raise
        self._models[name] = model
        self._states[name] = "ready"
        self._unloaded.discard(name)
        log.info("model_ready", model=name, seconds=round(loop.time() - started, 2), device=model.network.device)

    async def _unload(self, name: str) -> None:
        self._states[name] = "available"
        self._errors.pop(name, None)
        model = self._models.pop(name, None)
        if model is None:
            return
        await model.close()
        del model
        await asyncio.to_thread(release_memory)
        log.info("model_unloaded", model=name)

    def _add_metrics(self, name: str) -> None:
        self._metrics.model_ready.labels(name).set_function(partial(self._alive, name))
        self._metrics.cache_bytes.labels(name).set_function(partial(self._cache_bytes, name))

    def _cache_bytes(self, name: str) -> int:
        return self._models[name].cache.nbytes if name in self._models else 0

    def _alive(self, name: str) -> bool:
        return self._states.get(name) == "ready" and self._models[name].scheduler.alive


def _find_cards(settings: Settings) -> tuple[dict[str, Card], tuple[str, ...]]:
    """Every card by name, and the names of the models to load at start.

    Without a setting these are the default model, or every model of a folder that does not have it.
    """
    references_only = all(is_reference(name) for name in settings.models)
    has_cards = settings.models_dir.is_dir() and any(settings.models_dir.iterdir())
    cards = {} if references_only and not has_cards else read_cards(settings.models_dir)
    names = settings.models
    if "models" not in settings.model_fields_set and not cards.keys() & set(names):
        names = tuple(cards)
    selected = select_cards(names, cards)
    return cards | selected, tuple(selected)

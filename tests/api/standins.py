"""Honest stand-ins: an explainer that answers without a network, a registry of one model, a raw client."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import httpx
import numpy as np
from fastapi import FastAPI
from starlette.types import Message

from service.api.negotiation import MEDIA_TYPES
from service.api.services import services_of
from service.app import create_app
from service.engine.types import Channel, Histogram
from service.errors import ModelNotFound
from service.explain.cache import CachePolicy, CacheStatus
from service.explain.explainer import Explainer
from service.explain.options import Options
from service.explain.registry import Registry
from service.explain.results import (
    Answer,
    Delivery,
    Encoded,
    Explanation,
    ImageInfo,
    ImageInput,
    ImageResult,
    Inspection,
    LayerInfo,
    LayerStatistics,
    MethodInfo,
    ModelIdentity,
    ModelInfo,
    Prediction,
    Timings,
)
from service.settings import Settings

MODEL = "efficientnet_lite0"


@dataclass
class StandInExplainer:
    """Answers at once, from what it was given alone; remembers what it was asked."""

    calls: list[tuple[tuple[ImageInput, ...], Options, Delivery | None, float]] = field(default_factory=list)
    reuses: list[CachePolicy] = field(default_factory=list)
    source: CacheStatus | None = None
    fail_with: BaseException | None = None
    wait: asyncio.Event | None = None
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: bool = False

    @property
    def subjects(self) -> tuple[ImageInput, ...]:
        return self.calls[-1][0]

    @property
    def options(self) -> Options:
        return self.calls[-1][1]

    @property
    def delivery(self) -> Delivery | None:
        return self.calls[-1][2]

    async def explain(
        self, subjects: Sequence[ImageInput], options: Options, delivery: Delivery, deadline: float, reuse: CachePolicy = "use"
    ) -> Answer:
        self.reuses.append(reuse)
        await self._work(subjects, options, delivery, deadline)
        results = tuple(_result(subject, options) for subject in subjects)
        document = None if delivery == "json" else Encoded(MEDIA_TYPES[delivery], 2, 1, b"an image")
        return Answer(_identity(options), results, Timings(1.0, 0.25, 2.5, 0.5, 4.25), len(subjects), document, self.source)

    async def predict(
        self, subjects: Sequence[ImageInput], options: Options, deadline: float, reuse: CachePolicy = "use"
    ) -> Answer:
        self.reuses.append(reuse)
        await self._work(subjects, options, None, deadline)
        results = tuple(
            ImageResult(one.image, one.predictions, ()) for one in (_result(subject, options) for subject in subjects)
        )
        return Answer(_identity(options), results, Timings(1.0, 0.25, 2.5, 0.0, 3.75), len(subjects))

    async def inspect(self, subjects: Sequence[ImageInput], options: Options, delivery: Delivery, deadline: float) -> Answer:
        await self._work(subjects, options, delivery, deadline)
        results = tuple(_result(subject, options) for subject in subjects)
        inspected = tuple(
            replace(one, explanations=(), inspection=Inspection(one.predictions[0], None, (_layer_view(),))) for one in results
        )
        document = None if delivery == "json" else Encoded(MEDIA_TYPES[delivery], 2, 1, b"a sheet")
        return Answer(_identity(options), inspected, Timings(1.0, 0.25, 2.5, 0.5, 4.25), len(subjects), document)

    def methods(self) -> list[MethodInfo]:
        return [MethodInfo("gradcam", "activations and gradient", "head", ("layer",), "arXiv:1610.02391", "Grad-CAM.")]

    async def _work(self, subjects: Sequence[ImageInput], options: Options, delivery: Delivery | None, deadline: float) -> None:
        self.calls.append((tuple(subjects), options, delivery, deadline))
        self.asked.set()
        if self.fail_with is not None:
            raise self.fail_with
        if self.wait is not None:
            try:
                await self.wait.wait()
            except asyncio.CancelledError:
                self.cancelled = True
                raise


class StandInRegistry:
    """One model, ready unless told otherwise."""

    failed = False

    def __init__(self, *, ready: bool = True) -> None:
        self.ready = ready

    def __contains__(self, name: object) -> bool:
        return name == MODEL

    def describe(self) -> list[ModelInfo]:
        layers = (LayerInfo("bn2", 1280, (7, 7)),)
        return [
            ModelInfo(
                MODEL, "1", "A model.", "ready", None, "cpu", "fp32", "torch", (224, 224), 1000, ("bn2",), layers, ("gradcam",),
                "sha256:00",
            )
        ]  # fmt: skip

    def describe_one(self, name: str) -> ModelInfo:
        for info in self.describe():
            if info.name == name:
                return info
        raise ModelNotFound("There is no such model. GET /models lists them.")


def _identity(options: Options) -> ModelIdentity:
    return ModelIdentity(options.model or MODEL, "1", "sha256:00", "fp32", "torch", "cpu")


def _result(subject: ImageInput, options: Options) -> ImageResult:
    image = ImageInfo(451, 300, "png", hashlib.sha256(subject.data).hexdigest())
    tiger_cat = Prediction(282, "tiger cat", "n02123159", 0.39, 9.1)
    named = [Prediction(index, f"class {index}, élan", None, 0.25, 1.5) for index in subject.targets.class_id]
    png = Encoded("image/png", 451, 300, b"\x89PNG heat")
    explanations = tuple(
        Explanation(
            prediction, None, options.method, options.layer or ("bn2",), options.polarity, options.scale, 0.0, 3.1, False,
            (7, 7), (75, 0, 375, 300), png if options.heatmap == "png" else None, png if options.overlay else None,
        )
        for prediction in named or [tiger_cat]
    )  # fmt: skip
    return ImageResult(image, (tiger_cat,), explanations)


def _layer_view() -> LayerStatistics:
    histogram = Histogram((-1.0, 0.0, 1.0), (3, 4))
    return LayerStatistics(
        "bn2", (8, 7, 7), 0.0, 0.5, 3.0, histogram, histogram, (Channel(5, -0.5, 0.25),), np.zeros((1, 7, 7), np.float32)
    )


def make_app(
    explainer: StandInExplainer, registry: StandInRegistry | None = None, *, serving: bool = True, **settings: Any
) -> FastAPI:
    """An app whose lifespan need not run; `serving=False` leaves it starting."""
    app = create_app(Settings(**settings))
    stand_ins = replace(
        services_of(app), explainer=cast("Explainer", explainer), registry=cast("Registry", registry or StandInRegistry())
    )
    stand_ins.install(app)
    if serving:
        stand_ins.lifecycle.serve()
    return app


def client_of(app: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://camserve")


@dataclass
class Reply:
    """What an application sent."""

    messages: list[Message] = field(default_factory=list)
    received: int = 0

    @property
    def status(self) -> int | None:
        return next((message["status"] for message in self.messages if message["type"] == "http.response.start"), None)

    @property
    def headers(self) -> dict[str, str]:
        start = next(message for message in self.messages if message["type"] == "http.response.start")
        return {name.decode(): value.decode() for name, value in start["headers"]}

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages)


async def speak(
    app: FastAPI,
    chunks: Iterable[bytes] = (),
    *,
    path: str = "/explain",
    headers: dict[str, str] | None = None,
    left: asyncio.Event | None = None,
    complete: bool = True,
) -> Reply:
    """One POST in raw ASGI, chunk by chunk; the client leaves when `left` is set, after a body that may be incomplete."""
    reply = Reply()
    body = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    rest = iter([*body, {"type": "http.request", "body": b"", "more_body": False}] if complete else body)

    async def receive() -> Message:
        reply.received += 1
        for message in rest:
            return message
        await (left or asyncio.Event()).wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        reply.messages.append(message)

    encoded = [(name.lower().encode(), value.encode("latin-1")) for name, value in (headers or {}).items()]
    path, _, query = path.partition("?")
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http", "path": path,
        "raw_path": path.encode(), "query_string": query.encode(), "root_path": "", "headers": encoded,
        "client": ("192.0.2.1", 1), "server": ("camserve", 80), "state": {},
    }  # fmt: skip
    await app(scope, receive, send)
    return reply

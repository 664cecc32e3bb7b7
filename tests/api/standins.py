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

from service.api.responses import MEDIA_TYPES
from service.api.dependencies import services_of
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
        document = (
            None if delivery == "json" else Encoded(media_type=MEDIA_TYPES[delivery], width=2, height=1, data=b"an image")
        )
        return Answer(
            model=_identity(options),
            results=results,
            timings=Timings(decode=1.0, queue=0.25, infer=2.5, render=0.5, total=4.25),
            batch_size=len(subjects),
            document=document,
            cache=self.source,
        )

    async def predict(
        self, subjects: Sequence[ImageInput], options: Options, deadline: float, reuse: CachePolicy = "use"
    ) -> Answer:
        self.reuses.append(reuse)
        await self._work(subjects, options, None, deadline)
        results = tuple(
            ImageResult(image=one.image, predictions=one.predictions, explanations=())
            for one in (_result(subject, options) for subject in subjects)
        )
        return Answer(
            model=_identity(options),
            results=results,
            timings=Timings(decode=1.0, queue=0.25, infer=2.5, render=0.0, total=3.75),
            batch_size=len(subjects),
        )

    async def inspect(self, subjects: Sequence[ImageInput], options: Options, delivery: Delivery, deadline: float) -> Answer:
        await self._work(subjects, options, delivery, deadline)
        results = tuple(_result(subject, options) for subject in subjects)
        inspected = tuple(
            replace(one, explanations=(), inspection=Inspection(one.predictions[0], None, (_layer_view(),))) for one in results
        )
        document = None if delivery == "json" else Encoded(media_type=MEDIA_TYPES[delivery], width=2, height=1, data=b"a sheet")
        return Answer(
            model=_identity(options),
            results=inspected,
            timings=Timings(decode=1.0, queue=0.25, infer=2.5, render=0.5, total=4.25),
            batch_size=len(subjects),
            document=document,
        )

    def methods(self) -> list[MethodInfo]:
        return [
            MethodInfo(
                name="gradcam",
                family="activations and gradient",
                cost="head",
                options=("layer",),
                paper="arXiv:1610.02391",
                summary="Grad-CAM.",
            )
        ]

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
        layers = (LayerInfo(name="bn2", channels=1280, grid=(7, 7)),)
        return [
            ModelInfo(
                name=MODEL, version="1", description="A model.", state="ready", error=None, device="cpu", precision="fp32", engine="torch", input_size=(224, 224), classes=1000, default_layer=("bn2",), layers=layers, methods=("gradcam",),
                digest="sha256:00",
            )
        ]  # fmt: skip

    def describe_one(self, name: str) -> ModelInfo:
        for info in self.describe():
            if info.name == name:
                return info
        raise ModelNotFound("There is no such model. GET /models lists them.")


def _identity(options: Options) -> ModelIdentity:
    return ModelIdentity(
        name=options.model or MODEL, version="1", digest="sha256:00", precision="fp32", engine="torch", device="cpu"
    )


def _result(subject: ImageInput, options: Options) -> ImageResult:
    image = ImageInfo(width=451, height=300, format="png", sha256=hashlib.sha256(subject.data).hexdigest())
    tiger_cat = Prediction(class_id=282, label="tiger cat", wordnet_id="n02123159", probability=0.39, logit=9.1)
    named = [
        Prediction(class_id=index, label=f"class {index}, élan", wordnet_id=None, probability=0.25, logit=1.5)
        for index in subject.targets.class_id
    ]
    png = Encoded(media_type="image/png", width=451, height=300, data=b"\x89PNG heat")
    explanations = tuple(
        Explanation(
            prediction=prediction, versus=None, method=options.method, layer=options.layer or ("bn2",), polarity=options.polarity, scale=options.scale, raw_min=0.0, raw_max=3.1, blank=False,
            grid=(7, 7), region=(75, 0, 375, 300), heatmap=png if options.heatmap == "png" else None, overlay=png if options.overlay else None,
        )
        for prediction in named or [tiger_cat]
    )  # fmt: skip
    return ImageResult(image=image, predictions=(tiger_cat,), explanations=explanations)


def _layer_view() -> LayerStatistics:
    histogram = Histogram((-1.0, 0.0, 1.0), (3, 4))
    return LayerStatistics(
        layer="bn2",
        shape=(8, 7, 7),
        activation_min=0.0,
        activation_mean=0.5,
        activation_max=3.0,
        gradients=histogram,
        weights=histogram,
        strongest=(Channel(5, -0.5, 0.25),),
        maps=np.zeros((1, 7, 7), np.float32),
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

"""Honest stand-ins: an explainer that answers without a network, a registry of one model, a raw client."""

from __future__ import annotations

import asyncio
import hashlib
from base64 import b64encode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import httpx
from fastapi import FastAPI
from starlette.types import Message

from service.api.dependencies import services_of
from service.app import create_app
from service.engine.types import Channel, Histogram, LayerInfo, LayerStatistics
from service.errors import ModelNotFound
from service.explain.explainer import Explainer
from service.explain.options import ExplainOptions, InspectOptions
from service.explain.plan import ImageInput
from service.explain.registry import Registry
from service.explain.results import (
    Answer,
    ClassInfo,
    ClassList,
    EncodedMedia,
    ExplainResult,
    Explanation,
    ImageInfo,
    Inspection,
    InspectResult,
    Media,
    MethodInfo,
    ModelIdentity,
    ModelInfo,
    Prediction,
    PredictResult,
    Timings,
)
from service.explain.scheduler import Deadline
from service.settings import Settings
from service.vocabulary import MEDIA_TYPES, CachePolicy, CacheStatus, Delivery

MODEL = "efficientnet_lite0"
ADMIN_KEY = "a" * 32
TIGER_CAT: dict[str, Any] = {
    "class_id": 282, "label": "tiger cat", "wordnet_id": "n02123159", "probability": 0.39, "logit": 9.1,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Call:
    """What the explainer was asked; `delivery` is None for predictions, `policy` where nothing is cached."""

    images: tuple[ImageInput, ...]
    options: ExplainOptions | InspectOptions
    deadline: Deadline
    delivery: Delivery | None = None
    policy: CachePolicy | None = None
    request_id: str | None = None


@dataclass
class StandInExplainer:
    """Answers at once, from what it was given alone; remembers what it was asked."""

    calls: list[Call] = field(default_factory=list)
    cache: CacheStatus | None = None
    fail_with: BaseException | None = None
    wait: asyncio.Event | None = None
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: bool = False

    @property
    def images(self) -> tuple[ImageInput, ...]:
        return self.calls[-1].images

    @property
    def options(self) -> ExplainOptions:
        options = self.calls[-1].options
        assert isinstance(options, ExplainOptions)
        return options

    @property
    def delivery(self) -> Delivery | None:
        return self.calls[-1].delivery

    async def explain(
        self,
        images: Sequence[ImageInput],
        options: ExplainOptions,
        delivery: Delivery,
        deadline: Deadline,
        policy: CachePolicy = "use",
        request_id: str | None = None,
    ) -> Answer:
        await self._work(
            Call(
                images=tuple(images),
                options=options,
                deadline=deadline,
                delivery=delivery,
                policy=policy,
                request_id=request_id,
            )
        )
        results = tuple(_explain_result(image, options) for image in images)
        return replace(_answer(options, results), media=_media(delivery, b"an image"), cache=self.cache)

    async def predict(
        self, images: Sequence[ImageInput], options: ExplainOptions, deadline: Deadline, policy: CachePolicy = "use"
    ) -> Answer:
        await self._work(Call(images=tuple(images), options=options, deadline=deadline, policy=policy))
        results = tuple(PredictResult(image=_image_info(image), predictions=(Prediction(**TIGER_CAT),)) for image in images)
        answer = _answer(options, results)
        return replace(answer, timings=replace(answer.timings, render=0.0, total=3.75))

    async def inspect(
        self,
        images: Sequence[ImageInput],
        options: InspectOptions,
        delivery: Delivery,
        deadline: Deadline,
        request_id: str | None = None,
    ) -> Answer:
        await self._work(
            Call(images=tuple(images), options=options, deadline=deadline, delivery=delivery, request_id=request_id)
        )
        inspection = Inspection(**TIGER_CAT, versus=None, layers=(_layer_statistics(),))
        results = tuple(
            InspectResult(image=_image_info(image), predictions=(Prediction(**TIGER_CAT),), inspection=inspection)
            for image in images
        )
        return replace(_answer(options, results), media=_media(delivery, b"a sheet"))

    def methods(self) -> list[MethodInfo]:
        return [
            MethodInfo(
                name="gradcam",
                family="activations and gradient",
                cost="head",
                passes=1,
                raw_unit="logit",
                options=("layer",),
                paper="arXiv:1610.02391",
                summary="Grad-CAM.",
            )
        ]

    async def _work(self, call: Call) -> None:
        self.calls.append(call)
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

    @property
    def default(self) -> str:
        return MODEL

    def resolve(self, name: str) -> str:
        return self.describe_one(name).name

    def is_ready(self, name: str) -> bool:
        return self.ready and name == MODEL

    def describe(self) -> list[ModelInfo]:
        layers = (LayerInfo(name="bn2", channels=1280, grid=(7, 7), layout="nchw"),)
        return [
            ModelInfo(
                name=MODEL, version="1", description="A model.", reference=None, revision=None, state="ready", error=None,
                device="cpu", precision="fp32",
                engine="torch", input_size=(224, 224), classes=1000, default_layer=("bn2",), layers=layers,
                methods=("gradcam",), digest="sha256:00", check=None,
            )
        ]  # fmt: skip

    def list_classes(self, name: str) -> tuple[ClassList, str]:
        digest = self.describe_one(name).digest
        assert digest is not None
        return ClassList((ClassInfo(class_id=0, label="tench", wordnet_id="n01440764"),)), digest

    def describe_one(self, name: str) -> ModelInfo:
        for info in self.describe():
            if info.name == name:
                return info
        raise ModelNotFound("There is no such model. GET /models lists them.")


def _answer(options: ExplainOptions | InspectOptions, results: tuple[PredictResult, ...]) -> Answer:
    return Answer(
        model=ModelIdentity(
            name=options.model or MODEL, version="1", digest="sha256:00", precision="fp32", engine="torch", device="cpu"
        ),
        results=results,
        timings=Timings(decode=1.0, queue=0.25, infer=2.5, evaluate=0.0, render=0.5, total=4.25),
        batch_size=len(results),
    )


def _media(delivery: Delivery, data: bytes) -> Media | None:
    return None if delivery == "json" else Media(media_type=MEDIA_TYPES[delivery], width=2, height=1, data=data)


def _image_info(image: ImageInput) -> ImageInfo:
    assert isinstance(image.data, bytes)
    return ImageInfo(width=451, height=300, format="png", sha256=hashlib.sha256(image.data).hexdigest())


def _explain_result(image: ImageInput, options: ExplainOptions) -> ExplainResult:
    named: list[dict[str, Any]] = [
        {"class_id": index, "label": f"class {index}, élan", "wordnet_id": None, "probability": 0.25, "logit": 1.5}
        for index in image.targets.class_id
    ]
    png = EncodedMedia(media_type="image/png", width=451, height=300, b64=b64encode(b"\x89PNG heat").decode())
    explanations = tuple(
        Explanation(
            **prediction, versus=None, method=options.method, layer=options.layer or ("bn2",), polarity=options.polarity,
            scale=options.scale, raw_min=0.0, raw_max=3.1, raw_unit="logit", blank=False, grid=(7, 7), region=(75, 0, 375, 300),
            heatmap=png if options.heatmap == "png" else None, overlay=png if options.overlay else None, evaluation=None,
        )
        for prediction in named or [TIGER_CAT]
    )  # fmt: skip
    return ExplainResult(image=_image_info(image), predictions=(Prediction(**TIGER_CAT),), explanations=explanations)


def _layer_statistics() -> LayerStatistics:
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

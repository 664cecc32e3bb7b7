"""One request's way: decode, find the classes, ask the network, draw. HTTP and the command line both come here."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from service.engine.methods import METHODS
from service.engine.types import EngineResult, Evaluation
from service.errors import DeadlineExceeded, ImageError, Overloaded, ParameterInvalid
from service.explain.cache import CachePolicy, CacheResult, CacheStatus, worst
from service.explain.calls import BatchResult
from service.explain.inspection import draw_inspection, inspections
from service.explain.options import Options
from service.explain.plan import Plan
from service.explain.preprocess import PreparedImage, check_effort, see
from service.explain.registry import Registry
from service.explain.render import RenderedImage, document, draw, measure
from service.explain.results import Answer, Delivery, Encoded, ImageInput, MethodInfo, Timings
from service.imaging.headers import Limits
from service.settings import Settings
from service.telemetry import Metrics

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class InferenceResult:
    """What the network said of each image, how that is drawn, and where it came from, if it may be remembered."""

    done: Sequence[BatchResult[Any]]
    drawing: Sequence[Callable[[], RenderedImage]]
    status: CacheStatus | None = None


Ask = Callable[[Plan, Sequence[PreparedImage], float, threading.Event], Awaitable[InferenceResult]]


class Explainer:
    """Answers requests with the models of a registry.

    Args:
        registry: the models.
        settings: limits.
        codecs: threads that decode and draw, so that the event loop never does.
        metrics: told the time of every stage.
    """

    def __init__(self, registry: Registry, settings: Settings, codecs: Executor, metrics: Metrics) -> None:
        self._registry = registry
        self._settings = settings
        self._limits = Limits(max_pixels=settings.max_image_pixels)
        self._codecs = codecs
        self._metrics = metrics
        self._decoding = 0

    async def explain(
        self, subjects: Sequence[ImageInput], options: Options, delivery: Delivery, deadline: float, reuse: CachePolicy = "use"
    ) -> Answer:
        """Explains every subject.

        Args:
            subjects: images with their classes.
            options: what is asked of all of them.
            delivery: json, or one image or array for the whole answer.
            deadline: in the event loop's time.
            reuse: of what the network has said of the same before.

        Raises:
            CamserveError: the child that says what is wrong.
        """
        plan = self._plan(subjects, options, delivery, reuse, explain=True)
        plan.check_delivery()
        return await self._answer(plan, deadline, self._explained)

    async def inspect(self, subjects: Sequence[ImageInput], options: Options, delivery: Delivery, deadline: float) -> Answer:
        """Looks into layers for one class of every subject; as `explain`, without explanations. Nothing is remembered."""
        plan = self._plan(subjects, options, delivery, "off", explain=True)
        plan.check_inspection()
        return await self._answer(plan, deadline, self._inspected)

    async def predict(
        self, subjects: Sequence[ImageInput], options: Options, deadline: float, reuse: CachePolicy = "use"
    ) -> Answer:
        """Predicts every subject; as `explain`, without explanations: the options that shape one are only checked."""
        return await self._answer(self._plan(subjects, options, "json", reuse, explain=False), deadline, self._explained)

    def methods(self) -> list[MethodInfo]:
        """Every explanation method."""
        return [
            MethodInfo(name=m.name, family=m.family, cost=m.cost, options=m.parameters, paper=m.paper, summary=m.summary)
            for m in METHODS.values()
        ]

    def _plan(
        self, subjects: Sequence[ImageInput], options: Options, delivery: Delivery, reuse: CachePolicy, *, explain: bool
    ) -> Plan:
        """Everything that can be known, and refused, before a byte is decoded."""
        model = self._registry.get(options.model)
        method = model.network.method(options.method)
        parameters = method.resolve_parameters(options.parameters)
        model.network.check_layers(options.layer)
        if options.layer and not method.layered:
            raise ParameterInvalid(f"layer: {method.name} explains the whole network, not a layer. Leave it out.")
        most = self._settings.max_classes_per_image
        wanted = tuple(model.wanted(subject.targets, explain=explain, most=most) for subject in subjects)
        return Plan(
            model=model,
            method=method if explain else METHODS["gradcam"],
            parameters=parameters,
            subjects=tuple(subjects),
            wanted=wanted,
            options=options,
            delivery=delivery,
            reuse=reuse,
        )

    async def _answer(self, plan: Plan, deadline: float, ask: Ask) -> Answer:
        model, options = plan.model, plan.options
        clock = time.perf_counter  # finer than uvloop's, which ticks in milliseconds
        started = clock()
        abandoned = threading.Event()
        try:
            async with model.in_use(), asyncio.timeout_at(deadline):
                plan.check_time(deadline - asyncio.get_running_loop().time())
                with self._admitted(plan):
                    seen = await self._decode(plan)
                decoded = clock()
                check_effort(seen, plan.wanted, options, plan.delivery)
                asked = await ask(plan, seen, deadline, abandoned)
                inferred = clock()
                drawn, whole = await self._drawn(asked.drawing, options, plan.delivery)
        except TimeoutError:
            raise DeadlineExceeded("The answer was not ready in time. Try again, with fewer images or classes.") from None
        finally:
            abandoned.set()
        queue, infer = max(item.queued_s for item in asked.done), max(item.ran_s for item in asked.done)
        stages = {"decode": decoded - started, "queue": queue, "infer": infer, "render": clock() - inferred}
        for stage, seconds in stages.items():
            self._metrics.stage_seconds.labels(stage).observe(seconds)
        self._metrics.images.labels(model.card.name).inc(len(plan.subjects))
        milliseconds = {stage: 1000 * seconds for stage, seconds in stages.items()}
        return Answer(
            model=model.identity_of([item.value for item in asked.done]),
            results=tuple(image.result for image in drawn),
            timings=Timings(**milliseconds, total=1000 * (clock() - started)),
            batch_size=max(item.batch_size for item in asked.done),
            document=whole,
            cache=asked.status,
        )

    async def _explained(
        self, plan: Plan, seen: Sequence[PreparedImage], deadline: float, abandoned: threading.Event
    ) -> InferenceResult:
        """Maps of every image, measured where that is asked for."""
        found = await self._outcomes(plan, seen, deadline, abandoned)
        done = [one.done for one in found]
        measured: list[tuple[Evaluation, ...]] = [()] * len(done)
        if plan.evaluates:
            jobs = [
                partial(measure, image, item.value, plan.model, plan.options, abandoned)
                for image, item in zip(seen, done, strict=True)
            ]
            measured = [item.value for item in await plan.model.aside(jobs, deadline)]
        drawing = [
            partial(draw, image, item.value, asked, plan.model, plan.options, plan.delivery, abandoned, evaluations)
            for image, item, asked, evaluations in zip(seen, done, plan.wanted, measured, strict=True)
        ]
        return InferenceResult(done, drawing, worst(found) if plan.model.cache.enabled else None)

    async def _outcomes(
        self, plan: Plan, seen: Sequence[PreparedImage], deadline: float, abandoned: threading.Event
    ) -> list[CacheResult]:
        """What the network says of every image; it is asked only what it has not said before."""
        works = plan.works(seen, abandoned)

        async def compute(chosen: Sequence[int]) -> list[BatchResult[EngineResult]]:
            return await plan.lane.submit([works[index] for index in chosen], deadline=deadline)

        cache = plan.model.cache
        found = await cache.find(plan.keys(seen, works), compute, plan.reuse)
        if cache.enabled:
            for one in found:
                self._metrics.cache_requests.labels(one.status).inc()
        return found

    async def _inspected(
        self, plan: Plan, seen: Sequence[PreparedImage], deadline: float, abandoned: threading.Event
    ) -> InferenceResult:
        """Layers for every image."""
        jobs = [partial(plan.model.network.inspect, one) for one in inspections(plan, seen, abandoned)]
        done = await plan.model.aside(jobs, deadline)
        drawing = [
            partial(draw_inspection, image, item.value, asked, plan.model, plan.options, plan.delivery)
            for image, item, asked in zip(seen, done, plan.wanted, strict=True)
        ]
        return InferenceResult(done, drawing)

    @contextmanager
    def _admitted(self, plan: Plan) -> Iterator[None]:
        """Refuses early what would find the line full: images being decoded are on their way into it.

        Raises:
            Overloaded: more images wait than may.
        """
        count = len(plan.subjects)
        if self._decoding + plan.lane.depth + count > self._settings.max_queue_size:
            raise Overloaded("Too many images are waiting. Try again later.", retry_after_s=plan.lane.retry_after_s)
        self._decoding += count
        try:
            yield
        finally:
            self._decoding -= count

    async def _decode(self, plan: Plan) -> list[PreparedImage]:
        """Every subject decoded and prepared; the first that cannot be fails the request and says which it was."""
        count = len(plan.subjects)

        async def one(number: int, subject: ImageInput) -> PreparedImage:
            try:
                return await self._in_thread(see, subject.data, self._limits, plan.model, plan.options.fit, plan.drawn)
            except ImageError as error:
                if count == 1:
                    raise
                raise type(error)(f"Image {number} of {count}: {error.detail}") from error

        return await asyncio.gather(*(one(number, subject) for number, subject in enumerate(plan.subjects, 1)))

    async def _drawn(
        self, drawing: Sequence[Callable[[], RenderedImage]], options: Options, delivery: Delivery
    ) -> tuple[Sequence[RenderedImage], Encoded | None]:
        """Every image's part, each in a thread of its own, and the document; of one image both at once, in one thread."""
        if len(drawing) == 1:
            return await self._in_thread(lambda: ((drawn := [drawing[0]()]), document(drawn, options, delivery)))
        parts = await asyncio.gather(*(self._in_thread(one) for one in drawing))
        return parts, await self._in_thread(document, parts, options, delivery)

    async def _in_thread(self, work: Callable[..., T], *args: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._codecs, work, *args)

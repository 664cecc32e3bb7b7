"""One request's way: decode, find the classes, ask the network, draw. HTTP and the command line both come here."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from typing import TypeVar

from service.engine.methods import METHODS
from service.engine.work import Work
from service.errors import DeadlineExceeded, ImageError, NotAcceptable, Overloaded
from service.explain.answer import Answer, Delivery, MethodInfo, Subject, Timings
from service.explain.drawing import document, draw
from service.explain.model import Model, Wanted
from service.explain.options import Options
from service.explain.registry import Registry
from service.explain.seeing import Seen, check_effort, see
from service.imaging.headers import Limits
from service.settings import Settings
from service.telemetry import Metrics

T = TypeVar("T")


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

    async def explain(self, subjects: Sequence[Subject], options: Options, delivery: Delivery, deadline: float) -> Answer:
        """Explains every subject.

        Args:
            subjects: images with their classes.
            options: what is asked of all of them.
            delivery: json, or one picture or array for the whole answer.
            deadline: in the event loop's time.

        Raises:
            CamserveError: the child that says what is wrong.
        """
        model = self._registry.get(options.model)
        model.network.check_method(options.method)
        model.network.check_layers(options.layer)
        most = self._settings.max_classes_per_image
        wanted = [model.wanted(subject.targets, explain=True, most=most) for subject in subjects]
        _check_one_document(wanted, options, delivery)
        return await self._answer(model, subjects, wanted, options, delivery, deadline)

    async def predict(self, subjects: Sequence[Subject], options: Options, deadline: float) -> Answer:
        """Predicts every subject; as `explain`, without explanations: the options that shape one are only checked."""
        model = self._registry.get(options.model)
        model.network.check_method(options.method)
        model.network.check_layers(options.layer)
        options = options.model_copy(update={"layer": ()})
        wanted = [model.wanted(subject.targets, explain=False, most=0) for subject in subjects]
        return await self._answer(model, subjects, wanted, options, "json", deadline)

    def methods(self) -> list[MethodInfo]:
        """Every explanation method."""
        return [MethodInfo(m.name, m.family, m.cost, m.options, m.paper, m.summary) for m in METHODS.values()]

    async def _answer(
        self,
        model: Model,
        subjects: Sequence[Subject],
        wanted: Sequence[Wanted],
        options: Options,
        delivery: Delivery,
        deadline: float,
    ) -> Answer:
        clock = time.perf_counter  # finer than uvloop's, which ticks in milliseconds
        started = clock()
        abandoned = threading.Event()
        try:
            async with asyncio.timeout_at(deadline):
                with self._admitted(model, len(subjects)):
                    seen = await self._decode(model, subjects, options)
                decoded = clock()
                check_effort(seen, wanted, options, delivery)
                works = [
                    Work(image.pixels, asked.classes, asked.best, asked.versus, options.method, options.layer)
                    for image, asked in zip(seen, wanted, strict=True)
                ]
                done = await model.batcher.submit(works, deadline=deadline)
                inferred = clock()
                drawn = await asyncio.gather(
                    *(
                        self._in_thread(draw, image, item.value, asked, model, options, delivery, abandoned)
                        for image, item, asked in zip(seen, done, wanted, strict=True)
                    )
                )
                whole = await self._in_thread(document, drawn, options, delivery) if delivery != "json" else None
        except TimeoutError:
            raise DeadlineExceeded("The answer was not ready in time. Try again, with fewer images or classes.") from None
        finally:
            abandoned.set()
        queue, infer = max(item.queued_s for item in done), max(item.ran_s for item in done)
        stages = {"decode": decoded - started, "queue": queue, "infer": infer, "render": clock() - inferred}
        for stage, seconds in stages.items():
            self._metrics.stage_seconds.labels(stage).observe(seconds)
        self._metrics.images.labels(model.card.name).inc(len(subjects))
        milliseconds = {stage: 1000 * seconds for stage, seconds in stages.items()}
        return Answer(
            model=model.identity,
            results=tuple(image.result for image in drawn),
            timings=Timings(**milliseconds, total=1000 * (clock() - started)),
            batch_size=max(item.batch_size for item in done),
            document=whole,
        )

    @contextmanager
    def _admitted(self, model: Model, count: int) -> Iterator[None]:
        """Refuses early what would find the line full: images being decoded are on their way into it.

        Raises:
            Overloaded: more images wait than may.
        """
        if self._decoding + model.batcher.depth + count > self._settings.max_queue_size:
            raise Overloaded("Too many images are waiting. Try again later.", retry_after_s=model.batcher.retry_after_s)
        self._decoding += count
        try:
            yield
        finally:
            self._decoding -= count

    async def _decode(self, model: Model, subjects: Sequence[Subject], options: Options) -> list[Seen]:
        """Every subject decoded and prepared; the first that cannot be fails the request and says which it was."""
        many = len(subjects) > 1

        async def one(number: int, subject: Subject) -> Seen:
            try:
                return await self._in_thread(see, subject.data, self._limits, model, options.fit)
            except ImageError as error:
                if not many:
                    raise
                raise type(error)(f"Image {number} of {len(subjects)}: {error.detail}") from error

        return await asyncio.gather(*(one(number, subject) for number, subject in enumerate(subjects, 1)))

    async def _in_thread(self, work: Callable[..., T], *args: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._codecs, work, *args)


def _check_one_document(wanted: Sequence[Wanted], options: Options, delivery: Delivery) -> None:
    explanations = sum(len(asked.classes) or asked.best for asked in wanted)
    if delivery == "npy" and len(wanted) > 1:
        raise NotAcceptable("An array answers for one image. Send one image a request, or accept application/json.")
    if delivery in {"png", "jpeg", "webp"} and explanations > 1 and options.overlay_type != "panel":
        raise NotAcceptable(
            f"A picture shows one class of one image, and this request asks for {explanations} explanations. Use "
            "overlay_type=panel for one sheet with a row each, or accept application/json."
        )

"""One request's way: decode, find the classes, ask the network, render. HTTP and the command line both come here."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, TypeVar

from service.engine.batch import GRADCAM, EngineRequest
from service.engine.methods import METHODS
from service.engine.network import Network
from service.engine.types import EngineResult, Evaluation, EvaluationRequest
from service.errors import ImageError, ParameterInvalid
from service.explain.cache import CacheResult, costliest
from service.explain.cells import check_cells
from service.explain.model import ClassSelection, Model, select_classes
from service.explain.options import ExplainOptions, InspectOptions
from service.explain.plan import ImageInput, InspectPlan, Plan
from service.explain.preprocess import PreparedImage, preprocess
from service.explain.registry import Registry
from service.explain.render import (
    MAX_LISTED_VALUES,
    RenderedImage,
    check_output_size,
    combine,
    render_explanations,
    render_heatmaps,
    render_predictions,
)
from service.explain.render_inspection import render_inspection
from service.explain.results import Answer, Media, MethodInfo, Timings
from service.explain.scheduler import BatchResult, Checkpoint, Deadline, Job, Reservation
from service.imaging.headers import Limits
from service.settings import Settings
from service.telemetry import Metrics
from service.tracing import Interval, Tracer
from service.vocabulary import STAGES, CachePolicy, CacheStatus, Delivery, Stage

T = TypeVar("T")

DIGITS: Final = 3  # of milliseconds


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceResult:
    """What the network said of each image, how that is rendered, and where it came from, if anything is cached.

    `evaluation` is the time that measuring explanations took, with its wait; None where none were measured.
    """

    results: Sequence[BatchResult[Any]]
    render: Sequence[Callable[[], RenderedImage]]
    status: CacheStatus | None = None
    evaluation: Interval | None = None


Infer = Callable[[Sequence[PreparedImage]], Awaitable[InferenceResult]]
Combine = Callable[[Sequence[RenderedImage]], Media | None]


class Explainer:
    """Answers requests with the models of a registry.

    Who calls it enforces the deadline that it passes; see `Deadline.enforce`.

    Args:
        registry: the models.
        settings: limits.
        codecs: threads that decode and render, so that the event loop never does.
        metrics: told the time of every stage.
        tracer: told when every stage began and ended.
    """

    def __init__(
        self, registry: Registry, settings: Settings, codecs: Executor, metrics: Metrics, tracer: Tracer | None = None
    ) -> None:
        self._registry = registry
        self._settings = settings
        self._limits = Limits(max_pixels=settings.max_image_pixels)
        self._codecs = codecs
        self._metrics = metrics
        self._tracer = tracer

    async def explain(
        self,
        images: Sequence[ImageInput],
        options: ExplainOptions,
        delivery: Delivery,
        deadline: Deadline,
        policy: CachePolicy = "use",
        request_id: str | None = None,
    ) -> Answer:
        """Explains every image.

        Args:
            images: with their classes.
            options: what is asked of all of them.
            delivery: json, or one image or array for the whole answer.
            deadline: of the request.
            policy: what may be taken from the cache, and kept in it.
            request_id: what images say of the request that asked for them.

        Raises:
            CamserveError: the child that says what is wrong.
        """
        plan = replace(self._plan(images, options, delivery, policy, explain=True), request_id=request_id)
        plan.check_delivery()
        return await self._answer_plan(plan, deadline)

    async def predict(
        self, images: Sequence[ImageInput], options: ExplainOptions, deadline: Deadline, policy: CachePolicy = "use"
    ) -> Answer:
        """Predicts every image; as `explain`, without explanations: the options that shape one are only checked."""
        return await self._answer_plan(self._plan(images, options, "json", policy, explain=False), deadline)

    async def inspect(
        self,
        images: Sequence[ImageInput],
        options: InspectOptions,
        delivery: Delivery,
        deadline: Deadline,
        request_id: str | None = None,
    ) -> Answer:
        """Describes layers for one class of every image; as `explain`, without explanations. Nothing is cached."""
        model = self._registry.get(options.model)
        model.network.check_layers(options.layer)
        selections = self._select_classes(model, images, explain=True)
        plan = InspectPlan(
            model=model,
            images=tuple(images),
            selections=selections,
            options=options,
            delivery=delivery,
            request_id=request_id,
        )
        plan.check()
        async with model.scheduler.admit({"slow": len(images)}, sum(plan.costs), deadline) as reservation:
            infer = partial(self._inspect_layers, plan, deadline, reservation)
            return await self._answer(plan, infer, partial(combine, delivery=delivery, color_map=None, signed=False))

    def methods(self) -> list[MethodInfo]:
        """Every explanation method."""
        return [
            MethodInfo(
                name=method.name,
                family=method.family,
                cost=method.cost,
                passes=method.passes(method.defaults),
                raw_unit=method.raw_unit,
                options=method.parameter_names,
                paper=method.paper,
                summary=method.summary,
            )
            for method in METHODS.values()
        ]

    # Before a byte is decoded -----------------------------------------------------------------------------------------------

    def _plan(
        self,
        images: Sequence[ImageInput],
        options: ExplainOptions,
        delivery: Delivery,
        policy: CachePolicy,
        *,
        explain: bool,
    ) -> Plan:
        """Everything that can be known, and refused, before a byte is decoded."""
        model = self._registry.get(options.model)
        method, parameters = model.network.resolve_method(options.method, options)
        model.network.check_layers(options.layer)
        if options.layer and not method.layered:
            raise ParameterInvalid(f"layer: {method.name} explains the whole network, not a layer. Leave it out.")
        return Plan(
            model=model,
            method=method if explain else GRADCAM,
            parameters=parameters,
            images=tuple(images),
            selections=self._select_classes(model, images, explain=explain),
            options=options,
            delivery=delivery,
            policy=policy,
        )

    def _select_classes(self, model: Model, images: Sequence[ImageInput], *, explain: bool) -> tuple[ClassSelection, ...]:
        most = self._settings.max_classes_per_image
        return tuple(select_classes(image.targets, model.labels, explain=explain, max_classes=most) for image in images)

    # Decode, infer, render --------------------------------------------------------------------------------------------------

    async def _answer_plan(self, plan: Plan, deadline: Deadline) -> Answer:
        options = plan.options
        combined = partial(combine, delivery=plan.delivery, color_map=options.color_map, signed=options.polarity == "both")
        async with plan.model.scheduler.admit(plan.places, plan.slow_passes, deadline) as reservation:
            return await self._answer(plan, partial(self._explain_images, plan, deadline, reservation), combined)

    async def _answer(self, plan: Plan | InspectPlan, infer: Infer, combined: Combine) -> Answer:
        clock = time.perf_counter  # finer than uvloop's, which ticks in milliseconds
        started = clock()
        prepared = await self._decode(plan)
        decoded = clock()
        inference = await infer(prepared)
        inferred = clock()
        rendered, media = await self._render(inference.render, combined)
        results = inference.results
        ran = decoded + max(result.queued_s for result in results)
        intervals: dict[Stage, Interval] = {
            "decode": (started, decoded),
            "queue": (decoded, ran),
            "infer": (ran, ran + max(result.ran_s for result in results)),
            "render": (inferred, clock()),
        }
        if inference.evaluation is not None:
            intervals["evaluate"] = inference.evaluation
        seconds: dict[Stage, float] = {stage: end - start for stage, (start, end) in intervals.items()}
        for stage, duration in seconds.items():
            self._metrics.stage_seconds.labels(stage).observe(duration)
        batch_size = max(result.batch_size for result in results)
        if self._tracer is not None:
            method = plan.method.name if isinstance(plan, Plan) and plan.explains else ""
            of_request: dict[str, str | int] = {"model": plan.model.card.name, "images": len(plan.images)}
            self._tracer.record_stages(intervals, of_request | {"method": method, "batch_size": batch_size})
        self._metrics.images.labels(plan.model.card.name).inc(len(plan.images))
        milliseconds = {stage: round(1000 * seconds.get(stage, 0.0), DIGITS) for stage in STAGES}
        return Answer(
            model=plan.model.identity_of([result.value for result in results]),
            results=tuple(image.result for image in rendered),
            timings=Timings(**milliseconds, total=round(1000 * (clock() - started), DIGITS)),
            batch_size=batch_size,
            media=media,
            cache=inference.status,
            tensors=tuple(image.tensors for image in rendered if image.tensors is not None),
        )

    async def _decode(self, plan: Plan | InspectPlan) -> list[PreparedImage]:
        """Every image decoded and preprocessed; the first that cannot be fails the request and says which it was."""
        count = len(plan.images)
        preprocessing = plan.model.network.preprocessing

        async def decode(number: int, image: ImageInput) -> PreparedImage:
            try:
                return await self._in_thread(preprocess, image.data, self._limits, preprocessing, plan.fit, plan.rendered_size)
            except ImageError as error:
                if count == 1:
                    raise
                raise type(error)(f"Image {number} of {count}: {error.detail}") from error

        return await asyncio.gather(*(decode(number, image) for number, image in enumerate(plan.images, 1)))

    async def _explain_images(
        self, plan: Plan, deadline: Deadline, reservation: Reservation, images: Sequence[PreparedImage]
    ) -> InferenceResult:
        """Logits and maps of every image, measured where that is asked for."""
        check_output_size(images, plan.selections, plan.options, plan.delivery)
        model = plan.model
        found = await self._results(plan, deadline, reservation, images)
        results = [one.result for one in found]
        if plan.options.size == "grid":
            check_cells([result.value for result in results], MAX_LISTED_VALUES)
        evaluations: list[tuple[Evaluation, ...]] = [()] * len(results)
        evaluation: Interval | None = None
        if plan.evaluates:
            started = time.perf_counter()
            jobs = [_evaluation_job(plan, image, result.value) for image, result in zip(images, results, strict=True)]
            measured = await model.scheduler.run_jobs(jobs, deadline, reservation, plan.evaluation_costs)
            evaluations = [result.value for result in measured]
            evaluation = (started, time.perf_counter())
        render = [
            partial(_render_image, plan, deadline, number, image, result.value, selection, measured)
            for number, (image, result, selection, measured) in enumerate(
                zip(images, results, plan.selections, evaluations, strict=True), 1
            )
        ]
        status = costliest(found) if model.cache.enabled else None
        return InferenceResult(results=results, render=render, status=status, evaluation=evaluation)

    async def _results(
        self, plan: Plan, deadline: Deadline, reservation: Reservation, images: Sequence[PreparedImage]
    ) -> list[CacheResult]:
        """What the network says of every image; it is asked only what is not cached."""
        scheduler, network = plan.model.scheduler, plan.model.network
        requests, costs = plan.requests(images), plan.costs

        async def compute(chosen: Sequence[int]) -> list[BatchResult[EngineResult]]:
            asked, needed = [requests[index] for index in chosen], [costs[index] for index in chosen]
            if plan.lane == "slow":
                return await scheduler.run_jobs([_slow_job(network, one) for one in asked], deadline, None, needed)
            return await scheduler.run(asked, deadline, None, needed)

        # A result that is cached, or computed for another request, takes no place in the queue. Once: what is left of the
        # reservation is for the evaluation, which may use the same lane.
        reservation.release(plan.lane, len(images))
        cache = plan.model.cache
        found = await cache.find(plan.keys(images, requests), compute, plan.policy)
        if cache.enabled:
            for one in found:
                self._metrics.cache_requests.labels(one.status).inc()
        return found

    async def _inspect_layers(
        self, plan: InspectPlan, deadline: Deadline, reservation: Reservation, images: Sequence[PreparedImage]
    ) -> InferenceResult:
        """Statistics of layers for every image."""
        model = plan.model
        jobs = [partial(model.network.layer_statistics, request) for request in plan.requests(images)]
        results = await model.scheduler.run_jobs(jobs, deadline, reservation, plan.costs)
        render = [
            partial(
                render_inspection,
                image,
                result.value,
                model.scores(result.value),
                selection,
                plan.options,
                plan.delivery,
                plan.provenance,
            )
            for image, result, selection in zip(images, results, plan.selections, strict=True)
        ]
        return InferenceResult(results=results, render=render)

    async def _render(
        self, render: Sequence[Callable[[], RenderedImage]], combined: Combine
    ) -> tuple[Sequence[RenderedImage], Media | None]:
        """Every image's part, each in a thread of its own, and the whole; of one image both at once, in one thread."""
        if len(render) == 1:
            return await self._in_thread(lambda: ((images := [render[0]()]), combined(images)))
        images = await asyncio.gather(*(self._in_thread(one) for one in render))
        return images, await self._in_thread(combined, images)

    async def _in_thread(self, function: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._codecs, function, *arguments)


def _slow_job(network: Network, request: EngineRequest) -> Job[EngineResult]:
    def run(checkpoint: Checkpoint) -> EngineResult:
        (result,) = network.run([request], [checkpoint])
        if isinstance(result, Exception):
            raise result
        return result

    return run


def _evaluation_job(plan: Plan, image: PreparedImage, result: EngineResult) -> Job[tuple[Evaluation, ...]]:
    """Measures how faithful an image's maps, as they will be rendered, are to the network."""

    def run(checkpoint: Checkpoint) -> tuple[Evaluation, ...]:
        heatmaps = render_heatmaps(image, result, plan.options)
        request = EvaluationRequest(
            pixels=image.pixels,
            classes=result.classes,
            maps=tuple(heatmap.values for heatmap in heatmaps),
            grid=heatmaps[0].grid if heatmaps else (1, 1),
            activation=plan.model.network.activation,
        )
        return plan.model.network.evaluate(request, checkpoint)

    return run


def _render_image(
    plan: Plan,
    deadline: Deadline,
    number: int,
    image: PreparedImage,
    result: EngineResult,
    selection: ClassSelection,
    evaluations: Sequence[Evaluation],
) -> RenderedImage:
    scores = plan.model.scores(result)
    if not plan.explains:
        return render_predictions(image, scores, selection, plan.options)
    return render_explanations(
        image,
        result,
        scores,
        selection,
        plan.options,
        plan.delivery,
        deadline,
        evaluations,
        provenance=plan.provenance,
        number=number,
    )

"""A request of another server's client, asked of the explainer as POST /explain asks: under one deadline, cancelled, logged."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Annotated, Any, Final, TypeVar

from fastapi import Depends, Path
from starlette.requests import Request

from service import errors
from service.api.dependencies import Phase, Services, ServicesDependency, request_log_of
from service.api.openapi import problems
from service.api.problems import PLAIN_MEDIA_TYPE
from service.api.routes import PROBLEMS, cache_policy, cancel_on_disconnect
from service.explain.options import ExplainOptions
from service.explain.plan import ImageInput
from service.explain.results import Answer
from service.explain.scheduler import Deadline
from service.vocabulary import CachePolicy, Delivery

ModelName = Annotated[str, Path(description="Name of a model card, or the other name that setting `model_name` gives it.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Inquiry:
    """What a client asks.

    Attributes:
        images: with their classes.
        options: what is asked of all of them.
        explain: explanations; else predictions alone.
        delivery: json, or one image or array for the whole answer.
        within_s: seconds in which the client wants its answer, where they are fewer than the service's own.
    """

    images: tuple[ImageInput, ...]
    options: ExplainOptions
    explain: bool
    delivery: Delivery = "json"
    within_s: float | None = None


InquiryT = TypeVar("InquiryT", bound=Inquiry)


async def ask(
    request: Request, services: Services, model: str | None, read: Callable[[], Awaitable[InquiryT]]
) -> tuple[InquiryT, Answer]:
    """Reads a request and asks the explainer.

    Args:
        request: its body must not have been read.
        services: of the application.
        model: name of a card that the address means; if None, option `model` names one, or the default model answers.
        read: reads the body; runs within the deadline.

    Raises:
        CamserveError: the child that says what is wrong.
        ClientDisconnect: the client left first.
    """
    log = request_log_of(request.scope)
    log.model = model or ""
    if services.phase is Phase.STARTING:
        raise errors.NotReady("The models are still loading. GET /readyz says when they are ready.", retry_after_s=2)
    deadline = Deadline(services.settings.request_timeout_s)
    async with deadline.enforce():
        inquiry = await read()
        asked = inquiry.options.model
        if model is not None and asked not in (None, model):
            raise errors.ParameterInvalid("model: the address names one already; leave the option out")
        name = model or (services.registry.default if asked is None else services.registry.resolve(asked))
        log.model = name
        own = Deadline(inquiry.within_s) if inquiry.within_s is not None else None
        if own is not None and own.remaining_s < deadline.remaining_s:
            deadline = own
        async with own.enforce() if own is deadline else nullcontext():
            work = explain(services, inquiry, name, deadline, cache_policy(request), log.id)
            answer = await cancel_on_disconnect(request.receive, work)
    log.answer = answer
    return inquiry, answer


async def explain(
    services: Services, inquiry: Inquiry, model: str, deadline: Deadline, policy: CachePolicy, request_id: str
) -> Answer:
    """Asks the explainer what an inquiry asks, of one model."""
    options = inquiry.options.model_copy(update={"model": model})
    if inquiry.explain:
        return await services.explainer.explain(inquiry.images, options, inquiry.delivery, deadline, policy, request_id)
    return await services.explainer.predict(inquiry.images, options, deadline, policy)


async def _card_of_path(request: Request, services: ServicesDependency, model: ModelName) -> str:
    """The name of the card that a path means by `model` and, where it has one, `version`.

    Raises:
        ModelNotFound: there is no such card, or it has another version.
    """
    return find_card(services, model, request.path_params.get("version"))


def find_card(services: Services, model: str, version: str | None) -> str:
    """The name of the card that a client means.

    Args:
        services: of the application.
        model: the card's name, or the other name of the default model.
        version: of the model; None or "" for whichever it has.

    Raises:
        ModelNotFound: there is no such card, or it has another version.
    """
    card = services.registry.resolve(model)
    if version:
        served = services.registry.describe_one(card).version
        # TorchServe calls a model's first version 1.0, KServe and Triton call it 1.
        if version.removesuffix(".0") != served.removesuffix(".0"):
            raise errors.ModelNotFound(f"This model has no such version; it has version {served}.")
    return card


CardName = Annotated[str, Depends(_card_of_path)]


# OpenAPI ----------------------------------------------------------------------------------------------------------------

JSON_BODY: Final = "application/json"
PROTOCOL_TAG: Final = "protocols of other servers"


def documentation(
    summary: str,
    description: str,
    answer: dict[str, Any] | None = None,
    *,
    asks: bool = False,
    problem: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Arguments of a route's decorator.

    Args:
        summary: a few words.
        description: of the answer.
        answer: JSON schema of the answer; none for an answer without a body.
        asks: whether the explainer is asked, so that any of its problems may come.
        problem: JSON schema of a problem; RFC 9457's members if not given.
    """
    found = problems(errors.AuthRequired, errors.AuthInvalid, errors.ModelNotFound, errors.NotReady, errors.ShuttingDown)
    content = {PLAIN_MEDIA_TYPE: {"schema": problem or {"$ref": "#/components/schemas/Problem"}}}
    responses: dict[int | str, dict[str, Any]] = {
        status: {**one, "content": content} for status, one in (PROBLEMS if asks else found).items()
    }
    success: dict[str, Any] = {"description": description}
    if answer is not None:
        success["content"] = {JSON_BODY: {"schema": answer}}
    return {
        "summary": summary,
        "tags": [PROTOCOL_TAG],
        "responses": {200: success} | responses | {"default": {"description": "Another problem.", "content": content}},
    }


def object_schema(**properties: Any) -> dict[str, Any]:
    """JSON schema of an object with these members, all of them required."""
    return {"type": "object", "required": list(properties), "properties": properties}

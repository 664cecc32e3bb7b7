"""One request, in any of its three forms, to the images and options it holds. Knows nothing of answers.

    multipart/form-data            file parts `image` (alias `file`), options as fields
    image/*, octet-stream, none    the body is the image; so it is under the label that `curl --data-binary` puts on any body
    application/json               images in base64 beside the options

Options of the query string go with each form: an option in the body replaces the same option of the query string, an empty
one counts as not given, and only `class_id`, `class_name` and `layer` may be given more than once. Limits are counted while
reading, cheapest check first.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from service.api.dependencies import request_log_of
from service.api.json_body import parse_json_body
from service.api.multipart import FILE_FIELDS, read_form
from service.api.validation import validation_detail
from service.errors import ContentEncodingUnsupported, ContentTypeUnsupported, ImageMissing, ParameterInvalid, PayloadTooLarge
from service.explain.options import ExplainOptions, InspectOptions, Targets
from service.explain.plan import ImageInput
from service.settings import Settings

# curl calls every body a form unless it is told otherwise. What is no image is refused by its bytes, whatever it is called.
RAW_TYPES = ("", "application/octet-stream", "application/x-www-form-urlencoded")

_FIELDS = ExplainOptions.model_fields | InspectOptions.model_fields
REPEATABLE = frozenset({"class_id", "class_name", "layer"})
BOOLEAN = frozenset(name for name, field in _FIELDS.items() if field.annotation in {bool, bool | None})

RawOptions = dict[str, Any]
ModelT = TypeVar("ModelT", bound=BaseModel)
OptionsT = TypeVar("OptionsT", ExplainOptions, InspectOptions)


@dataclass(frozen=True, slots=True)
class Upload(Generic[OptionsT]):
    """What a request asks for: at least one image, each with its classes, and the options they share."""

    images: tuple[ImageInput, ...]
    options: OptionsT


async def read_upload(request: Request, settings: Settings, accepted: type[OptionsT]) -> Upload[OptionsT]:
    """Reads and checks a request.

    Args:
        request: its body must not have been read.
        settings: for the limits.
        accepted: the options that the route accepts.

    Raises:
        RequestError: the form is wrong: 400, 413, 415 or 422 with the code of `api.md`.
        ClientDisconnect: the client left before its body was here.
    """
    refuse_early(request, settings.max_body_bytes)
    query = from_pairs(request.query_params.multi_items())
    declared = content_type(request)
    if declared == "multipart/form-data":
        return await _from_form(request, query, settings, accepted)
    if declared == "application/json":
        return await _from_json(request, query, settings, accepted)
    if declared.startswith("image/") or declared in RAW_TYPES:
        return await _from_raw(request, query, settings, accepted)
    raise ContentTypeUnsupported(
        "Send the image as multipart/form-data with a file part named image, as image/* or application/octet-stream, or "
        "in base64 as application/json."
    )


async def _from_form(request: Request, query: RawOptions, settings: Settings, accepted: type[OptionsT]) -> Upload[OptionsT]:
    async with aclosing(stream(request, settings.max_body_bytes)) as chunks:
        form = await read_form(request.headers, chunks, max_images=settings.max_images_per_request)
    options = parse_options(accepted, query, from_pairs(form.fields))
    for name, _ in form.files:
        if name not in FILE_FIELDS:
            raise ParameterInvalid("A file part has another name than image or file.")
    if not form.files:
        raise ImageMissing("There is no image. Send it as a file part named image: curl -F image=@cat.jpg.")
    return Upload(tuple(ImageInput(data, options) for _, data in form.files), options)


async def _from_json(request: Request, query: RawOptions, settings: Settings, accepted: type[OptionsT]) -> Upload[OptionsT]:
    body = await read(request, settings.max_body_bytes)
    document = parse_json_body(body, max_images=settings.max_images_per_request)
    options = parse_options(accepted, query, from_json(document.options))
    images = (
        ImageInput(data, parse_targets(own, f"images[{index}].", options)) for index, (data, own) in enumerate(document.images)
    )
    return Upload(tuple(images), options)


async def _from_raw(request: Request, query: RawOptions, settings: Settings, accepted: type[OptionsT]) -> Upload[OptionsT]:
    options = parse_options(accepted, query, {})
    body = await read(request, settings.max_body_bytes)
    if not body:
        raise ImageMissing("There is no image: the body is empty. Send the image: curl -F image=@cat.jpg.")
    return Upload((ImageInput(body, options),), options)


def content_type(request: Request) -> str:
    """The declared media type in lower case, without its parameters; "" when there is none."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def refuse_early(request: Request, limit: int) -> None:
    """What the headers alone give away, before a byte of the body is read.

    Args:
        request: whose headers to look at.
        limit: most bytes of a body.

    Raises:
        ContentEncodingUnsupported: the body is compressed; it is never inflated.
        PayloadTooLarge: it says itself that it is too long.
    """
    encodings = request.headers.get("content-encoding", "identity").split(",")
    if any(encoding.strip().lower() not in {"", "identity"} for encoding in encodings):
        raise ContentEncodingUnsupported("Send the body as it is, without Content-Encoding.")
    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and (len(declared) > 18 or int(declared) > limit):
        raise _too_large(limit)


async def stream(request: Request, limit: int) -> AsyncGenerator[bytes, None]:
    """The body's chunks as they come.

    Raises:
        PayloadTooLarge: at the first byte past the limit, whatever the headers said.
        ClientDisconnect: the client left in the middle.
    """
    record = request_log_of(request.scope)
    async with aclosing(request.stream()) as chunks:
        async for chunk in chunks:
            record.bytes_in += len(chunk)
            if record.bytes_in > limit:
                raise _too_large(limit)
            yield chunk


async def read(request: Request, limit: int) -> bytes:
    """The whole body.

    Raises:
        PayloadTooLarge: it is longer than `limit` bytes.
        ClientDisconnect: the client left in the middle.
    """
    body = bytearray()  # not a list: a body may come as millions of chunks of one byte
    async with aclosing(stream(request, limit)) as chunks:
        async for chunk in chunks:
            body += chunk
    return bytes(body)


def _too_large(limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"The body is larger than {limit} bytes, the most that is accepted.")


# Options ------------------------------------------------------------------------------------------------------------------


def from_pairs(pairs: Iterable[tuple[str, str]]) -> RawOptions:
    """Options of a query string or of form fields; a repeated one becomes a list.

    Raises:
        ParameterInvalid: an option that cannot be repeated is.
    """
    given: dict[str, list[str]] = {}
    for name, value in pairs:
        if value:
            given.setdefault(name, []).append(value)
    for name, values in given.items():
        if len(values) > 1 and name in _FIELDS and name not in REPEATABLE:
            raise ParameterInvalid(f"{name}: give it once")
    return {name: values if name in REPEATABLE else values[0] for name, values in given.items()}


def from_json(document: Mapping[str, Any], where: str = "") -> RawOptions:
    """Options of a JSON object; null and "" count as not given.

    Raises:
        ParameterInvalid: true or false where a number or a text belongs, which pydantic would take for 1 or 0.
    """
    given = {name: value for name, value in document.items() if value is not None and value != ""}
    for name, value in given.items():
        values = value if isinstance(value, list) else [value]
        if name in _FIELDS and name not in BOOLEAN and any(isinstance(item, bool) for item in values):
            raise ParameterInvalid(f"{where}{name}: must not be true or false")
    return given


def parse_options(model: type[ModelT], query: RawOptions, body: RawOptions) -> ModelT:
    """Options of the query string and of the body, the body's winning.

    Args:
        model: the options that the route accepts.
        query: of the query string.
        body: of the body.

    Raises:
        ParameterInvalid: names every option that is unknown or wrong, and what it may be.
    """
    return _parse(model, query | body)


def parse_targets(document: Mapping[str, Any], where: str, shared: Targets) -> Targets:
    """An image's own classes over those of the request.

    An image that names classes, by id or by name, is explained for these alone; `versus` and `top_k` replace one for one.

    Args:
        document: the image's JSON object without its bytes.
        where: how to call it in a message, such as `images[0].`.
        shared: the request's targets, its options as a whole.

    Raises:
        ParameterInvalid: as for options.
    """
    own = _parse(Targets, from_json(document, where), where)
    given = own.model_dump(include=own.model_fields_set)
    if not given:
        return shared
    replaced = {"class_id", "class_name"} if given.keys() & {"class_id", "class_name"} else set()
    return Targets.model_validate(shared.model_dump(include=Targets.model_fields.keys() - replaced) | given)


def _parse(model: type[ModelT], raw: Mapping[str, Any], where: str = "") -> ModelT:
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_input=False)
        raise ParameterInvalid(validation_detail(errors, tuple(model.model_fields), where)) from None

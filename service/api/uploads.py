"""One request, in any of its three forms, to the images and options it holds. Knows nothing of answers.

    multipart/form-data            file parts `image` (alias `file`), options as fields
    image/*, octet-stream, none    the body is the image; so it is under the label that `curl --data-binary` puts on any body
    application/json               images in base64 beside the options

Options of the query string go with each form. Limits are counted while reading, cheapest check first.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Generic, TypeVar

from starlette.requests import Request

from service.api import parameters
from service.api.dependencies import request_log_of
from service.api.json_body import parse_json_body
from service.api.multipart import FILE_FIELDS, read_form
from service.errors import ContentEncodingUnsupported, ContentTypeUnsupported, ImageMissing, ParameterInvalid, PayloadTooLarge
from service.explain.options import ExplainOptions, InspectOptions
from service.explain.plan import ImageInput
from service.settings import Settings

# curl calls every body a form unless it is told otherwise. What is no image is refused by its bytes, whatever it is called.
RAW_TYPES = ("", "application/octet-stream", "application/x-www-form-urlencoded")


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
    query = parameters.from_pairs(request.query_params.multi_items())
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


async def _from_form(request: Request, query: parameters.Raw, settings: Settings, accepted: type[OptionsT]) -> Upload[OptionsT]:
    async with aclosing(stream(request, settings.max_body_bytes)) as chunks:
        form = await read_form(request.headers, chunks, max_images=settings.max_images_per_request)
    options = parameters.parse_options(accepted, query, parameters.from_pairs(form.fields))
    for name, _ in form.files:
        if name not in FILE_FIELDS:
            raise ParameterInvalid("A file part has another name than image or file.")
    if not form.files:
        raise ImageMissing("There is no image. Send it as a file part named image: curl -F image=@cat.jpg.")
    return Upload(tuple(ImageInput(data, options) for _, data in form.files), options)


async def _from_json(request: Request, query: parameters.Raw, settings: Settings, accepted: type[OptionsT]) -> Upload[OptionsT]:
    body = await read(request, settings.max_body_bytes)
    document = parse_json_body(body, max_images=settings.max_images_per_request)
    options = parameters.parse_options(accepted, query, parameters.from_json(document.options))
    images = (
        ImageInput(data, parameters.parse_targets(own, f"images[{index}].", options))
        for index, (data, own) in enumerate(document.images)
    )
    return Upload(tuple(images), options)


async def _from_raw(request: Request, query: parameters.Raw, settings: Settings, accepted: type[OptionsT]) -> Upload[OptionsT]:
    options = parameters.parse_options(accepted, query, {})
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

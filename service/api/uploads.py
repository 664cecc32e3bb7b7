"""One request, in any of its three forms, to the images and options it holds. Knows nothing of answers.

    multipart/form-data            file parts `image` (alias `file`), options as fields
    image/*, octet-stream, none    the body is the image; so it is under the label that `curl --data-binary` puts on any body
    application/json               images in base64 beside the options

Options of the query string go with each form. Limits are counted while reading, cheapest check first.
"""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import dataclass
from typing import Generic, TypeVar

from starlette.requests import Request

from service.api import parameters, request_body
from service.api.json_body import parse_json_body
from service.api.multipart import FILE_FIELDS, read_form
from service.errors import ContentTypeUnsupported, ImageMissing, ParameterInvalid
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
    request_body.refuse_early(request, settings.max_body_bytes)
    query = parameters.from_pairs(request.query_params.multi_items())
    declared = request_body.content_type(request)
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
    async with aclosing(request_body.stream(request, settings.max_body_bytes)) as chunks:
        form = await read_form(request.headers, chunks, max_images=settings.max_images_per_request)
    options = parameters.parse_options(accepted, query, parameters.from_pairs(form.fields))
    for name, _ in form.files:
        if name not in FILE_FIELDS:
            raise ParameterInvalid("A file part has another name than image or file.")
    if not form.files:
        raise ImageMissing("There is no image. Send it as a file part named image: curl -F image=@cat.jpg.")
    return Upload(tuple(ImageInput(data, options.targets) for _, data in form.files), options)


async def _from_json(request: Request, query: parameters.Raw, settings: Settings, accepted: type[OptionsT]) -> Upload[OptionsT]:
    body = await request_body.read(request, settings.max_body_bytes)
    document = parse_json_body(body, max_images=settings.max_images_per_request)
    options = parameters.parse_options(accepted, query, parameters.from_json(document.options))
    images = (
        ImageInput(data, parameters.parse_targets(own, f"images[{index}].", options.targets))
        for index, (data, own) in enumerate(document.images)
    )
    return Upload(tuple(images), options)


async def _from_raw(request: Request, query: parameters.Raw, settings: Settings, accepted: type[OptionsT]) -> Upload[OptionsT]:
    options = parameters.parse_options(accepted, query, {})
    body = await request_body.read(request, settings.max_body_bytes)
    if not body:
        raise ImageMissing("There is no image: the body is empty. Send the image: curl -F image=@cat.jpg.")
    return Upload((ImageInput(body, options.targets),), options)

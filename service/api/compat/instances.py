"""`{"instances": [...], "parameters": {...}}`, the JSON of KServe v1, Vertex AI and SageMaker, and the same as a file.

An instance is an image: base64 or a data URI as a text, or an object that holds one under `b64`, `image`, `image_bytes` or
`data`, there again as a text or as `{"b64": ...}`. What else the object holds are options of that image. Options of all images
stand in `parameters`, beside `instances`, or in the query string. `target`, TorchServe's word, is `class_id`.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Final

from starlette.requests import Request

from service.api.compat.exchange import Inquiry
from service.api.json_body import decode_base64, find_images, parse_object
from service.api.multipart import read_form
from service.api.uploads import (
    RawOptions,
    content_type,
    from_json,
    from_pairs,
    parse_options,
    parse_targets,
    read,
    refuse_early,
    stream,
)
from service.errors import ImageMissing, JsonInvalid, ParameterInvalid, RequestError, TooManyImages
from service.explain.options import ExplainOptions, Targets
from service.explain.plan import ImageInput
from service.settings import Settings

IMAGE_KEYS: Final = ("b64", "image", "image_bytes", "data")
PART_NAMES: Final = ("data", "body", "image", "file")
# First bytes of the formats that are decoded. The base64 of such a file starts with /9j, iVBOR, R0lG or UklG, never like this.
MAGICS: Final = (b"\xff\xd8", b"\x89PNG", b"GIF8", b"RIFF")
FLAGS: Final = {"true": True, "1": True, "false": False, "0": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSubmission:
    """What a request holds, before its options are checked.

    Attributes:
        images: as files, with the options that each carries itself.
        options: of the body.
        query: options of the query string.
        has_instances: the images came as `instances`, so that the answer is a list too.
    """

    images: tuple[tuple[bytes, RawOptions], ...]
    options: RawOptions = field(default_factory=dict)
    query: RawOptions = field(default_factory=dict)
    has_instances: bool = False

    def inquire(self, *, explain: bool) -> Inquiry:
        """Checks the options.

        Args:
            explain: whether to explain where option `explain` does not say.

        Raises:
            ParameterInvalid: names what is unknown or wrong.
        """
        query, shared = _with_class_id(self.query), _with_class_id(self.options)
        own = [_with_class_id(options) for _, options in self.images]
        others = [{name: value for name, value in options.items() if name not in Targets.model_fields} for options in own]
        if any(one != others[0] for one in others):
            raise ParameterInvalid(
                "instances: only class_id, class_name, versus and top_k may differ from one image to the next; send the rest "
                "as parameters"
            )
        body = from_json(shared) | from_json(others[0], "instances[0].")
        flags = [options.pop("explain") for options in (query, body) if "explain" in options]
        options = parse_options(ExplainOptions, query, body)
        images = tuple(
            ImageInput(data, parse_targets({name: value for name, value in targets.items() if name in Targets.model_fields},
                                           f"instances[{index}].", options))
            for index, ((data, _), targets) in enumerate(zip(self.images, own, strict=True))
        )  # fmt: skip
        return Inquiry(images=images, options=options, explain=_flag(flags[-1]) if flags else explain)


async def read_instances(request: Request, settings: Settings) -> ImageSubmission:
    """Reads a body that must hold `instances`.

    Raises:
        RequestError: it does not; 400, 413, 415 or 422 with the code of `api.md`.
    """
    refuse_early(request, settings.max_body_bytes)
    query = from_pairs(request.query_params.multi_items())
    document = parse_object(await read(request, settings.max_body_bytes))
    if "instances" not in document:
        raise ImageMissing('There are no instances. Send {"instances": [{"image": {"b64": "<base64>"}}]}.')
    return parse_instances(document, query, settings.max_images_per_request)


async def read_any(request: Request, settings: Settings) -> ImageSubmission:
    """Reads a body of any form: a file, base64, a form with a file part, `instances`, or the JSON of /explain.

    Raises:
        RequestError: it is none of these; 400, 413, 415 or 422 with the code of `api.md`.
    """
    refuse_early(request, settings.max_body_bytes)
    query = from_pairs(request.query_params.multi_items())
    if content_type(request) == "multipart/form-data":
        return await _read_form(request, query, settings)
    body = await read(request, settings.max_body_bytes)
    if not body:
        raise ImageMissing("There is no image: the body is empty. Send the image: curl -T cat.jpg.")
    if not body[:64].lstrip().startswith(b"{"):
        return ImageSubmission(images=((image_bytes(body, "body"), {}),), query=query)
    document = parse_object(body)
    if "instances" in document:
        return parse_instances(document, query, settings.max_images_per_request)
    if "data" in document or "b64" in document:
        return ImageSubmission(images=(_parse_instance(document, "body"),), query=query)
    native = find_images(document, max_images=settings.max_images_per_request)
    return ImageSubmission(images=native.images, options=native.options, query=query)


def parse_instances(document: dict[str, Any], query: RawOptions, max_images: int) -> ImageSubmission:
    """The images and options of an object that has `instances`; the object is used up.

    Raises:
        RequestError: the child that says what is wrong with which instance.
    """
    instances, parameters = document.pop("instances"), document.pop("parameters", None)
    if parameters is not None and not isinstance(parameters, dict):
        raise JsonInvalid("parameters: must be an object of options.")
    if not isinstance(instances, list) or not instances:
        raise ImageMissing('instances: must be a list with at least one image, such as [{"image": {"b64": "<base64>"}}].')
    if len(instances) > max_images:
        raise TooManyImages(f"At most {max_images} images in one request.")
    images = tuple(_parse_instance(one, f"instances[{index}]") for index, one in enumerate(instances))
    return ImageSubmission(images=images, options=document | (parameters or {}), query=query, has_instances=True)


def image_bytes(data: bytes, where: str, *, strict: bool = False) -> bytes:
    """An image's file from bytes that are it, or its base64.

    Args:
        data: the file, or its base64.
        where: how to call it in a message.
        strict: also what is no text must be base64; else it is left for the decoder to say what it cannot read.

    Raises:
        Base64Invalid: the bytes are neither.
    """
    if data.startswith(MAGICS) or not (strict or data.isascii()):
        return data
    return decode_base64(data.decode("latin-1"), where)


def _parse_instance(instance: object, where: str) -> tuple[bytes, RawOptions]:
    if isinstance(instance, str):
        return decode_base64(instance, where), {}
    keys = [key for key in IMAGE_KEYS if key in instance] if isinstance(instance, dict) else []
    if not isinstance(instance, dict) or len(keys) != 1:
        raise ImageMissing(f'{where}: must be one image, such as {{"image": {{"b64": "<base64>"}}}} or a text in base64.')
    value, where = instance.pop(keys[0]), f"{where}.{keys[0]}"
    if isinstance(value, dict):
        if value.keys() != {"b64"}:
            raise ImageMissing(f'{where}: must be a text in base64, or {{"b64": "<base64>"}}.')
        value, where = value["b64"], f"{where}.b64"
    return decode_base64(value, where), instance


async def _read_form(request: Request, query: RawOptions, settings: Settings) -> ImageSubmission:
    """File parts; a text part `data` or `body` is base64, as it is for TorchServe's own handlers."""
    async with aclosing(stream(request, settings.max_body_bytes)) as chunks:
        form = await read_form(request.headers, chunks, max_images=settings.max_images_per_request)
    if any(name not in PART_NAMES for name, _ in form.files):
        raise ParameterInvalid(f"A file part has another name than {', '.join(PART_NAMES)}.")
    files = [image_bytes(data, name) for name, data in form.files]
    files += [decode_base64(value, name) for name, value in form.fields if name in PART_NAMES]
    if not files:
        raise ImageMissing("There is no image. Send it as a file part named data: curl -F data=@cat.jpg.")
    if len(files) > settings.max_images_per_request:
        raise TooManyImages(f"At most {settings.max_images_per_request} images in one request.")
    options = from_pairs((name, value) for name, value in form.fields if name not in PART_NAMES)
    return ImageSubmission(images=tuple((data, {}) for data in files), options=options, query=query)


def _with_class_id(options: Mapping[str, Any]) -> RawOptions:
    """The options with TorchServe's `target` as `class_id`."""
    renamed = dict(options)
    if "target" in renamed:
        if "class_id" in renamed:
            raise ParameterInvalid("target, class_id: give one of the two")
        renamed["class_id"] = renamed.pop("target")
    return renamed


def _flag(value: object) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in FLAGS:
        return FLAGS[value.lower()]
    raise ParameterInvalid("explain: must be true or false")


def attributes(header: str | None, *, longest: int) -> RawOptions:
    """Options written `method=gradcam,class_id=281,285` in a header; what has no `=` continues the value before it.

    Raises:
        RequestError: the header is too long, or starts without a name.
    """
    if not header:
        return {}
    if len(header) > longest or not header.isascii():
        raise RequestError(f"Custom attributes are at most {longest} ASCII characters.")
    pairs: list[tuple[str, str]] = []
    for part in header.split(","):
        name, equals, value = part.partition("=")
        if equals:
            pairs.append((name.strip(), value.strip()))
        elif pairs:
            pairs[-1] = (pairs[-1][0], f"{pairs[-1][1]},{part.strip()}")
        else:
            raise RequestError("Custom attributes are written name=value, with commas: method=gradcam,class_id=281.")
    return from_pairs(pairs)

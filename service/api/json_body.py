"""The JSON form of a request: images in base64 beside the options. Knows no HTTP and never looks into an image."""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from typing import Any

import orjson

from service.errors import Base64Invalid, ImageMissing, JsonInvalid, ParameterInvalid, TooManyImages

DATA_URI = re.compile(r"data:[\w.+-]{0,64}/?[\w.+-]{0,64}(?:;[\w.+=-]{1,64}){0,4};base64,", re.ASCII)


@dataclass(frozen=True, slots=True)
class JsonBody:
    """Images as (bytes, the options that the image carries itself), and the options of the request."""

    images: tuple[tuple[bytes, dict[str, Any]], ...]
    options: dict[str, Any]


def parse_json_body(body: bytes, *, max_images: int) -> JsonBody:
    """Reads `{"images": [{"b64": "..."}], ...options}` or `{"image": "...", ...options}`.

    Args:
        body: UTF-8 JSON.
        max_images: most entries of `images`.

    Raises:
        JsonInvalid: the body is not JSON (NaN, lone surrogates and deep nesting are not), or not an object.
        ImageMissing: there is no image, or where one belongs is something else.
        TooManyImages: more than `max_images`.
        Base64Invalid: an image is not strict base64.
    """
    return find_images(parse_object(body), max_images=max_images)


def parse_object(body: bytes) -> dict[str, Any]:
    """The JSON object that a body is.

    Raises:
        JsonInvalid: the body is not JSON (NaN, lone surrogates and deep nesting are not), or not an object.
    """
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise JsonInvalid('The body is not valid JSON. Send {"image": "<base64>"}, or the image itself as image/*.') from None
    if not isinstance(document, dict):
        raise JsonInvalid('The body must be a JSON object, such as {"image": "<base64>"}.')
    return document


def find_images(document: dict[str, Any], *, max_images: int) -> JsonBody:
    """As `parse_json_body`, of an object that has been read."""
    single = document.pop("image", None)
    several = document.pop("images", None)
    if single is not None and several is not None:
        raise ParameterInvalid("image, images: give one of the two")
    if single is not None:
        images: tuple[tuple[bytes, dict[str, Any]], ...] = ((decode_base64(single, "image"), {}),)
    else:
        images = _parse_images(several, max_images)
    return JsonBody(images, document)


def _parse_images(several: object, limit: int) -> tuple[tuple[bytes, dict[str, Any]], ...]:
    if not isinstance(several, list) or not several:
        raise ImageMissing('There is no image. Send {"images": [{"b64": "<base64>"}]} or {"image": "<base64>"}.')
    if len(several) > limit:
        raise TooManyImages(f"At most {limit} images in one request.")
    images: list[tuple[bytes, dict[str, Any]]] = []
    for index, entry in enumerate(several):
        where = f"images[{index}]"
        if not isinstance(entry, dict):
            raise ImageMissing(f'{where}: must be an object, such as {{"b64": "<base64>"}}.')
        images.append((decode_base64(entry.pop("b64", None), f"{where}.b64"), entry))
    return tuple(images)


def decode_base64(text: object, where: str) -> bytes:
    """Strict base64 of RFC 4648, or a `data:` URI of it; no line breaks, no URL-safe alphabet, padding kept.

    Raises:
        ImageMissing: there is no text.
        Base64Invalid: the text is something else.
    """
    if not isinstance(text, str) or not text:
        raise ImageMissing(f"{where}: must be the image's bytes in base64, as a text.")
    if text.startswith("data:"):
        prefix = DATA_URI.match(text)
        if prefix is None:
            raise Base64Invalid(f"{where}: a data URI must look like data:image/png;base64,...")
        text = text[prefix.end() :]
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Base64Invalid(
            f"{where}: not valid base64. Use the standard alphabet with its padding, without line breaks or spaces."
        ) from None

"""A request's body, counted while it is read, and its declared kind. Knows nothing of what is in it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.requests import Request

from service.api.request_log import request_log_of
from service.errors import ContentEncodingUnsupported, PayloadTooLarge


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

"""API keys: how they come with a request, and whether one is known, told in a time that gives nothing away."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from pydantic import SecretStr
from starlette.datastructures import Headers

from service.errors import AuthInvalid, AuthRequired


class ApiKeySet:
    """A set of keys; false when it is empty."""

    def __init__(self, keys: Sequence[SecretStr]) -> None:
        self._digests = [hashlib.sha256(key.get_secret_value().encode()).digest() for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def open(self, headers: Headers) -> bool:
        """Whether one of the keys came with a request."""
        return any([self._known(key) for key in _given(headers)])  # noqa: C419 # a list: every key is compared, whichever fits

    def _known(self, key: bytes) -> bool:
        # Digests have one length, so the time tells neither a key's length nor how much of it fits.
        digest = hashlib.sha256(key).digest()
        return any([hmac.compare_digest(digest, known) for known in self._digests])  # noqa: C419 # no early exit


def refusal(headers: Headers) -> AuthRequired | AuthInvalid:
    """What a request is told whose keys do not fit, or that has none."""
    if _given(headers):
        return AuthInvalid("This API key is not accepted.")
    return AuthRequired("Send an API key: Authorization: Bearer <key>, or X-API-Key: <key>.")


def _given(headers: Headers) -> list[bytes]:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    keys = [token.strip() if scheme.lower() == "bearer" else "", headers.get("x-api-key", "").strip()]
    return [key.encode("latin-1") for key in keys if key]  # a header's bytes, as Starlette decoded them

"""In which form an answer goes back: Accept and the `format` option to one delivery. Knows nothing of what is in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from service.errors import NotAcceptable
from service.explain.results import ExplainResponse, InspectResponse, PredictResponse
from service.vocabulary import MEDIA_TYPES, Delivery

ALIASES: Final = {"image/jpg": "image/jpeg"}
# What each shape of answer can be sent as, the default first.
OFFERS: Final[dict[type, tuple[Delivery, ...]]] = {
    PredictResponse: ("json",),
    ExplainResponse: ("json", "png", "jpeg", "webp", "npy"),
    InspectResponse: ("json", "png", "jpeg", "webp"),
}


@dataclass(frozen=True, slots=True)
class _Range:
    """One element of an Accept header: `image/*;q=0.5`."""

    kind: str
    subtype: str
    quality: float

    def match(self, media_type: str) -> int:
        """How closely: 0 not at all, 1 `*/*`, 2 `image/*`, 3 exactly."""
        kind, _, subtype = media_type.partition("/")
        if (self.kind, self.subtype) == ("*", "*"):
            return 1
        if self.kind != kind:
            return 0
        return 3 if self.subtype == subtype else 2 * (self.subtype == "*")


def negotiate(accept: str | None, asked: Delivery | None, offers: Sequence[Delivery]) -> Delivery:
    """The delivery that suits the client best.

    RFC 9110: each offer takes the quality of the closest range that matches it. Among equals the more closely named wins, then
    the range that the client wrote first, then the offer that stands first here.

    Args:
        accept: the Accept header; none or empty accepts everything.
        asked: the `format` option, which outweighs the header.
        offers: what the route can send, the default first.

    Raises:
        NotAcceptable: lists what the route can send.
    """
    if asked is not None:
        if asked in offers:
            return asked
        raise _refusal(offers)
    if not (accept or "").strip():
        return offers[0]
    ranges = _parse(accept or "")
    ranked: list[tuple[tuple[float, int, int, int], Delivery]] = []
    for place, offer in enumerate(offers):
        matches = [(one.match(MEDIA_TYPES[offer]), -index, one.quality) for index, one in enumerate(ranges)]
        closeness, position, quality = max(matches, default=(0, 0, 0.0))
        if closeness and quality > 0:
            ranked.append(((quality, closeness, position, -place), offer))
    if not ranked:
        raise _refusal(offers)
    return max(ranked)[1]


def _parse(header: str) -> list[_Range]:
    """The header's ranges; one that cannot be read is left out."""
    ranges: list[_Range] = []
    for element in header.split(","):
        name, *parameters = (part.strip().lower() for part in element.split(";"))
        kind, slash, subtype = ALIASES.get(name, name).partition("/")
        if not slash or not kind or not subtype:
            continue
        quality = _quality(parameters)
        if quality is not None:
            ranges.append(_Range(kind, subtype, quality))
    return ranges


def _quality(parameters: Sequence[str]) -> float | None:
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                quality = float(value)
            except ValueError:
                return None
            return quality if 0 <= quality <= 1 else None
    return 1.0


def _refusal(offers: Sequence[Delivery]) -> NotAcceptable:
    return NotAcceptable(f"This address answers with {', '.join(MEDIA_TYPES[offer] for offer in offers)}; accept one of them.")

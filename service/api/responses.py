"""In which form an answer goes back, and the answer in it: JSON, or an image or array with its provenance in headers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

import orjson
from starlette.responses import Response

from service.errors import NotAcceptable
from service.explain.results import (
    Answer,
    ExplainResponse,
    ExplainResult,
    InspectResponse,
    InspectResult,
    PredictResponse,
)
from service.vocabulary import MEDIA_TYPES, STAGES, Delivery

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


def json_response(value: object, headers: Mapping[str, str] | None = None) -> Response:
    """A dataclass of `results`, or plain values, as JSON."""
    return Response(orjson.dumps(value), headers=headers, media_type="application/json")


def answer_response(answer: Answer, request_id: str, response: type[PredictResponse]) -> Response:
    """The answer as the client will get it.

    Args:
        answer: with `media` where an image or an array was asked for.
        request_id: `id` of the JSON answer.
        response: the shape of the JSON answer.
    """
    headers = {"Vary": "Accept"} | measured_headers(answer)
    if answer.media is not None:
        return Response(answer.media.data, headers=headers | _provenance(answer), media_type=answer.media.media_type)
    results: Any = answer.results  # the explainer gives the results that the response names
    body = response(id=request_id, model=answer.model, results=results, timings_ms=answer.timings, batch_size=answer.batch_size)
    return Response(orjson.dumps(body), headers=headers, media_type="application/json")


def measured_headers(answer: Answer) -> dict[str, str]:
    """Headers that tell where the time went."""
    headers = {
        "Server-Timing": ", ".join(f"{stage};dur={getattr(answer.timings, stage):.2f}" for stage in STAGES),
        "X-Batch-Size": str(answer.batch_size),
    }
    if answer.cache is not None:
        headers["X-Cache"] = answer.cache
    return headers


def _provenance(answer: Answer) -> dict[str, str]:
    """What the JSON answer would say of each explanation; of several, lists with commas, in the order of the rows."""
    headers = {"X-Explain-Model": quote(answer.model.name, safe="")}
    explained = [one for result in answer.results if isinstance(result, ExplainResult) for one in result.explanations]
    if explained:
        headers |= {
            "X-Explain-Class-Id": ",".join(str(one.class_id) for one in explained),
            "X-Explain-Class-Name": ",".join(quote(one.label, safe="") for one in explained),
            "X-Explain-Probability": ",".join(f"{one.probability:.6g}" for one in explained),
            "X-Explain-Method": quote(explained[0].method, safe=""),
            "X-Explain-Layer": ",".join(quote(layer, safe="") for layer in explained[0].layer),
        }
    for result in answer.results:
        if isinstance(result, InspectResult):
            inspection = result.inspection
            headers |= {
                "X-Explain-Class-Id": str(inspection.class_id),
                "X-Explain-Class-Name": quote(inspection.label, safe=""),
                "X-Explain-Probability": f"{inspection.probability:.6g}",
                "X-Explain-Layer": ",".join(quote(one.layer, safe="") for one in inspection.layers),
            }
    return headers

"""An answer of the explainer to an HTTP response: JSON, or an image or array with its provenance in headers."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import orjson
from starlette.responses import Response

from service.explain.results import (
    Answer,
    ExplainResponse,
    ExplainResult,
    InspectResponse,
    InspectResult,
    PredictResponse,
)
from service.vocabulary import STAGES


def json_response(value: object) -> Response:
    """A dataclass of `results`, or plain values, as JSON."""
    return Response(orjson.dumps(value), media_type="application/json")


def answer_response(
    answer: Answer, request_id: str, response: type[PredictResponse] | type[ExplainResponse] | type[InspectResponse]
) -> Response:
    """The answer as the client will get it.

    Args:
        answer: with `media` where an image or an array was asked for.
        request_id: `id` of the JSON answer.
        response: the shape of the JSON answer.
    """
    headers = {
        "Vary": "Accept",
        "Server-Timing": ", ".join(f"{stage};dur={getattr(answer.timings, stage):.2f}" for stage in STAGES),
        "X-Batch-Size": str(answer.batch_size),
    }
    if answer.cache is not None:
        headers["X-Cache"] = answer.cache
    if answer.media is not None:
        return Response(answer.media.data, headers=headers | _provenance(answer), media_type=answer.media.media_type)
    results: Any = answer.results  # the explainer gives the results that the response names
    body = response(id=request_id, model=answer.model, results=results, timings_ms=answer.timings, batch_size=answer.batch_size)
    return Response(orjson.dumps(body), headers=headers, media_type="application/json")


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

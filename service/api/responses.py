"""An answer of the explainer to an HTTP response: JSON after `api.md`, or an image or array with its provenance in headers."""

from __future__ import annotations

import base64
from typing import Any
from urllib.parse import quote

import orjson
from starlette.responses import Response

from service.explain.results import Answer, Encoded, Explanation, ImageResult, Inspection, LayerStatistics, Prediction

STAGES = ("decode", "queue", "infer", "render")


def answer_response(answer: Answer, request_id: str, *, explaining: bool) -> Response:
    """The answer as the client will get it.

    Args:
        answer: with a `document` where an image or an array was asked for.
        request_id: `id` of the JSON answer.
        explaining: False leaves `explanations` out, for /predict.
    """
    headers = {
        "Vary": "Accept",
        "Server-Timing": ", ".join(f"{stage};dur={getattr(answer.timings, stage):.2f}" for stage in STAGES),
        "X-Batch-Size": str(answer.batch_size),
    }
    if answer.cache is not None:
        headers["X-Cache"] = answer.cache
    if answer.document is not None:
        return Response(answer.document.data, headers=headers | _provenance(answer), media_type=answer.document.media_type)
    return Response(answer_json(answer, request_id, explaining=explaining), headers=headers, media_type="application/json")


def answer_json(answer: Answer, request_id: str, *, explaining: bool) -> bytes:
    """The answer as UTF-8 JSON; fields and their order as in `api.md`."""
    timings = answer.timings
    return orjson.dumps(
        {
            "id": request_id,
            "model": answer.model,
            "results": [_result(result, explaining=explaining) for result in answer.results],
            "timings_ms": {stage: round(getattr(timings, stage), 3) for stage in (*STAGES, "total")},
            "batch_size": answer.batch_size,
        }
    )


def _result(result: ImageResult, *, explaining: bool) -> dict[str, Any]:
    fields: dict[str, Any] = {"image": result.image, "predictions": result.predictions}
    if result.inspection is not None:
        fields["inspection"] = _inspection(result.inspection)
    elif explaining:
        fields["explanations"] = [_explanation(explanation) for explanation in result.explanations]
    return fields


def _explanation(explanation: Explanation) -> dict[str, Any]:
    heatmap = explanation.heatmap
    return {
        **_prediction(explanation.prediction),
        "versus": explanation.versus,
        "method": explanation.method,
        "layer": explanation.layer,
        "polarity": explanation.polarity,
        "scale": explanation.scale,
        "raw_min": explanation.raw_min,
        "raw_max": explanation.raw_max,
        "blank": explanation.blank,
        "grid": explanation.grid,
        "region": explanation.region,
        "heatmap": _encoded(heatmap) if isinstance(heatmap, Encoded) else heatmap,
        "overlay": None if explanation.overlay is None else _encoded(explanation.overlay),
        "evaluation": explanation.evaluation,
    }


def _inspection(inspection: Inspection) -> dict[str, Any]:
    layers = [_layer(view) for view in inspection.layers]
    return {**_prediction(inspection.prediction), "versus": inspection.versus, "layers": layers}


def _layer(view: LayerStatistics) -> dict[str, Any]:
    return {
        "layer": view.layer,
        "shape": view.shape,
        "activation_min": view.activation_min,
        "activation_mean": view.activation_mean,
        "activation_max": view.activation_max,
        "gradients": view.gradients,
        "weights": view.weights,
        "strongest": view.strongest,
    }


def _prediction(prediction: Prediction) -> dict[str, Any]:
    return {
        "class_id": prediction.class_id,
        "label": prediction.label,
        "wordnet_id": prediction.wordnet_id,
        "probability": prediction.probability,
        "logit": prediction.logit,
    }


def _encoded(encoded: Encoded) -> dict[str, Any]:
    return {
        "media_type": encoded.media_type,
        "width": encoded.width,
        "height": encoded.height,
        "b64": base64.b64encode(encoded.data).decode("ascii"),
    }


def _provenance(answer: Answer) -> dict[str, str]:
    """What the JSON answer would say of each explanation; of several, lists with commas, in the document's order."""
    explained = [explanation for result in answer.results for explanation in result.explanations]
    inspected = [result.inspection for result in answer.results if result.inspection is not None]
    headers = {"X-Explain-Model": quote(answer.model.name, safe="")}
    if inspected:
        return headers | {
            "X-Explain-Class-Id": str(inspected[0].prediction.class_id),
            "X-Explain-Class-Name": quote(inspected[0].prediction.label, safe=""),
            "X-Explain-Probability": f"{inspected[0].prediction.probability:.6g}",
            "X-Explain-Layer": ",".join(quote(view.layer, safe="") for view in inspected[0].layers),
        }
    if not explained:
        return headers
    predictions = [explanation.prediction for explanation in explained]
    return headers | {
        "X-Explain-Class-Id": ",".join(str(prediction.class_id) for prediction in predictions),
        "X-Explain-Class-Name": ",".join(quote(prediction.label, safe="") for prediction in predictions),
        "X-Explain-Probability": ",".join(f"{prediction.probability:.6g}" for prediction in predictions),
        "X-Explain-Method": quote(explained[0].method, safe=""),
        "X-Explain-Layer": ",".join(quote(layer, safe="") for layer in explained[0].layer),
    }

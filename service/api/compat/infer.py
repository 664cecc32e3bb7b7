"""The Open Inference Protocol's inference over HTTP: images in, tensors out.

Input `image` holds N images: BYTES ``[N]``, files or their base64, or UINT8 ``[N, H, W, 3]``, decoded pixels. Input or
parameter `class_id` names the classes to explain, K of each image; without it the best is explained, or the `top_k` best.
Options of POST /explain are parameters of the request. Outputs, of which a request may name those that it wants:

    scores       FP32 [N, classes]      probabilities; with parameter `classification` the best, as Triton writes them
    class_id     INT64 [N, K]           the classes explained, or the best ones where nothing is explained
    heatmap      FP32 [N, K, h, w]      the maps, at the network's input size unless `size` says otherwise
    overlay      UINT8 [N, K, h, w, 3]  the maps over the images
    overlay_png  BYTES [N, K]           the same as files; only where it is named
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, get_args

import numpy as np
from fastapi import APIRouter
from fastapi.requests import Request
from fastapi.responses import Response
from numpy.typing import NDArray

from service import errors
from service.api.compat.exchange import CardName, Inquiry, ModelName, ask, documentation, object_schema
from service.api.compat.instances import image_bytes
from service.api.compat.tensors import (
    InferRequest,
    InputTensor,
    OutputRequest,
    OutputTensor,
    encode_answer,
    parse_request,
)
from service.api.dependencies import Services, ServicesDependency, request_log_of
from service.api.json_body import decode_base64
from service.api.responses import measured_headers
from service.api.uploads import from_json, from_pairs, parse_options, parse_targets, read, refuse_early
from service.explain.options import TensorOptions
from service.explain.plan import ImageInput
from service.explain.results import Answer, ExplainResult, ImageTensors
from service.settings import Settings
from service.vocabulary import TensorName

INPUTS: Final = (("image", ("BYTES", "UINT8")), ("class_id", ("INT64",)))
OUTPUTS: Final[tuple[TensorName, ...]] = get_args(TensorName)
DEFAULT_OUTPUTS: Final[tuple[TensorName, ...]] = ("scores", "class_id", "heatmap", "overlay")
EXPLAINED: Final = frozenset({"heatmap", "overlay", "overlay_png"})
# Parameters of Triton's scheduler that mean nothing here.
IGNORED_PARAMETERS: Final = frozenset({"priority", "sequence_id", "sequence_start", "sequence_end"})
MICROSECONDS: Final = 1_000_000
LENGTH_HEADER: Final = "Inference-Header-Content-Length"

INFER: Final[dict[str, Any]] = {
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "description": "The protocol's JSON and, where the header Inference-Header-Content-Length tells its length, binary "
            "tensors behind it; whatever the Content-Type says.",
            "content": {
                "application/json": {
                    "schema": object_schema(inputs={"type": "array", "minItems": 1, "maxItems": len(INPUTS)}),
                    "example": {
                        "inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": ["iVBORw0KGgo="]}],
                        "outputs": [{"name": "heatmap"}, {"name": "class_id"}],
                        "parameters": {"method": "gradcam", "class_id": "281"},
                    },
                },
                "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            },
        }
    },
    **documentation(
        "Open Inference Protocol: infer",
        "Tensors: in JSON, or behind it in binary as `application/octet-stream`.",
        object_schema(
            model_name={"type": "string"}, model_version={"type": "string"}, id={"type": "string"},
            outputs={"type": "array", "items": {"type": "object"}},
        ),
        asks=True,
    ),
}  # fmt: skip

router = APIRouter(prefix="/v2", default_response_class=Response)


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInquiry(Inquiry):
    """What a request for tensors asks; `id` is its own."""

    id: str | None
    outputs: tuple[OutputRequest, ...]


@router.post("/models/{model}/infer", **INFER)
@router.post("/models/{model}/explain", include_in_schema=False)
@router.post("/models/{model}/versions/{version}/infer", include_in_schema=False)
@router.post("/models/{model}/versions/{version}/explain", include_in_schema=False)
async def infer(request: Request, services: ServicesDependency, model: ModelName, card: CardName) -> Response:
    """Explains and classifies the images of tensor `image`. Aliases: /explain, and both below /versions/{version}."""
    inquiry, answer = await ask(request, services, card, partial(_read, request, services))
    identity = inquiry.id or request_log_of(request.scope).id
    head = {"model_name": model, "model_version": answer.model.version, "id": identity}
    body, length = encode_answer(head, output_tensors(inquiry, answer, services.registry.get(card).labels.labels))
    headers = measured_headers(answer)
    if length is None:
        return Response(body, headers=headers, media_type="application/json")
    return Response(body, headers=headers | {LENGTH_HEADER: str(length)}, media_type="application/octet-stream")


async def _read(request: Request, services: Services) -> TensorInquiry:
    settings = services.settings
    refuse_early(request, settings.max_body_bytes)
    query = from_pairs(request.query_params.multi_items())
    body = await read(request, settings.max_body_bytes)
    return parse_inquiry(parse_request(body, request.headers.get(LENGTH_HEADER), INPUTS, OUTPUTS), settings, query)


def parse_inquiry(infer_request: InferRequest, settings: Settings, query: dict[str, Any]) -> TensorInquiry:
    """What a request of the protocol asks.

    Args:
        infer_request: however it came.
        settings: limits.
        query: options beside it, which its parameters override.

    Raises:
        CamserveError: the child that says what is wrong.
    """
    outputs = infer_request.outputs or tuple(OutputRequest(name=name, binary=infer_request.binary) for name in DEFAULT_OUTPUTS)
    parameters = {name: value for name, value in infer_request.parameters.items() if name not in IGNORED_PARAMETERS}
    within_s = _seconds(parameters.pop("timeout", None))
    names = frozenset(one.name for one in outputs)
    listed = any(one.name in {"heatmap", "overlay"} and not one.binary for one in outputs)
    options = parse_options(
        TensorOptions,
        {"size": "input"} | query,
        # What the arrays are made of is no option of a client's: its outputs say it.
        from_json(parameters)
        | {"tensors": names, "overlay": bool(names & {"overlay", "overlay_png"}), "heatmap": "list" if listed else "none"},
    )
    images = _images(infer_request, options, settings.max_images_per_request)
    named = "class_id" in names and any(one.targets.class_id or one.targets.class_name for one in images)
    return TensorInquiry(
        id=infer_request.id,
        images=images,
        options=options,
        explain=named or bool(names & EXPLAINED),
        outputs=outputs,
        within_s=within_s,
    )


def _seconds(microseconds: object) -> float | None:
    """The request's own deadline; 0 is none."""
    if microseconds is None:
        return None
    if not isinstance(microseconds, int) or isinstance(microseconds, bool) or microseconds < 0:
        raise errors.ParameterInvalid("timeout: must be a whole number of microseconds")
    return microseconds / MICROSECONDS or None


def _images(infer_request: InferRequest, options: TensorOptions, max_images: int) -> tuple[ImageInput, ...]:
    tensor = infer_request.inputs.get("image")
    if tensor is None:
        raise errors.ImageMissing("There is no image. Send it as the input image, BYTES [N] or UINT8 [N, H, W, 3].")
    files = _find_images(tensor, max_images)
    classes = infer_request.inputs.get("class_id")
    if classes is None:
        return tuple(ImageInput(one, options) for one in files)
    if options.class_id:
        raise errors.ParameterInvalid("class_id: give it as an input or as a parameter, not both")
    if not 1 <= len(classes.shape) <= 2 or classes.shape[0] != len(files):
        raise errors.RequestError("inputs: class_id: its shape is [N, K]: K classes for each of the N images.")
    rows = classes.array().reshape(len(files), -1).tolist()
    return tuple(
        ImageInput(one, parse_targets({"class_id": row}, f"inputs: class_id[{index}]: ", options))
        for index, (one, row) in enumerate(zip(files, rows, strict=True))
    )


def _find_images(tensor: InputTensor, max_images: int) -> Sequence[bytes | NDArray[np.uint8]]:
    return _files(tensor, max_images) if tensor.datatype == "BYTES" else _pixels(tensor, max_images)


def _files(tensor: InputTensor, max_images: int) -> list[bytes]:
    if len(tensor.shape) > 2 or tensor.shape[1:] not in {(), (1,)}:
        raise errors.RequestError("inputs: image: the shape of BYTES is [N].")
    _check_count(tensor.shape[0], max_images)
    return [
        decode_base64(one, f"image[{index}]") if isinstance(one, str) else image_bytes(one, f"image[{index}]", strict=True)
        for index, one in enumerate(tensor.elements())
    ]


def _pixels(tensor: InputTensor, max_images: int) -> list[NDArray[np.uint8]]:
    if len(tensor.shape) not in {3, 4} or tensor.shape[-1] != 3:
        raise errors.RequestError("inputs: image: the shape of UINT8 is [N, H, W, 3], of RGB images.")
    if len(tensor.shape) == 4:
        _check_count(tensor.shape[0], max_images)
    pixels = tensor.array()
    return list(pixels) if pixels.ndim == 4 else [pixels]


def _check_count(count: int, max_images: int) -> None:
    if count == 0:
        raise errors.ImageMissing("There is no image: the input image has none.")
    if count > max_images:
        raise errors.TooManyImages(f"At most {max_images} images in one request.")


# Outputs --------------------------------------------------------------------------------------------------------------------


def output_tensors(inquiry: TensorInquiry, answer: Answer, labels: Sequence[str]) -> list[OutputTensor]:
    """The tensors that a request names, in its order."""
    return [_output(one, inquiry, answer, labels) for one in inquiry.outputs]


def _output(requested: OutputRequest, inquiry: TensorInquiry, answer: Answer, labels: Sequence[str]) -> OutputTensor:
    tensors, count, binary = answer.tensors, len(answer.tensors), requested.binary
    match requested.name:
        case "scores" if requested.classification:
            best = _classification(tensors, labels, requested.classification)
            shape = (count, len(best) // count)
            return OutputTensor(name="scores", datatype="BYTES", shape=shape, parts=best, binary=binary)
        case "scores":
            parts = [one.scores for one in tensors]
            return OutputTensor(name="scores", datatype="FP32", shape=(count, parts[0].size), parts=parts, binary=binary)
        case "class_id":
            ids = _class_ids(inquiry, answer)
            return OutputTensor(name="class_id", datatype="INT64", shape=ids.shape, parts=[ids], binary=binary)
        case "heatmap":
            maps = [one.heatmaps for one in tensors]
            return OutputTensor(name="heatmap", datatype="FP32", shape=_shape(maps), parts=_joined(maps), binary=binary)
        case "overlay":
            overlays = [one.overlays for one in tensors]
            return OutputTensor(
                name="overlay", datatype="UINT8", shape=_shape(overlays), parts=_joined(overlays), binary=binary
            )
        case _:
            files = [file for one in tensors for file in one.overlay_files]
            shape = (count, len(files) // count)
            return OutputTensor(name="overlay_png", datatype="BYTES", shape=shape, parts=files, binary=binary, encoded=True)


def _class_ids(inquiry: TensorInquiry, answer: Answer) -> NDArray[np.int64]:
    """``[N, K]``: the classes explained, else the best ones, `top_k` of them."""
    rows: list[list[int]] = []
    for image, result in zip(inquiry.images, answer.results, strict=True):
        if isinstance(result, ExplainResult):
            rows.append([one.class_id for one in result.explanations])
        else:
            rows.append([one.class_id for one in result.predictions[: image.targets.top_k or 1]])
    return np.array(rows, np.int64)


def _classification(tensors: Sequence[ImageTensors], labels: Sequence[str], count: int) -> list[bytes]:
    """Triton's classification extension: `probability:class id:label` of the best classes of every image."""
    return [
        f"{one.scores[class_id]:.6f}:{class_id}:{labels[class_id]}".encode()
        for one in tensors
        for class_id in np.argsort(-one.scores, kind="stable")[:count].tolist()
    ]


def _shape(images: Sequence[Sequence[NDArray[Any]]]) -> tuple[int, ...]:
    """Of all images' arrays as one tensor.

    Raises:
        ParameterInvalid: they differ in size.
    """
    shapes = {(len(arrays), *array.shape) for arrays in images for array in arrays}
    if len(shapes) != 1:
        raise errors.ParameterInvalid(
            "size, fit: these images' maps are of several sizes, and a tensor holds maps of one size. Leave size and fit out, "
            "or send the images one by one."
        )
    return (len(images), *shapes.pop())


def _joined(images: Sequence[Sequence[NDArray[Any]]]) -> list[NDArray[Any]]:
    return [np.ascontiguousarray(array) for arrays in images for array in arrays]

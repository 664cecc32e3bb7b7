"""Every answer that is not a success, hung on the arrow of the way where it can happen.

    request -> uploads -> decode -> classes, layer -> queue -> engine -> render -> answer
       |          |          |            |             |         |
    RequestError  |      ImageError   TargetError   BusyError  EngineError
             (both sides of the upload)

Each class carries the HTTP status, the stable ``code`` and the title of `api.md`'s table; the message is for people and says
what to do next. It never holds the client's input, a path of this machine or a library's own words.

`ConfigurationError` stands apart: it never reaches a client, it stops the start.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import ClassVar


class CamserveError(Exception):
    """Base of every error a client can be answered with."""

    status: ClassVar[HTTPStatus] = HTTPStatus.INTERNAL_SERVER_ERROR
    code: ClassVar[str] = "internal"
    title: ClassVar[str] = "Internal error"

    def __init__(self, detail: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.retry_after_s = retry_after_s


# The request itself -----------------------------------------------------------------------------------------------------


class RequestError(CamserveError):
    """What arrived is not a request this service understands."""

    status = HTTPStatus.BAD_REQUEST
    code = "request_malformed"
    title = "Malformed request"


class JsonInvalid(RequestError):
    code, title = "json_invalid", "Invalid JSON"


class Base64Invalid(RequestError):
    code, title = "base64_invalid", "Invalid base64"


class MultipartInvalid(RequestError):
    code, title = "multipart_invalid", "Invalid multipart body"


class AuthRequired(RequestError):
    status, code, title = HTTPStatus.UNAUTHORIZED, "auth_required", "API key required"


class AuthInvalid(RequestError):
    status, code, title = HTTPStatus.UNAUTHORIZED, "auth_invalid", "API key not accepted"


class Forbidden(RequestError):
    status, code, title = HTTPStatus.FORBIDDEN, "forbidden", "Forbidden"


class NotFound(RequestError):
    status, code, title = HTTPStatus.NOT_FOUND, "not_found", "Not found"


class MethodNotAllowed(RequestError):
    status, code, title = HTTPStatus.METHOD_NOT_ALLOWED, "method_not_allowed", "Method not allowed"


class NotAcceptable(RequestError):
    status, code, title = HTTPStatus.NOT_ACCEPTABLE, "not_acceptable", "Not acceptable"


class PayloadTooLarge(RequestError):
    status, code, title = HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "payload_too_large", "Payload too large"


class ContentTypeUnsupported(RequestError):
    status, code, title = HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "content_type_unsupported", "Content type not supported"


class ContentEncodingUnsupported(RequestError):
    status, code, title = HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "content_encoding_unsupported", "Content encoding not supported"


class ParameterInvalid(RequestError):
    status, code, title = HTTPStatus.UNPROCESSABLE_ENTITY, "parameter_invalid", "Invalid parameter"


class ImageMissing(RequestError):
    status, code, title = HTTPStatus.UNPROCESSABLE_ENTITY, "image_missing", "No image"


class TooManyImages(RequestError):
    status, code, title = HTTPStatus.UNPROCESSABLE_ENTITY, "too_many_images", "Too many images"


# The image's bytes ------------------------------------------------------------------------------------------------------


class ImageError(CamserveError):
    """The bytes are not an image this service will decode."""

    status = HTTPStatus.UNPROCESSABLE_ENTITY
    code = "image_corrupt"
    title = "Image cannot be used"


class UnsupportedImageType(ImageError):
    status, code, title = HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "unsupported_image_type", "Image type not supported"


class ImageEmpty(ImageError):
    code, title = "image_empty", "Empty image"


class ImageTruncated(ImageError):
    code, title = "image_truncated", "Truncated image"


class ImageCorrupt(ImageError):
    code, title = "image_corrupt", "Corrupt image"


class ImageTooManyPixels(ImageError):
    code, title = "image_too_many_pixels", "Image has too many pixels"


class ImageTooSmall(ImageError):
    code, title = "image_too_small", "Image too small"


class ImageAspectRatio(ImageError):
    code, title = "image_aspect_ratio", "Image too long for its width"


class ImageTooComplex(ImageError):
    code, title = "image_too_complex", "Image too complex"


class ImageUnsupportedFeature(ImageError):
    code, title = "image_unsupported_feature", "Image feature not supported"


# What is to be explained ------------------------------------------------------------------------------------------------


class TargetError(CamserveError):
    """The model, class, layer or method asked for does not exist or does not fit."""

    status = HTTPStatus.UNPROCESSABLE_ENTITY
    code = "parameter_invalid"
    title = "Invalid target"


class ModelNotFound(TargetError):
    status, code, title = HTTPStatus.NOT_FOUND, "model_not_found", "Model not found"


class ClassNotFound(TargetError):
    code, title = "class_not_found", "Class not found"


class LayerNotFound(TargetError):
    code, title = "layer_not_found", "Layer not found"


class MethodNotApplicable(TargetError):
    code, title = "method_not_applicable", "Method not applicable"


# Waiting ----------------------------------------------------------------------------------------------------------------


class BusyError(CamserveError):
    """Not now: the client should come back.

    Attributes:
        estimate_s: of a request that is refused because it could not be ready in time: the seconds that it would take.
    """

    status = HTTPStatus.SERVICE_UNAVAILABLE
    code = "not_ready"
    title = "Not ready"

    def __init__(self, detail: str, *, retry_after_s: float | None = None, estimate_s: float | None = None) -> None:
        super().__init__(detail, retry_after_s=retry_after_s)
        self.estimate_s = estimate_s


class Overloaded(BusyError):
    status, code, title = HTTPStatus.TOO_MANY_REQUESTS, "overloaded", "Overloaded"


class NotReady(BusyError):
    code, title = "not_ready", "Not ready"


class ShuttingDown(BusyError):
    code, title = "shutting_down", "Shutting down"


class ModelUnhealthy(BusyError):
    code, title = "model_unhealthy", "Model unhealthy"


class DeadlineExceeded(BusyError):
    status, code, title = HTTPStatus.GATEWAY_TIMEOUT, "deadline_exceeded", "Deadline exceeded"


# The network ------------------------------------------------------------------------------------------------------------


class EngineError(CamserveError):
    """The network or the service failed; the client did nothing wrong."""


class InferenceNonFinite(EngineError):
    code, title = "inference_non_finite", "The network's output is not finite"


# The start --------------------------------------------------------------------------------------------------------------


class ConfigurationError(Exception):
    """A setting, a card or a weights file is wrong. Stops the start; names file, field and what would be right."""

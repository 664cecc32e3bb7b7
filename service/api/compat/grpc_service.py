"""The Open Inference Protocol over gRPC: `inference.GRPCInferenceService`, in the process and event loop of the HTTP server.

What is asked goes through the same explainer as over HTTP. gRPC cancels the call of a client that leaves, which reaches the
network as over HTTP. The libraries are the extra `camserve[grpc]`; nothing else imports this module unless a port is set.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any, Final

import grpc
import structlog
from open_inference.grpc import protocol
from starlette.datastructures import Headers

from service import __version__, errors
from service.api.auth import ApiKeySet, refusal
from service.api.compat.exchange import explain, find_card
from service.api.compat.infer import INPUTS, OUTPUTS, output_tensors, parse_inquiry
from service.api.compat.open_inference import EXTENSIONS, described_tensors
from service.api.compat.tensors import InferRequest, InputTensor, OutputRequest, tensor_bytes
from service.api.dependencies import Phase, RequestLog, Services
from service.errors import CamserveError
from service.explain.scheduler import Deadline

SERVICE: Final = "inference.GRPCInferenceService"
OVERHEAD_BYTES: Final = 64 * 1024  # of a message beside its image
PUBLIC_CALLS: Final = frozenset({"ServerLive", "ServerReady"})
STATUS: Final = {
    HTTPStatus.UNAUTHORIZED: grpc.StatusCode.UNAUTHENTICATED,
    HTTPStatus.FORBIDDEN: grpc.StatusCode.PERMISSION_DENIED,
    HTTPStatus.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    HTTPStatus.TOO_MANY_REQUESTS: grpc.StatusCode.RESOURCE_EXHAUSTED,
    HTTPStatus.INTERNAL_SERVER_ERROR: grpc.StatusCode.INTERNAL,
    HTTPStatus.SERVICE_UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT: grpc.StatusCode.DEADLINE_EXCEEDED,
}  # all others are INVALID_ARGUMENT

log = structlog.get_logger("service.api.requests")

Context = Any  # grpc.aio.ServicerContext; the library has no types
Call = Callable[[Any, Context, RequestLog], Awaitable[Any]]


async def start_grpc_server(services: Services, host: str, port: int) -> grpc.aio.Server:
    """Starts the server; its caller stops it.

    Args:
        services: of the application.
        host: to listen on.
        port: to listen on.

    Raises:
        RuntimeError: the port is taken.
    """
    largest = services.settings.max_body_bytes + OVERHEAD_BYTES
    server = grpc.aio.server(
        options=[("grpc.max_receive_message_length", largest), ("grpc.max_send_message_length", -1), ("grpc.so_reuseport", 0)]
    )
    server.add_generic_rpc_handlers((InferenceService(services).handlers(),))
    bound = server.add_insecure_port(f"{host}:{port}")
    await server.start()
    log.info("grpc_ready", host=host, port=bound)
    return server


class InferenceService:
    """The six calls that inference needs; Triton's management calls are answered UNIMPLEMENTED."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._keys = ApiKeySet(services.settings.api_keys)

    def handlers(self) -> Any:
        """The calls by name, for a gRPC server."""
        calls: dict[str, Call] = {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ModelReady": self._model_ready,
            "ServerMetadata": self._server_metadata,
            "ModelMetadata": self._model_metadata,
            "ModelInfer": self._model_infer,
        }
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                name: grpc.unary_unary_rpc_method_handler(
                    self._surround(name, call),
                    request_deserializer=getattr(protocol, f"{name}Request").FromString,
                    response_serializer=getattr(protocol, f"{name}Response").SerializeToString,
                )
                for name, call in calls.items()
            },
        )

    def _surround(self, name: str, call: Call) -> Callable[[Any, Context], Awaitable[Any]]:
        """The call with keys, log line, metrics and status codes, as the middleware gives them to HTTP."""

        async def surrounded(request: Any, context: Context) -> Any:
            metadata = [(key.encode(), str(value).encode("latin-1", "replace")) for key, value in context.invocation_metadata()]
            headers, request_log = Headers(raw=metadata), RequestLog(id=uuid.uuid4().hex, bytes_in=request.ByteSize())
            failure: CamserveError | None = None
            with structlog.contextvars.bound_contextvars(request_id=request_log.id):
                try:
                    self._check_key(name, headers)
                    response = await call(request, context, request_log)
                    request_log.status, request_log.bytes_out = HTTPStatus.OK, response.ByteSize()
                except CamserveError as error:
                    failure = error
                except asyncio.CancelledError:
                    request_log.code = "client_closed_request"
                    raise
                except Exception:
                    log.exception("unhandled_error")
                    failure = errors.CamserveError("Something went wrong here. The log tells what.")
                finally:
                    if failure is not None:
                        request_log.status, request_log.code = failure.status, failure.code
                    self._conclude(name, request_log)
            if failure is not None:
                code = STATUS.get(failure.status, grpc.StatusCode.INVALID_ARGUMENT)
                context.set_trailing_metadata((("camserve-code", failure.code), ("x-request-id", request_log.id)))
                await context.abort(code, failure.detail)
            return response

        return surrounded

    def _check_key(self, name: str, headers: Headers) -> None:
        """Checks that a call that is not public came with a key, if any is configured.

        Raises:
            AuthRequired, AuthInvalid: it did not.
        """
        if self._keys and name not in PUBLIC_CALLS and not self._keys.open(headers):
            raise refusal(headers)

    def _conclude(self, name: str, request_log: RequestLog) -> None:
        route = f"/{SERVICE}/{name}"
        write = log.info if name == "ModelInfer" else log.debug
        write("request", method="gRPC", route=route, **request_log.describe())
        request_log.count(self._services.metrics, route)

    async def _server_live(self, _request: Any, _context: Context, _log: RequestLog) -> Any:
        return protocol.ServerLiveResponse(live=True)

    async def _server_ready(self, _request: Any, _context: Context, _log: RequestLog) -> Any:
        return protocol.ServerReadyResponse(ready=self._services.phase is Phase.SERVING and self._services.registry.ready)

    async def _model_ready(self, request: Any, _context: Context, request_log: RequestLog) -> Any:
        card = self._card(request.name, request.version, request_log)
        return protocol.ModelReadyResponse(ready=self._services.registry.is_ready(card))

    async def _server_metadata(self, _request: Any, _context: Context, _log: RequestLog) -> Any:
        return protocol.ServerMetadataResponse(name="camserve", version=__version__, extensions=EXTENSIONS)

    async def _model_metadata(self, request: Any, _context: Context, request_log: RequestLog) -> Any:
        info = self._services.registry.describe_one(self._card(request.name, request.version, request_log))
        inputs, outputs = described_tensors(info)
        return protocol.ModelMetadataResponse(
            name=request.name, versions=[info.version], platform="camserve", inputs=inputs, outputs=outputs
        )

    async def _model_infer(self, request: Any, context: Context, request_log: RequestLog) -> Any:
        services = self._services
        if services.phase is Phase.STARTING:
            raise errors.NotReady("The models are still loading. ServerReady tells when they are ready.", retry_after_s=2)
        card = self._card(request.model_name, request.model_version, request_log)
        remaining_s = context.time_remaining()
        limits = [services.settings.request_timeout_s, *([remaining_s] if remaining_s is not None else [])]
        deadline = Deadline(min(limits))
        async with deadline.enforce():
            inquiry = parse_inquiry(_infer_request(request), services.settings, {})
            if inquiry.within_s is not None and inquiry.within_s < deadline.remaining_s:
                deadline = Deadline(inquiry.within_s)
            async with deadline.enforce():
                answer = await explain(services, inquiry, card, deadline, "use", request_log.id)
        request_log.answer = answer
        tensors = output_tensors(inquiry, answer, services.registry.get(card).labels.labels)
        return protocol.ModelInferResponse(
            model_name=request.model_name,
            model_version=answer.model.version,
            id=inquiry.id or request_log.id,
            outputs=[{"name": one.name, "datatype": one.datatype, "shape": one.shape} for one in tensors],
            raw_output_contents=[tensor_bytes(one) for one in tensors],  # which every client reads; not all read `contents`
        )

    def _card(self, name: str, version: str, request_log: RequestLog) -> str:
        card = request_log.model = find_card(self._services, name, version)
        return card


def _infer_request(request: Any) -> InferRequest:
    """The request as over HTTP.

    Raises:
        RequestError: names, datatypes or contents are not of the protocol.
    """
    known, raw = dict(INPUTS), list(request.raw_input_contents)
    if raw and len(raw) != len(request.inputs):
        raise errors.RequestError("raw_input_contents: one for each input, or none.")
    if not 1 <= len(request.inputs) <= len(known):
        raise errors.RequestError(f"inputs: at most {len(known)} tensors: {', '.join(known)}.")
    tensors: dict[str, InputTensor] = {}
    for index, tensor in enumerate(request.inputs):
        if tensor.name not in known or tensor.name in tensors or tensor.datatype not in known[tensor.name]:
            raise errors.RequestError(f"inputs: each once, of {', '.join(f'{name} {kinds}' for name, kinds in INPUTS)}.")
        if not tensor.shape or any(side < 0 for side in tensor.shape):
            raise errors.RequestError(f"inputs: {tensor.name}: shape must be a list of sizes.")
        content: Any = memoryview(raw[index]) if raw else _contents(tensor)
        tensors[tensor.name] = InputTensor(
            name=tensor.name, datatype=tensor.datatype, shape=tuple(tensor.shape), content=content
        )
    names = [one.name for one in request.outputs]
    if not set(OUTPUTS).issuperset(names) or len(set(names)) != len(names):
        raise errors.RequestError(f"outputs: each once, of {', '.join(OUTPUTS)}.")
    outputs = tuple(_output_request(one) for one in request.outputs)
    return InferRequest(
        id=request.id or None, parameters=_parameters(request.parameters), inputs=tensors, outputs=outputs, binary=True
    )


def _output_request(output: Any) -> OutputRequest:
    count = _parameters(output.parameters).get("classification", 0)
    if not isinstance(count, int) or count < 0 or (count and output.name != "scores"):
        raise errors.RequestError("outputs: classification is a number of classes, and of scores only.")
    return OutputRequest(name=output.name, binary=True, classification=count)


def _contents(tensor: Any) -> list[Any] | memoryview:
    """The typed contents of a tensor: elements of BYTES as their binary form, numbers as a list."""
    if tensor.datatype == "BYTES":
        elements = tensor.contents.bytes_contents
        return memoryview(b"".join(len(one).to_bytes(4, "little") + one for one in elements))
    return list(tensor.contents.int64_contents if tensor.datatype == "INT64" else tensor.contents.uint_contents)


def _parameters(parameters: Any) -> dict[str, Any]:
    return {name: getattr(value, value.WhichOneof("parameter_choice") or "string_param") for name, value in parameters.items()}

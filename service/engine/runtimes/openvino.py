"""The trunk in OpenVINO, on the CPU. OpenVINO is optional, so it is imported on first use."""

from __future__ import annotations

import functools
import importlib.util
from typing import Any, Final

import structlog
import torch
from torch import Tensor, fx

from service.engine.device import BUILD_LOCK
from service.engine.runtimes import lstm
from service.engine.runtimes.lowering import lowered
from service.vocabulary import Engine, Precision

HINTS: Final[dict[Precision, str]] = {"fp32": "f32", "bf16": "bf16"}

log = structlog.get_logger(__name__)


class OpenVINOTrunk:
    """A trunk that OpenVINO runs.

    Args:
        model: the trunk, converted by `convert`, or as `exported` returns it, which takes a quarter of the time or less.
        precision: precision of its arithmetic; outputs of floating point are float32 in any case.
        threads: number of threads of one call.
        calls: the largest number of concurrent calls; further calls wait.
    """

    engine: Engine = "openvino"

    def __init__(self, model: Any, precision: Precision, threads: int, calls: int = 1) -> None:
        self.precision: Precision = precision
        settings = {
            "INFERENCE_PRECISION_HINT": HINTS[precision],
            "INFERENCE_NUM_THREADS": threads * calls,
            "NUM_STREAMS": calls,
        }
        with BUILD_LOCK:
            if isinstance(model, bytes):
                self._compiled = _core().import_model(model, "CPU", settings)
            else:
                self._compiled = _core().compile_model(model, "CPU", settings)
        # An infer request holds the buffers of one call, so there are as many as there were concurrent calls at most.
        self._idle: list[Any] = []

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        """See `Trunk`."""
        try:
            request = self._idle.pop()
        except IndexError:
            request = self._compiled.create_infer_request()
        try:
            # The outputs are copies: the next call overwrites the request's own buffers.
            outputs = request.infer([images.numpy()], share_inputs=True, share_outputs=False)
            return tuple(torch.from_numpy(outputs[index]) for index in range(len(outputs)))
        finally:
            self._idle.append(request)

    def exported(self) -> bytes:
        """The compiled trunk with its weights, for this version of OpenVINO and this CPU."""
        blob = self._compiled.export_model()
        return blob if isinstance(blob, bytes) else bytes(blob.getbuffer())


def available() -> bool:
    """Whether OpenVINO is installed."""
    return importlib.util.find_spec("openvino") is not None


def has_bf16() -> bool:
    """Whether the CPU computes in bfloat16."""
    return "BF16" in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def convert(trunk: fx.GraphModule, example: Tensor) -> Any:
    """Converts a trunk to an `openvino.Model` for any number of images of the example's size.

    The constants of the model share the memory of the trunk's parameters.

    Args:
        trunk: maps images to a tuple of the crossing values.
        example: float32 ``[2, C, h, w]``.
    """
    # Core.read_model reads files only, and openvino.convert_model takes one or two seconds longer than the frontend.
    from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder  # noqa: PLC0415  (optional)

    with BUILD_LOCK:
        try:
            model = _convert_decoder(TorchFXPythonDecoder(lowered(trunk)))
        except Exception as error:
            log.info("openvino_export", reason=str(error).strip().rpartition("\n")[-1])
            model = _convert_decoder(TorchFXPythonDecoder(_export(trunk, example)))
        model.reshape([-1, *example.shape[1:]])
    return model


def _export(trunk: fx.GraphModule, example: Tensor) -> Any:
    """Traces the trunk again and decomposes it into operations that OpenVINO's frontend knows, which takes seconds."""
    from openvino.frontend.pytorch.torchdynamo.export_decompositions import ops_to_not_decompose  # noqa: PLC0415  (optional)

    known = set(ops_to_not_decompose())
    decompositions: Any = torch.export.default_decompositions()  # its methods have no types
    table = {op: decomposition for op, decomposition in decompositions.items() if op not in known}
    with torch.no_grad():
        program = torch.export.export(trunk, (example,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
        return program.run_decompositions(table).module()


def _convert_decoder(decoder: Any) -> Any:
    """Converts a decoder to an `openvino.Model`; the caller holds the reference to the decoder, for the frontend has none."""
    from openvino.frontend import FrontEndManager  # noqa: PLC0415  (optional)

    frontend = FrontEndManager().load_by_framework("pytorch")
    frontend.add_extension(lstm.extension())
    return frontend.convert(frontend.load(decoder))


@functools.cache
def _core() -> Any:
    import openvino  # noqa: PLC0415  (optional)

    return openvino.Core()

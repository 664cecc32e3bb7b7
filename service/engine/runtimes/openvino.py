"""The trunk in OpenVINO, on the CPU. OpenVINO is imported when it is first needed: it is optional."""

from __future__ import annotations

import functools
import importlib.util
from typing import Any, Final

import structlog
import torch
from torch import Tensor, fx

from service.engine.device import BUILD_LOCK
from service.engine.runtimes.lowering import lowered
from service.vocabulary import Engine, Precision

HINTS: Final[dict[Precision, str]] = {"fp32": "f32", "bf16": "bf16"}

log = structlog.get_logger(__name__)


class OpenVINOTrunk:
    """A trunk that OpenVINO runs.

    Args:
        model: the trunk as `convert` gave it.
        precision: of its arithmetic; what comes out is float32 in any case.
        threads: of one call.
        calls: most that run at once; others wait for one of them.
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
            self._compiled = _core().compile_model(model, "CPU", settings)
        # A request holds the buffers of one call: as many are made as calls were ever under way at once.
        self._idle: list[Any] = []

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        """See `Trunk`."""
        try:
            request = self._idle.pop()
        except IndexError:
            request = self._compiled.create_infer_request()
        try:
            # The outputs are copies: the request's own buffers are overwritten by the next call.
            found = request.infer([images.numpy()], share_inputs=True, share_outputs=False)
            return tuple(torch.from_numpy(found[index]) for index in range(len(found)))
        finally:
            self._idle.append(request)


def available() -> bool:
    """Whether OpenVINO is installed."""
    return importlib.util.find_spec("openvino") is not None


def has_bf16() -> bool:
    """Whether the CPU computes in bfloat16."""
    return "BF16" in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def convert(trunk: fx.GraphModule, example: Tensor) -> Any:
    """An `openvino.Model` of a trunk, for any number of images of the example's size; its constants are the trunk's memory.

    Args:
        trunk: from images to a tuple of the crossing values.
        example: float32 ``[2, C, h, w]``.
    """
    # Neither Core.read_model nor openvino.convert_model: the one reads files, the other adds a second or two of its own.
    from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder  # noqa: PLC0415  (optional)

    with BUILD_LOCK:
        try:
            model = _read(TorchFXPythonDecoder(lowered(trunk)))
        except Exception as error:
            log.info("openvino_export", reason=str(error).strip().rpartition("\n")[-1])
            model = _read(TorchFXPythonDecoder(_exported(trunk, example)))
        model.reshape([-1, *example.shape[1:]])
    return model


def _exported(trunk: fx.GraphModule, example: Tensor) -> Any:
    """The trunk traced anew, decomposed into everything that OpenVINO knows; takes seconds."""
    from openvino.frontend.pytorch.torchdynamo.export_decompositions import ops_to_not_decompose  # noqa: PLC0415  (optional)

    known = set(ops_to_not_decompose())
    decompositions: Any = torch.export.default_decompositions()  # its methods have no types
    table = {op: how for op, how in decompositions.items() if op not in known}
    with torch.no_grad():
        program = torch.export.export(trunk, (example,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
        return program.run_decompositions(table).module()


def _read(decoder: Any) -> Any:
    """The caller keeps the decoder: the frontend does not."""
    from openvino.frontend import FrontEndManager  # noqa: PLC0415  (optional)

    reader = FrontEndManager().load_by_framework("pytorch")
    return reader.convert(reader.load(decoder))


@functools.cache
def _core() -> Any:
    import openvino  # noqa: PLC0415  (optional)

    return openvino.Core()

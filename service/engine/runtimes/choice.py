"""The choice of the calibration check, and the trunk that it has chosen, kept on disk for the next start.

A choice depends on the hardware too, so the CPU's model and flags are part of its key. OpenVINO's compiled trunk is kept as a
file beside it; a torch trunk is cheap to make again from the graph.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import structlog
import torch

from service.engine.disk_cache import Entries
from service.engine.runtimes.openvino import OpenVINOTrunk
from service.engine.runtimes.torch import TorchTrunk, Trunk
from service.vocabulary import Engine, Precision

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeChoice:
    """Which runtime serves a trunk, and why.

    Attributes:
        engine, precision: those that serve it.
        gain: how many times as fast bfloat16 was as float32; None where it was not measured.
        bf16_refused: why bfloat16 does not serve it although it was tried, or None.
        openvino_refused: why OpenVINO does not serve it although it was tried, or None.
    """

    engine: Engine
    precision: Precision
    gain: float | None = None
    bf16_refused: str | None = None
    openvino_refused: str | None = None

    def report(self, model: str, *, cached: bool = False) -> None:
        """Logs the choice; `cached` tells that it is one of an earlier start."""
        extra: dict[str, Any] = {"cached": True} if cached else {}
        if self.openvino_refused is not None:
            log.warning(
                "engine_fallback", model=model, wanted="openvino", engine="torch", reason=self.openvino_refused, **extra
            )
        if self.bf16_refused is not None:
            extra |= {"bf16_refused": self.bf16_refused}
        if self.gain is not None or self.bf16_refused is not None:
            gain = {"gain": round(self.gain, 2)} if self.precision == "bf16" and self.gain is not None else {}
            log.info("precision", model=model, engine=self.engine, precision=self.precision, **gain, **extra)


def choice_entries(entries: Entries, trunk: TorchTrunk, layers: Sequence[str], options: object) -> Entries:
    """The entries of one choice of a runtime.

    Args:
        entries: those of the network.
        trunk: the trunk of the split, in torch in float32.
        layers: the layers of the split.
        options: the configured engine and precision, and their resources, a dataclass.
    """
    assert dataclasses.is_dataclass(options)
    return entries.extended(
        layers=list(layers),
        outputs=[node.name for node in trunk.module.graph.output_node().all_input_nodes],
        options=dataclasses.asdict(cast("Any", options)),
        processor=_processor(),
    )


def write_choice(entries: Entries, choice: RuntimeChoice, trunk: Trunk) -> None:
    """Keeps a choice, and OpenVINO's compiled trunk."""
    if entries.cache.folder is None:
        return
    try:
        compiled = trunk.exported() if isinstance(trunk, OpenVINOTrunk) else None
    except Exception as error:  # this trunk has no written form; it serves, and the next start checks again
        log.warning("runtime_choice_not_written", reason=f"{type(error).__name__}: {error}")
        return
    if compiled is not None:
        entries.write("openvino", compiled)
    entries.write("choice", json.dumps(dataclasses.asdict(choice)).encode())


def read_trunk(entries: Entries, trunk: TorchTrunk, threads: int, calls: int) -> tuple[RuntimeChoice, Trunk] | None:
    """The choice and the trunk of an earlier start; None where one of them is not there or cannot be read.

    Args:
        entries: those of `choice_entries`.
        trunk: the trunk of the split, in torch in float32.
        threads: as in `OpenVINOTrunk`.
        calls: as in `OpenVINOTrunk`.
    """
    content = entries.read("choice")
    if content is None:
        return None
    try:
        choice = RuntimeChoice(**json.loads(content))
        if choice.engine == "torch":
            return choice, trunk if choice.precision == "fp32" else trunk.halved()
        compiled = entries.read("openvino")
        return (choice, OpenVINOTrunk(compiled, choice.precision, threads, calls)) if compiled is not None else None
    except Exception as error:  # whatever is wrong with it, the check runs again
        log.warning("runtime_choice_not_read", reason=f"{type(error).__name__}: {error}")
        return None


@functools.cache
def _processor() -> list[str]:
    """Model and flags of the CPU, and of CUDA devices."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = {"model name", "flags", "CPU part", "Features"}  # the latter two on Arm
    values = sorted({line for line in lines if line.partition("\t")[0].strip() in names})
    devices = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return [platform.machine(), *values, *devices]

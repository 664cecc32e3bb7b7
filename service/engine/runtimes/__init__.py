"""Chooses the runtime of a network's trunk, engine and precision, with a calibration check against torch in float32.

The check explains photographs with both trunks. OpenVINO in float32 is used only where its results agree; where they do not,
torch replaces it, or loading fails if OpenVINO is configured by name. With precision "auto", bfloat16 is used only where the
hardware computes in it, the results agree, and it is faster.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from torch import Tensor

from service.engine.runtimes import openvino
from service.engine.runtimes.choice import RuntimeChoice
from service.engine.runtimes.precision import disagreement, speedup
from service.engine.runtimes.torch import TorchTrunk, Trunk, has_bf16
from service.engine.types import EngineResult
from service.errors import ConfigurationError
from service.vocabulary import EngineOption, PrecisionOption

MIN_SPEEDUP: Final = 1.1  # of bfloat16 over float32; a smaller one does not justify the rounding errors

REFERENCE_S: Final = 5.0  # after which torch begins no further pair of photographs
PAIR: Final = 2  # a photograph and its mirror image

ExplainWith = Callable[[Trunk, slice], Sequence[EngineResult]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeOptions:
    """The configured engine and precision, and their resources.

    Attributes:
        engine, precision: "auto" leaves the choice to `choose`.
        threads: number of threads of one call on the CPU.
        calls: the largest number of concurrent calls.
    """

    engine: EngineOption = "auto"
    precision: PrecisionOption = "auto"
    threads: int = 1
    calls: int = 1

    @property
    def exact(self) -> bool:
        """Whether torch in float32 is configured, which needs no calibration check."""
        return (self.engine, self.precision) == ("torch", "fp32")


TORCH_FP32: Final = RuntimeOptions(engine="torch", precision="fp32")  # runs every network


def choose(
    name: str, trunk: TorchTrunk, images: Tensor, options: RuntimeOptions, explain: ExplainWith
) -> tuple[RuntimeChoice, Trunk]:
    """The trunk of the chosen engine and precision, and why they were chosen.

    Args:
        name: the model's name, for messages.
        trunk: the trunk of the split, in torch in float32.
        images: photographs, normalised, float32 ``[n, C, h, w]``, on the device.
        options: the configured engine and precision.
        explain: explains the best class of each photograph of a slice with a trunk; it may raise any exception.

    Raises:
        ConfigurationError: the configured engine or precision is not available, or cannot run the network.
    """
    check = _CalibrationCheck(name, trunk, images, options, explain)
    on_cpu = images.device.type == "cpu"
    if options.engine == "openvino" or (options.engine == "auto" and on_cpu and openvino.available()):
        try:
            return _choose_openvino(check, on_cpu=on_cpu)
        except ConfigurationError:
            raise
        except Exception as error:
            reason = _last_line(error)
            if options.engine == "openvino":
                raise ConfigurationError(
                    f"card {name}: engine openvino cannot run this network: {reason}; use auto or torch"
                ) from error
            choice, chosen = check.choose_precision(lambda: trunk, trunk.halved, supports_bf16=has_bf16(images.device))
            return replace(choice, openvino_refused=reason), chosen
    return check.choose_precision(lambda: trunk, trunk.halved, supports_bf16=has_bf16(images.device))


def _choose_openvino(check: _CalibrationCheck, *, on_cpu: bool) -> tuple[RuntimeChoice, Trunk]:
    """OpenVINO's trunk.

    Raises:
        ConfigurationError: OpenVINO or the configured precision is not available.
        Exception: any exception of OpenVINO, which cannot convert or run this network, or a disagreement with torch.
    """
    options = check.options
    if not openvino.available():
        raise ConfigurationError(f"card {check.name}: engine openvino is not installed; install it, or use auto or torch")
    if not on_cpu:
        raise ConfigurationError(
            f"card {check.name}: engine openvino runs on the CPU only; set device = cpu, or use auto or torch"
        )
    model = openvino.convert(check.trunk.module, check.images[:2])

    def build_fp32() -> Trunk:
        trunk = openvino.OpenVINOTrunk(model, "fp32", options.threads, options.calls)
        reason = check.disagreement(trunk)
        if reason is not None:
            raise ValueError(f"its results disagree with torch's: {reason}")
        return trunk

    return check.choose_precision(
        build_fp32,
        lambda: openvino.OpenVINOTrunk(model, "bf16", options.threads, options.calls),
        supports_bf16=openvino.has_bf16(),
    )


class _CalibrationCheck:
    """Compares the trunks of one network with the trunk that torch runs in float32."""

    def __init__(self, name: str, trunk: TorchTrunk, images: Tensor, options: RuntimeOptions, explain: ExplainWith) -> None:
        self.name = name
        self.trunk = trunk
        self.images = images
        self.options = options
        self._explain = explain
        self._expected: list[EngineResult] = []

    def disagreement(self, trunk: Trunk) -> str | None:
        """Why a trunk may not replace the float32 trunk of torch; None where their results agree.

        They explain as many photographs as torch explains in `REFERENCE_S`, two at least: a large network would need minutes.
        """
        expected = self._reference()
        pairs = (slice(first, first + PAIR) for first in range(0, len(expected), PAIR))
        return disagreement(expected, [result for pair in pairs for result in self._explain(trunk, pair)])

    def _reference(self) -> Sequence[EngineResult]:
        """What torch in float32 answers; the same for each trunk that is compared."""
        if not self._expected:
            start = time.perf_counter()
            for first in range(0, len(self.images), PAIR):
                self._expected += self._explain(self.trunk, slice(first, first + PAIR))
                if time.perf_counter() - start > REFERENCE_S:
                    break
        return self._expected

    def choose_precision(
        self, build_fp32: Callable[[], Trunk], build_bf16: Callable[[], Trunk], *, supports_bf16: bool
    ) -> tuple[RuntimeChoice, Trunk]:
        """The trunk of one of an engine's two precisions; with "auto", bfloat16 only where its results agree and it is faster.

        Args:
            build_fp32: builds the engine's trunk in float32.
            build_bf16: builds the engine's trunk in bfloat16.
            supports_bf16: whether the hardware computes in bfloat16.

        Raises:
            ConfigurationError: bfloat16 is configured, and the hardware does not compute in it.
        """
        if self.options.precision == "bf16":
            if not supports_bf16:
                raise ConfigurationError(
                    f"card {self.name}: precision bf16: this hardware does not compute in it; use auto or fp32"
                )
            return _without_comparison(build_bf16())
        exact = build_fp32()
        if self.options.precision == "fp32" or not supports_bf16:
            return _without_comparison(exact)
        gain = None
        try:
            candidate = build_bf16()
            reason = self.disagreement(candidate)
            gain = speedup(exact, candidate, self.images[:1])
            if reason is None and gain < MIN_SPEEDUP:
                reason = f"{gain:.2f} times as fast as fp32"
        except Exception as error:
            reason = _last_line(error)
        if reason is not None:
            return RuntimeChoice(engine=exact.engine, precision="fp32", gain=gain, bf16_refused=reason), exact
        return RuntimeChoice(engine=exact.engine, precision="bf16", gain=gain), candidate


def _without_comparison(trunk: Trunk) -> tuple[RuntimeChoice, Trunk]:
    return RuntimeChoice(engine=trunk.engine, precision=trunk.precision), trunk


def _last_line(error: Exception) -> str:
    """The last line of an error's message that is not empty, or the name of its type."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]

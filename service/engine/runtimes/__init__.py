"""What runs the trunk: chooses engine and precision for one network, checks the choice on photographs, falls back.

Other runtimes must give what torch in float32 gives. bfloat16 is taken only where the hardware computes in it, the network's
answers stay the same, and it is faster.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import structlog
from torch import Tensor

from service.engine.runtimes import openvino
from service.engine.runtimes.precision import disagreement, speedup
from service.engine.runtimes.torch import TorchTrunk, Trunk, has_bf16
from service.engine.types import EngineResult
from service.errors import ConfigurationError
from service.vocabulary import EngineOption, PrecisionOption

FASTER: Final = 1.1  # or it is not worth the rounding

Answers = Callable[[Trunk], Sequence[EngineResult]]

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeOptions:
    """What is asked for.

    Attributes:
        threads: of one call on the CPU.
        calls: most at once, for which threads are kept ready.
    """

    engine: EngineOption = "auto"
    precision: PrecisionOption = "auto"
    threads: int = 1
    calls: int = 1

    @property
    def exact(self) -> bool:
        """Whether nothing but torch in float32 is wanted."""
        return (self.engine, self.precision) == ("torch", "fp32")


TORCH_FP32: Final = RuntimeOptions(engine="torch", precision="fp32")  # what every network can have


def choose(name: str, trunk: TorchTrunk, images: Tensor, plan: RuntimeOptions, answers: Answers) -> Trunk:
    """The trunk to serve with.

    Args:
        name: the model's, for messages.
        trunk: as it was cut.
        images: normalised, float32 ``[n, C, h, w]``, on the device.
        plan: what is asked for.
        answers: explains photographs with a trunk, each its best class; raises what goes wrong.

    Raises:
        ConfigurationError: an engine or precision that was asked for by name is not to be had.
    """
    jury = _CalibrationCheck(name, trunk, images, plan, answers)
    on_cpu = images.device.type == "cpu"
    if plan.engine == "openvino" or (plan.engine == "auto" and on_cpu and openvino.available()):
        try:
            return _openvino(jury, on_cpu=on_cpu)
        except ConfigurationError:
            raise
        except Exception as error:
            reason = _first_line(error)
            if plan.engine == "openvino":
                raise ConfigurationError(
                    f"card {name}: engine openvino cannot run this network: {reason}; use auto or torch"
                ) from error
            log.warning("engine_fallback", model=name, wanted="openvino", engine="torch", reason=reason)
    return jury.settle(lambda: trunk, trunk.halved, capable=has_bf16(images.device))


def _openvino(jury: _CalibrationCheck, *, on_cpu: bool) -> Trunk:
    """Anything may be raised: a network that OpenVINO does not understand fails in many ways."""
    plan = jury.plan
    if not openvino.available():
        raise ConfigurationError(f"card {jury.name}: engine openvino is not installed; install it, or use auto or torch")
    if not on_cpu:
        raise ConfigurationError(
            f"card {jury.name}: engine openvino runs on the CPU only; set device = cpu, or use auto or torch"
        )
    model = openvino.convert(jury.trunk.module, jury.images[:2])

    def exact() -> Trunk:
        built = openvino.OpenVINOTrunk(model, "fp32", plan.threads, plan.calls)
        reason = jury.objection(built)
        if reason is not None:
            raise ValueError(f"its answers are not torch's: {reason}")
        return built

    return jury.settle(
        exact, lambda: openvino.OpenVINOTrunk(model, "bf16", plan.threads, plan.calls), capable=openvino.has_bf16()
    )


class _CalibrationCheck:
    """Holds the trunks of one network against the one that torch runs in float32."""

    def __init__(self, name: str, trunk: TorchTrunk, images: Tensor, plan: RuntimeOptions, answers: Answers) -> None:
        self.name = name
        self.trunk = trunk
        self.images = images
        self.plan = plan
        self._answers = answers
        self._expected: Sequence[EngineResult] = ()

    def objection(self, trunk: Trunk) -> str | None:
        """Why a trunk may not stand in for the exact one."""
        self._expected = self._expected or self._answers(self.trunk)
        return disagreement(self._expected, self._answers(trunk))

    def settle(self, exact: Callable[[], Trunk], fast: Callable[[], Trunk], *, capable: bool) -> Trunk:
        """One of an engine's two precisions; bfloat16 unasked only where it is as good and better.

        Raises:
            ConfigurationError: bfloat16 was asked for, and the hardware has none.
        """
        if self.plan.precision == "bf16":
            if not capable:
                raise ConfigurationError(
                    f"card {self.name}: precision bf16: this hardware does not compute in it; use auto or fp32"
                )
            return fast()
        chosen = exact()
        if self.plan.precision == "fp32" or not capable:
            return chosen
        try:
            candidate = fast()
            reason = self.objection(candidate)
            gain = speedup(chosen, candidate, self.images[:1])
            if reason is None and gain < FASTER:
                reason = f"{gain:.2f} times as fast as fp32"
        except Exception as error:
            reason = _first_line(error)
        if reason is not None:
            log.info("precision", model=self.name, engine=chosen.engine, precision="fp32", bf16_refused=reason)
            return chosen
        log.info("precision", model=self.name, engine=chosen.engine, precision="bf16", gain=round(gain, 2))
        return candidate


def _first_line(error: Exception) -> str:
    """Of the message that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]

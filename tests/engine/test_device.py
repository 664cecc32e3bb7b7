"""Where networks run: what "auto" means, a device that is not there, and that fp32 is fp32."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from service.engine.device import prepare_device
from service.errors import ConfigurationError


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """What torch keeps for the whole process goes back to what it was."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_auto_takes_what_is_there() -> None:
    assert prepare_device("auto", 1).type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert prepare_device("cpu", 1) == torch.device("cpu")


@pytest.mark.parametrize(("visible", "device"), [(0, "cuda"), (0, "cuda:0"), (1, "cuda:1"), (2, "cuda:63")])
def test_a_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch, visible: int, device: str) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    with pytest.raises(ConfigurationError, match=f"device: {device} does not exist: {visible} CUDA devices"):
        prepare_device(device, 1)


@pytest.mark.parametrize(("asked", "given"), [(3, 3), (0, 1)])
def test_threads(asked: int, given: int) -> None:
    prepare_device("cpu", asked)
    assert torch.get_num_threads() == given


def test_fp32_is_not_rounded() -> None:
    prepare_device("cpu", 1)
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32

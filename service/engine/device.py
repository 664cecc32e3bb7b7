"""Where the networks run, with how many threads, and what only one thread may do at a time; how memory is given back."""

from __future__ import annotations

import ctypes
import gc
import sys
import threading
from typing import Final

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from service.errors import ConfigurationError

Device = torch.device

# Held while a network is built, filled, read from a saved program or exported. torch.export, torch.export.load, the seeding of
# torch's one generator and lazily imported libraries all keep state of the whole process: two models that load at once break
# each other otherwise ("_CURRENT_DESERIALIZER is already set", KeyError 'custom'). Networks run without it.
BUILD_LOCK: Final = threading.RLock()


def prepare(device: str, threads: int) -> torch.device:
    """Chooses the device and sets what torch keeps for the whole process.

    Args:
        device: "auto" (cuda when there is one), "cpu", "cuda" or "cuda:N".
        threads: of one operation on the CPU.

    Raises:
        ConfigurationError: the device is not there.
    """
    available = torch.cuda.device_count()
    if device == "auto":
        device = "cuda" if available else "cpu"
    chosen = torch.device(device)
    if chosen.type == "cuda" and (chosen.index or 0) >= available:
        raise ConfigurationError(f"device: {device} is not there: {available} CUDA devices are visible; use cpu or auto")
    torch.set_num_threads(max(1, threads))
    # fp32 means fp32: by default cuDNN would round convolutions to TF32.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    return chosen


def give_back() -> None:
    """Returns to the system what networks that are gone have held.

    An exported graph is full of cycles, so it takes the collector to free it; glibc keeps freed memory until it is told.
    """
    FakeTensorMode.cache_clear()  # what torch.export remembers of operators, with the sizes of every network ever exported
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)

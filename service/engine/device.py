"""The device and the number of threads for networks, the lock around building a network, and the release of its memory."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import threading
from pathlib import Path
from typing import Final

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from service.errors import ConfigurationError

Device = torch.device

# A thread holds this lock while it builds a network, loads weights, reads a saved program or exports. torch.export,
# torch.export.load, the seeding of torch's global generator and lazily imported libraries all keep process-wide state: without
# the lock two models that load at once break each other ("_CURRENT_DESERIALIZER is already set", KeyError 'custom'). Inference
# does not need it.
BUILD_LOCK: Final = threading.RLock()


def prepare_device(device: str, threads: int) -> torch.device:
    """Chooses the device and sets torch's process-wide options.

    Args:
        device: "auto" (cuda when there is one), "cpu", "cuda" or "cuda:N".
        threads: the number of threads of one operation on the CPU.

    Raises:
        ConfigurationError: the device does not exist.
    """
    available = torch.cuda.device_count()
    if device == "auto":
        device = "cuda" if available else "cpu"
    torch_device = torch.device(device)
    if torch_device.type == "cuda" and (torch_device.index or 0) >= available:
        raise ConfigurationError(f"device: {device} does not exist: {available} CUDA devices are visible; use cpu or auto")
    torch.set_num_threads(max(1, threads))
    # Precision fp32 computes in float32: by default cuDNN would round convolutions to TF32.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    return torch_device


def memory_use(device: str) -> int:
    """Bytes in use: on CUDA those of torch's tensors, on the CPU the whole process's resident memory, 0 where unknown."""
    if device.startswith("cuda"):
        return torch.cuda.memory_allocated(device)
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 0


def release_memory() -> None:
    """Returns the memory of deleted networks to the operating system.

    An exported graph contains reference cycles, which only the garbage collector frees; glibc keeps freed memory until
    `malloc_trim` is called.
    """
    FakeTensorMode.cache_clear()  # torch.export's cache of operators, which holds the sizes of every exported network
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)

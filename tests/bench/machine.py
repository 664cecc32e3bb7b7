"""What the figures were measured on: processor, cores, vector units, versions, commit. A figure without these means little."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import torch

from service.settings import Settings
from tests.bench.processes import REPOSITORY

PACKAGES = (
    "camserve", "torch", "torchvision", "timm", "openvino", "grad-cam", "captum", "litserve", "numpy", "pillow",
    "opencv-python-headless", "isal",
)  # fmt: skip
UNITS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_tile", "amx_bf16", "amx_int8")


def describe() -> dict[str, str]:
    """Names and values, in the order they should be read."""
    cpu = _cpuinfo()
    present = set(cpu.get("flags", "").split())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "processor": cpu.get("model name") or platform.processor() or platform.machine(),
        "cores": f"{Settings().cores} usable, {memory:.0f} GiB of memory",
        "vector units": ", ".join(f"{unit}{'' if unit in present else ' no'}" for unit in UNITS) if present else "unknown",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "packages": ", ".join(f"{name} {version}" for name in PACKAGES if (version := _version(name))),
        "commit": _commit(),
        "load before": " ".join(f"{load:.2f}" for load in os.getloadavg()),
    }


def _cpuinfo() -> dict[str, str]:
    """The first processor of Linux's list; empty elsewhere."""
    try:
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str:
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "service")
        return git("rev-parse", "--short", "HEAD") + (" with changes in service" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"

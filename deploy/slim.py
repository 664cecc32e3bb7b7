"""Removes from an environment the CUDA libraries that torch can do without on a CPU; the Dockerfile's cpu variant runs it.

torch's default wheel for Linux is linked against CUDA, so `import torch` needs part of those libraries even where there is no
GPU. What a process with torch in it has not mapped into memory goes. With a wheel built for CPUs there is nothing to remove.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torchvision  # noqa: F401  (maps its own libraries)

mapped = {Path(line.split()[-1]) for line in Path("/proc/self/maps").read_text().splitlines() if "/" in line}
packages = Path(torch.__file__).parents[1].resolve()
spare = [file for file in packages.glob("nvidia/**/*") if file.is_file() and file not in mapped]
size = sum(file.stat().st_size for file in spare)
for file in spare:
    file.unlink()
print(f"removed {len(spare)} files of CUDA, {size / 2**20:.0f} MiB")  # noqa: T201  (a build step speaks to who builds)

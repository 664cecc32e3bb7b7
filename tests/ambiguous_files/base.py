"""What the lists of easily misread files share. Section 2.2 of the catalogue of hostile images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tests import image_files as make

Pixels = NDArray[np.uint8]
LOSSY = 3.0  # mean absolute difference in levels that JPEG at quality 92 may make of the scene


@dataclass(frozen=True)
class Odd:
    """A file, the image in it and how far off it may be: mean absolute difference in levels, 0 is to the bit."""

    id: str
    name: str
    data: Callable[[], bytes]
    expected: Callable[[], Pixels]
    tolerance: float = 0

    def __str__(self) -> str:
        return f"{self.id}-{self.name}".replace(" ", "-")


def lossy(id_: str, expected: Callable[[], Pixels] = make.scene, /, **files: Callable[[], bytes]) -> Iterator[Odd]:
    for name, data in files.items():
        yield Odd(id_, name.replace("_", " "), cache(data), expected, LOSSY)


def exact(id_: str, expected: Callable[[], Pixels] = make.scene, /, **files: Callable[[], bytes]) -> Iterator[Odd]:
    for name, data in files.items():
        yield Odd(id_, name.replace("_", " "), cache(data), expected)


def save_scene(kind: str, **options: Any) -> bytes:
    return make.save(make.scene(), kind, **options)


def grey() -> Pixels:
    return np.asarray(Image.fromarray(make.scene()).convert("L"))


def as_rgb(levels: NDArray[Any]) -> Pixels:
    return np.repeat(levels.astype(np.uint8)[:, :, None], 3, axis=2)


def white() -> Pixels:
    return np.full_like(make.scene(), 255)


def on_white(alpha: NDArray[np.uint8]) -> Pixels:
    """The scene through an alpha plane, over white."""
    weight = alpha[:, :, None] / 255
    return np.asarray((make.scene() * weight + 255 * (1 - weight)).round(), np.uint8)


def ramp_alpha() -> Pixels:
    return np.tile(np.linspace(0, 255, 48).astype(np.uint8), (32, 1))

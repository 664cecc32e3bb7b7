"""Real photographs that test packages carry, and what the embedded model sees in them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import skimage
import sklearn.datasets


@dataclass(frozen=True)
class Photograph:
    """`top` is the best class's id, label and probability; `thing` the box (left, top, right, bottom) that the thing fills."""

    path: Path
    width: int
    height: int
    top: tuple[int, str, float]
    thing: tuple[int, int, int, int]

    @property
    def data(self) -> bytes:
        """The file."""
        return self.path.read_bytes()


_SKIMAGE = Path(skimage.__file__).parent / "data"
_SKLEARN = Path(sklearn.datasets.__file__).parent / "images"

CHELSEA = Photograph(_SKIMAGE / "chelsea.png", 451, 300, (282, "tiger cat", 0.393), (60, 0, 320, 290))
COFFEE = Photograph(_SKIMAGE / "coffee.png", 600, 400, (967, "espresso", 0.951), (160, 10, 450, 300))
ROCKET = Photograph(_SKIMAGE / "rocket.jpg", 640, 427, (657, "missile", 0.274), (180, 100, 460, 400))
CAMERA = Photograph(_SKIMAGE / "camera.png", 512, 512, (872, "tripod", 0.939), (170, 120, 420, 512))
CHINA = Photograph(_SKLEARN / "china.jpg", 640, 427, (698, "palace", 0.298), (60, 20, 370, 400))

ALL = (CHELSEA, COFFEE, ROCKET, CAMERA, CHINA)

"""The image that every row uses: a photograph of 500x375 pixels as a JPEG of about 90 kB, as cameras and phones make them."""

from __future__ import annotations

import functools
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tests.photographs import COFFEE

WIDTH, HEIGHT, BYTES = 500, 375, 90_000


@functools.cache
def jpeg() -> bytes:
    """The photograph's centre, at the quality whose size is nearest to 90 kB."""
    with Image.open(COFFEE.path) as photo:
        left, top = (photo.width - WIDTH) // 2, (photo.height - HEIGHT) // 2
        cut = photo.convert("RGB").crop((left, top, left + WIDTH, top + HEIGHT))
    return min((_saved(cut, quality) for quality in range(80, 100)), key=lambda data: abs(len(data) - BYTES))


def pixels() -> NDArray[np.uint8]:
    """The photograph, uint8 ``[375, 500, 3]``."""
    with Image.open(io.BytesIO(jpeg())) as photo:
        return np.asarray(photo.convert("RGB"))


def batch(count: int, height: int, width: int) -> NDArray[np.uint8]:
    """`count` different images of a network's input size, uint8 ``[count, height, width, 3]``."""
    photo = Image.fromarray(pixels()).resize((width, height))
    return np.stack([np.roll(np.asarray(photo), 8 * number, axis=1) for number in range(count)])


def _saved(image: Image.Image, quality: int) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()

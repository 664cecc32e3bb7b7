"""P8: the PNG writer against OpenCV's and Pillow's fastest level, on an overlay as the service draws it."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from functools import partial

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.imaging.encode import encode_image, encode_png
from service.imaging.overlay import compose
from service.imaging.provenance import ClassProvenance, Provenance
from tests.bench.image import pixels
from tests.bench.report import Row, Side, Target
from tests.bench.timing import Schedule, columns, ratios, rounds, seconds_of

SPAN_S = 0.6
SIZES = ((500, 375), (1600, 1200))
PROVENANCE = Provenance(
    software="camserve",
    model="efficientnet_lite0",
    version="1",
    digest=f"sha256:{'0' * 64}",
    method="gradcam",
    polarity="positive",
    scale="minmax",
    request_id="0" * 32,
    layers=("bn2",),
    classes=(ClassProvenance(image=1, class_id=282, label="tiger cat", probability=0.3935),),
)


def measure(plan: Schedule, wanted: set[str]) -> Iterator[Row]:
    """P8, for a small and a large image."""
    if "P8" not in wanted:
        return
    for width, height in SIZES:
        yield from against(overlay(width, height), plan)


def overlay(width: int, height: int) -> NDArray[np.uint8]:
    """The photograph with a smooth hill of heat, uint8 ``[height, width, 3]``."""
    rgb = np.asarray(cv2.resize(pixels(), (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)
    across, down = np.linspace(-2, 2, width), np.linspace(-2, 2, height)
    hill = np.exp(-(across[None, :] ** 2) - down[:, None] ** 2).astype(np.float32)
    region = (0, 0, width, height)
    return compose(rgb, hill, region=region, color_map=None, alpha=0.5, overlay_type="original", signed=False)


def against(image: NDArray[np.uint8], plan: Schedule) -> Iterator[Row]:
    """One row per peer, and what provenance costs."""
    height, width, _ = image.shape
    encoders: dict[str, Callable[[], bytes]] = {
        "camserve": partial(encode_png, image),
        "OpenCV": partial(_opencv, np.ascontiguousarray(image[:, :, ::-1])),
        "Pillow": partial(_pillow, image),
        "with provenance": partial(encode_image, image, "png", PROVENANCE),
    }
    size = {name: len(encode()) / 1000 for name, encode in encoders.items()}
    measures = {name: seconds_of(encode, span_s=plan.seconds(SPAN_S)) for name, encode in encoders.items()}
    took = columns(list(rounds(measures, plan.rounds)))
    for peer in ("OpenCV", "Pillow"):
        yield Row(
            "P8",
            f"PNG against {peer} level 1, {width}x{height}",
            tuple(ratios(took[peer], took["camserve"])),
            "x",
            Target(">=", 5) if peer == "OpenCV" else None,
            tuple(Side(name, tuple(1000 * seconds for seconds in took[name]), "ms") for name in ("camserve", peer)),
            note=f"{size['camserve']:.0f} kB against {size[peer]:.0f} kB ({size['camserve'] / size[peer] - 1:+.1%})",
        )

    yield Row(
        "P8",
        f"PNG with its provenance inside / without, {width}x{height}",
        tuple(ratios(took["with provenance"], took["camserve"])),
        "x",
        None,
        tuple(Side(name, tuple(1000 * seconds for seconds in took[name]), "ms") for name in ("with provenance", "camserve")),
    )


def _opencv(bgr: NDArray[np.uint8]) -> bytes:
    _, encoded = cv2.imencode(".png", bgr, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    return encoded.tobytes()


def _pillow(image: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", compress_level=1)
    return file.getvalue()

"""A contact sheet of every method on two photographs: `python -m tests.method_gallery --out docs/methods.png`.

With the embedded model, which has no attention: methods that read attention are left out.
"""

from __future__ import annotations

import argparse
import asyncio
import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from service.engine.methods import METHODS
from service.errors import MethodNotApplicable
from service.explain.explainer import Explainer
from service.explain.options import ExplainOptions
from service.explain.plan import ImageInput
from service.explain.registry import Registry
from service.explain.scheduler import Deadline
from service.imaging.tiles import Section, Tile, tile_sheet
from service.settings import Settings
from service.telemetry import Metrics
from tests.photographs import CHELSEA, COFFEE, Photograph

PHOTOGRAPHS = (CHELSEA, COFFEE)
COLUMNS = 8
FINE = "input gradient"  # the family whose maps are of single pixels
TILE_WIDTH = 170
COLORS = 256  # of the file's palette
TILE_S = 3600.0  # for one map


def main() -> None:
    """Writes the sheet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    asked = parser.parse_args()
    sheet = asyncio.run(draw(asked.methods))
    sheet.quantize(COLORS, dither=Image.Dither.NONE).save(asked.out, optimize=True)


async def draw(methods: list[str]) -> Image.Image:
    """One section for each photograph, one tile for each method that fits the embedded model."""
    settings = Settings(log_level="warning", log_format="json")
    registry = Registry(settings, Metrics())
    await registry.start()
    with ThreadPoolExecutor(2) as codecs:
        explainer = Explainer(registry, settings, codecs, Metrics())
        sections = [
            Section(
                f"{photograph.top[1]}  {photograph.top[2]:.0%}",
                "EfficientNet-Lite0; what speaks for the class, each map on its own scale",
                tuple([tile for method in methods for tile in await _tiles(explainer, photograph, method)]),
            )
            for photograph in PHOTOGRAPHS
        ]
    await registry.close()
    return Image.fromarray(tile_sheet(sections, columns=COLUMNS, width=TILE_WIDTH))


async def _tiles(explainer: Explainer, photograph: Photograph, method: str) -> list[Tile]:
    # A few pixels outshine all others in maps of single pixels.
    top = 99 if METHODS[method].family == FINE else 100
    options = ExplainOptions(
        method=method, class_id=(photograph.top[0],), fit="squash", size=2 * TILE_WIDTH, clip_percent_upperbound=top
    )
    try:
        async with (deadline := Deadline(TILE_S)).enforce():
            answer = await explainer.explain([ImageInput(photograph.data, options)], options, "png", deadline)
    except MethodNotApplicable:
        return []
    assert answer.media is not None
    return [Tile(np.asarray(Image.open(io.BytesIO(answer.media.data)).convert("RGB")), method)]


if __name__ == "__main__":
    main()

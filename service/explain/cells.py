"""Maps as the cells of their grid (`size=grid`): when there is one grid to show, and its cells, scaled as they are elsewhere.

Runs in a codec thread; knows no HTTP and no torch.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from service.engine.types import EngineResult
from service.errors import ParameterInvalid
from service.explain.options import ExplainOptions
from service.imaging.geometry import Placement, crop_cells
from service.imaging.heatmap import scale_maps


def check_one_grid(grids: Collection[tuple[int, int]]) -> None:
    """Refuses cells of layers that have no cells in common.

    Args:
        grids: (rows, columns) of each layer.

    Raises:
        ParameterInvalid: they differ.
    """
    if len(found := sorted(set(grids))) > 1:
        sizes = ", ".join(f"{rows} x {columns}" for rows, columns in found)
        raise ParameterInvalid(
            f"size: these layers have grids of {sizes} cells, which are fused at the size of the input. Ask for one layer, or "
            "for size=input."
        )


def check_cells(results: Sequence[EngineResult], most: int) -> None:
    """Refuses cells that are too many to send, and layers whose grids differ at the size of an image (`fit=native`).

    Args:
        results: of the images of an answer.
        most: values in all.

    Raises:
        ParameterInvalid: as said.
    """
    maps = [layers for result in results for layers in result.maps]
    for layers in maps:
        check_one_grid([(grid.shape[0], grid.shape[1]) for grid in layers])
    total = sum(layers[0].size for layers in maps)
    if total > most:
        raise ParameterInvalid(f"size: the answer would hold {total} values of {most} allowed; ask for fewer classes.")


def scale_cells(result: EngineResult, placement: Placement, options: ExplainOptions) -> tuple[NDArray[np.float32], ...]:
    """For each class the cells of its grid that lie in the image, float32 ``[rows, columns]``, scaled as the options say.

    They are scaled among all cells of the grid, those over padding too, as maps of other sizes are.
    """
    if not result.maps:
        return ()
    rows, columns = result.maps[0][0].shape
    heatmaps = scale_maps(result.maps, polarity=options.polarity, scale=options.scale, input_size=(rows, columns))
    return tuple(crop_cells(heatmap.values, placement) for heatmap in heatmaps)

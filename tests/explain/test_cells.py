"""Maps as the cells of their grid: the engine's own, scaled; and what has no one grid is refused."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from service.engine.batch import EngineRequest
from service.engine.types import EngineResult
from service.errors import ParameterInvalid
from service.explain.cells import check_cells, check_one_grid
from service.explain.model import Model
from service.explain.results import EncodedMedia, ExplainResult
from service.vocabulary import Delivery
from tests.explain.small_service import SmallService, explained, small_network, small_service
from tests.explain.test_preprocess import DATA, prepare

pytestmark = pytest.mark.anyio
CLASSES = (1, 4)


@pytest.fixture
async def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    async with small_service(tmp_path, monkeypatch) as service:
        yield service


@pytest.fixture
def raw(model: Model) -> NDArray[np.float32]:
    """The engine's maps of the classes, float32 ``[2, 8, 8]``."""
    (result,) = small_network().run([EngineRequest(pixels=prepare(DATA, model, "crop").pixels, classes=CLASSES)])
    assert isinstance(result, EngineResult)
    return np.stack([layers[0] for layers in result.maps])


async def cells(small: SmallService, **options: Any) -> NDArray[np.float32]:
    """As JSON lists, which must be what .npy says in and without JSON."""
    options |= {"size": "grid", "class_id": CLASSES}
    (listed,) = explained(await small.explain(DATA, heatmap="list", **options))
    (encoded,) = explained(await small.explain(DATA, heatmap="npy", **options))
    answer = await small.explain(DATA, delivery="npy", **options)
    assert answer.media is not None
    whole: NDArray[np.float32] = np.load(io.BytesIO(answer.media.data))
    assert (answer.media.height, answer.media.width) == whole.shape[1:]
    np.testing.assert_array_equal(np.array([one.heatmap for one in listed.explanations], np.float32), whole)
    for one, values in zip(encoded.explanations, whole, strict=True):
        assert isinstance(one.heatmap, EncodedMedia)
        assert (one.heatmap.height, one.heatmap.width) == values.shape
        np.testing.assert_array_equal(np.load(io.BytesIO(base64.b64decode(one.heatmap.b64))), values)
    return whole


async def test_cells_are_the_engines_own(small: SmallService, raw: NDArray[np.float32]) -> None:
    found = await cells(small, scale="none", polarity="both")
    np.testing.assert_allclose(found, raw, atol=1e-6)


async def test_cells_are_scaled_as_maps_of_other_sizes_are(small: SmallService, raw: NDArray[np.float32]) -> None:
    positive = np.maximum(raw, 0)
    spread = np.stack([(one - one.min()) / np.ptp(one) for one in positive])
    np.testing.assert_allclose(await cells(small), spread, atol=1e-5)
    peaks = positive.max(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(await cells(small, scale="max"), positive / peaks, atol=1e-6)
    np.testing.assert_allclose(await cells(small, scale="shared"), positive / peaks.max(), atol=1e-6)
    np.testing.assert_allclose(await cells(small, scale="none", polarity="negative"), np.maximum(-raw, 0), atol=1e-6)


async def test_only_cells_of_the_image_are_told_not_those_of_its_padding(small: SmallService) -> None:
    whole = await cells(small, fit="pad", scale="none", polarity="both")
    assert whole.shape == (2, 4, 8)  # 96 x 48 pixels in a square: padding above and below
    cropped = await cells(small, fit="crop", scale="none", polarity="both")
    assert cropped.shape == (2, 8, 8)


async def test_an_overlay_beside_cells_has_the_size_of_the_original(small: SmallService) -> None:
    (result,) = explained(await small.explain(DATA, size="grid", heatmap="list", overlay=True))
    (one,) = result.explanations
    assert np.asarray(one.heatmap).shape == one.grid
    assert one.grid == (8, 8)
    assert one.overlay is not None
    assert Image.open(io.BytesIO(base64.b64decode(one.overlay.b64))).size == (96, 48)


async def test_layers_of_one_grid_are_fused_by_their_mean(small: SmallService) -> None:
    async def of(*layers: str) -> NDArray[np.float32]:
        return await cells(small, layer=layers, scale="none", polarity="both")

    deep = await of("block")
    inner = next(name for name, info in small_network().layers.items() if info.grid == (8, 8) and name != "block")
    np.testing.assert_allclose(await of("block", inner), (deep + await of(inner)) / 2, atol=1e-6)


@pytest.mark.parametrize(
    ("delivery", "options", "words"),
    [
        ("png", {}, "grid is for maps"),
        ("json", {"overlay": True}, "grid is for maps"),
        ("json", {"heatmap": "png16"}, "grid is for maps"),
        ("json", {"heatmap": "none"}, "grid is for maps"),
        ("npy", {"method": "saliency"}, "saliency has no grid"),
        ("npy", {"method": "guided_gradcam"}, "guided_gradcam has no grid"),
        ("json", {"heatmap": "list", "method": "rise"}, "rise has no grid"),
        ("npy", {"layer": ("stem", "block")}, "grids of 8 x 8, 16 x 16 cells"),
    ],
)
async def test_what_has_no_cells_is_refused_before_it_is_decoded(
    small: SmallService, delivery: Delivery, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ParameterInvalid, match=f"^size: .*{words}"):
        await small.explain(b"no image", delivery=delivery, size="grid", **options)


async def test_predictions_have_no_map_whose_size_could_be_wrong(small: SmallService) -> None:
    answer = await small.predict(DATA, size="grid")
    assert not isinstance(answer.results[0], ExplainResult)


def results(*grids: tuple[int, int], classes: int = 1) -> list[EngineResult]:
    maps = tuple(tuple(np.zeros(grid, np.float32) for grid in grids) for _ in range(classes))
    logits = np.zeros(3, np.float32)
    return [EngineResult(logits=logits, classes=(0,) * classes, maps=maps, layers=(), engine="torch", precision="fp32")]


def test_the_most_cells_of_an_answer() -> None:
    check_cells(results((5, 4), classes=3) * 2, 120)
    with pytest.raises(ParameterInvalid, match="would hold 120 values of 119 allowed"):
        check_cells(results((5, 4), classes=3) * 2, 119)
    with pytest.raises(ParameterInvalid, match="grids of 4 x 4, 5 x 4 cells"):
        check_cells(results((5, 4), (4, 4)), 1000)
    check_cells([], 0)


def test_one_grid_may_be_that_of_several_layers() -> None:
    check_one_grid([(7, 7), (7, 7)])
    with pytest.raises(ParameterInvalid, match="7 x 7, 14 x 14"):
        check_one_grid([(14, 14), (7, 7), (7, 7)])

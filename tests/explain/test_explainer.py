"""One request's way: what is refused and when, deadlines in every stage, several images, and classes end to end."""

from __future__ import annotations

import asyncio
import base64
import io
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from service.engine.batch import EngineRequest
from service.engine.network import Network
from service.engine.types import EngineResult
from service.errors import (
    CamserveError,
    ClassNotFound,
    DeadlineExceeded,
    EngineError,
    ImageTruncated,
    LayerNotFound,
    MethodNotApplicable,
    ModelNotFound,
    NotAcceptable,
    Overloaded,
    ParameterInvalid,
    UnsupportedImageType,
)
from service.explain.results import ExplainResult, Media
from service.imaging.provenance import decode_xmp
from tests import image_files as make
from tests.explain.small_service import SmallService, explained, small_service

pytestmark = pytest.mark.anyio

IMAGE = make.save(make.scene(96, 48), "PNG")
BROKEN = IMAGE[:200]
SOON_S = 0.2
PATIENCE_S = 10.0


@pytest.fixture
async def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[SmallService]:
    async with small_service(tmp_path, monkeypatch) as small:
        yield small


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Open at the end at the latest, so that no thread is left behind."""
    gate = threading.Event()
    yield gate
    gate.set()


def batches(monkeypatch: pytest.MonkeyPatch, before: Callable[[], object] = lambda: None) -> list[int]:
    """Sizes of the batches that the network is given from now on; it calls `before` on each."""
    sizes: list[int] = []
    run = Network.run

    def observed(network: Network, requests: Sequence[EngineRequest], *checkpoints: Any) -> list[EngineResult | Exception]:
        sizes.append(len(requests))
        before()
        return run(network, requests, *checkpoints)

    monkeypatch.setattr(Network, "run", observed)
    return sizes


async def array(small: SmallService, **options: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
    media = (await small.explain(IMAGE, delivery="npy", **options)).media
    assert media is not None
    return np.asarray(np.load(io.BytesIO(media.data), allow_pickle=False), np.float32)


async def test_class_zero_is_a_class(small: SmallService) -> None:
    (image,) = explained(await small.explain(IMAGE, class_id=0))
    (explanation,) = image.explanations
    assert (explanation.class_id, explanation.label) == (0, "class 0")
    (by_name,) = explained(await small.explain(IMAGE, class_name="class 0"))
    assert by_name.explanations == image.explanations
    best = image.predictions[0].class_id
    assert best != 0
    assert not np.array_equal(await array(small, class_id=0), await array(small))


async def test_class_zero_to_contrast_with(small: SmallService) -> None:
    (image,) = explained(await small.explain(IMAGE, class_id=4, versus=0))
    versus = image.explanations[0].versus
    assert versus is not None
    assert versus.class_id == 0
    signed: dict[str, Any] = {"polarity": "both", "scale": "none"}
    four, zero = await array(small, class_id=4, **signed), await array(small, class_id=0, **signed)
    np.testing.assert_allclose(await array(small, class_id=4, versus=0, **signed), four - zero, atol=1e-5)


async def test_the_best_class_where_none_is_named(small: SmallService) -> None:
    (image,) = explained(await small.explain(IMAGE, top_k=3))
    assert [one.class_id for one in image.explanations] == [one.class_id for one in image.predictions]
    assert len(image.predictions) == 3


async def test_predicting(small: SmallService) -> None:
    answer = await small.predict(IMAGE, IMAGE, IMAGE)
    assert len(answer.results) == answer.batch_size == 3
    assert not any(isinstance(result, ExplainResult) for result in answer.results)
    (alone,) = (await small.explain(IMAGE)).results
    assert answer.results[0].predictions[0].logit == pytest.approx(alone.predictions[0].logit, abs=1e-5)


async def test_times_and_metrics(small: SmallService) -> None:
    answer = await small.explain(IMAGE, IMAGE)
    times = answer.timings
    assert 0 < times.decode + times.queue + times.infer + times.render <= times.total
    assert times.evaluate == 0
    told = small.metrics.render()[0].decode()
    assert 'camserve_images_total{model="tiny"} 2.0' in told
    for stage in ("decode", "queue", "infer", "render"):
        assert f'camserve_stage_seconds_count{{stage="{stage}"}} 1.0' in told
    assert 'stage="evaluate"' not in told


async def test_the_time_of_an_evaluation(small: SmallService) -> None:
    times = (await small.explain(IMAGE, evaluate=True)).timings
    assert times.evaluate > 0
    assert times.decode + times.queue + times.infer + times.evaluate + times.render <= times.total
    assert 'camserve_stage_seconds_count{stage="evaluate"} 1.0' in small.metrics.render()[0].decode()


async def test_a_sheet_of_layers_says_what_it_shows(small: SmallService) -> None:
    answer = await small.inspect(IMAGE, delivery="png", class_id=2, layer="block")
    assert answer.media is not None
    provenance = decode_xmp(Image.open(io.BytesIO(answer.media.data)).info["xmp"])
    assert provenance is not None
    assert (provenance.model, provenance.digest, provenance.layers) == ("tiny", answer.model.digest, ("block",))
    assert (provenance.method, provenance.scale, provenance.request_id) == (None, None, None)
    assert [shown.class_id for shown in provenance.classes] == [2]


async def test_each_overlay_of_several_images_says_which_it_is_of(small: SmallService) -> None:
    results = explained(await small.explain(IMAGE, IMAGE, class_id="1,0", overlay=True, method="layercam", layer="block"))
    found = []
    for result in results:
        for explanation in result.explanations:
            assert explanation.overlay is not None
            image = Image.open(io.BytesIO(base64.b64decode(explanation.overlay.b64)))
            provenance = decode_xmp(image.info["xmp"])
            assert provenance is not None
            assert (provenance.method, provenance.layers) == ("layercam", ("block",))
            found += [(shown.image, shown.class_id) for shown in provenance.classes]
    assert found == [(1, 1), (1, 0), (2, 1), (2, 0)]


async def test_what_methods_cost_and_what_their_maps_count(small: SmallService) -> None:
    methods = {method.name: method for method in small.explainer.methods()}
    assert (methods["rise"].passes, methods["rise"].raw_unit) == (160, "logit")
    assert (methods["eigencam"].passes, methods["eigencam"].raw_unit) == (1, "activation")
    (image,) = explained(await small.explain(IMAGE, method="eigencam"))
    assert image.explanations[0].raw_unit == "activation"


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"model": "nope"}, ModelNotFound),
        ({"method": "tea-leaves"}, MethodNotApplicable),
        ({"layer": "nowhere"}, LayerNotFound),
        ({"class_id": 10}, ClassNotFound),
        ({"class_id": ",".join("1" * 17)}, ParameterInvalid),
    ],
)
async def test_what_is_known_before_decoding_is_refused_before_it(
    small: SmallService, options: dict[str, Any], error: type[CamserveError]
) -> None:
    with pytest.raises(error):
        await small.explain(BROKEN, **options)


async def test_one_document_for_one_explanation(small: SmallService) -> None:
    with pytest.raises(NotAcceptable, match="asks for 2 explanations"):
        await small.explain(BROKEN, class_id="1,2", delivery="png")
    with pytest.raises(NotAcceptable, match="asks for 2 explanations"):
        await small.explain(BROKEN, BROKEN, delivery="jpeg")
    with pytest.raises(NotAcceptable, match="array"):
        await small.explain(BROKEN, BROKEN, delivery="npy")
    assert (await small.explain(IMAGE, IMAGE, class_id="1,2", delivery="png", overlay_type="panel")).media


async def test_of_several_images_the_broken_one_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = batches(monkeypatch)
    async with small_service(tmp_path, monkeypatch) as small:
        sizes.clear()
        with pytest.raises(ImageTruncated, match=r"^Image 2 of 3: "):
            await small.explain(IMAGE, BROKEN, IMAGE)
        with pytest.raises(UnsupportedImageType) as alone:
            await small.explain(b"a cat")
        assert "Image 1" not in alone.value.detail
        assert not sizes
        await small.explain(IMAGE, IMAGE)
        assert sizes == [2]


async def test_a_full_queue_is_told_before_anything_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gate: threading.Event
) -> None:
    async with small_service(tmp_path, monkeypatch, max_queue_size=2, max_images_per_request=2) as small:
        for _ in range(2):
            small.codecs.submit(gate.wait, PATIENCE_S)
        decoding = asyncio.create_task(small.explain(IMAGE, IMAGE))  # waits for a codec thread
        await asyncio.sleep(0)
        with pytest.raises(Overloaded) as refused:
            await small.explain(BROKEN)
        assert refused.value.retry_after_s is not None
        assert refused.value.retry_after_s >= 1
        gate.set()
        assert len((await decoding).results) == 2
        with pytest.raises(ImageTruncated):
            await small.explain(BROKEN)  # places in the line have been given back


async def test_too_late_while_decoding(small: SmallService, gate: threading.Event) -> None:
    for _ in range(2):
        small.codecs.submit(gate.wait, PATIENCE_S)
    with pytest.raises(DeadlineExceeded):
        await small.explain(IMAGE, within_s=SOON_S)
    gate.set()
    assert (await small.explain(IMAGE)).results


async def test_too_late_for_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gate: threading.Event) -> None:
    gate.set()  # the worker's own first prediction passes
    sizes = batches(monkeypatch, lambda: gate.wait(PATIENCE_S))
    async with small_service(tmp_path, monkeypatch) as small:
        gate.clear()
        sizes.clear()
        with pytest.raises(DeadlineExceeded):
            await small.explain(IMAGE, within_s=SOON_S)
        assert sizes == [1]  # it was inside when its time was up
        with pytest.raises(DeadlineExceeded):
            await small.explain(IMAGE, IMAGE, within_s=SOON_S)
        gate.set()
        assert (await small.explain(IMAGE)).results
        assert sizes == [1, 1]  # those whose time was up in the line never reached it


async def test_too_late_while_drawing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gate: threading.Event) -> None:
    worlds: list[SmallService] = []

    def occupy_the_codecs() -> None:
        if worlds and not gate.is_set():
            for _ in range(2):
                worlds[0].codecs.submit(gate.wait, PATIENCE_S)

    batches(monkeypatch, occupy_the_codecs)
    async with small_service(tmp_path, monkeypatch) as small:
        worlds.append(small)
        with pytest.raises(DeadlineExceeded):
            await small.explain(IMAGE, within_s=SOON_S)
        gate.set()
        assert (await small.explain(IMAGE)).results


async def test_a_deadline_that_has_passed_reaches_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = batches(monkeypatch)
    async with small_service(tmp_path, monkeypatch) as small:
        sizes.clear()
        with pytest.raises(DeadlineExceeded):
            await small.explain(IMAGE, within_s=-1)
        assert not sizes


async def test_a_network_that_fails_is_an_error_of_ours_for_this_request_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults: list[bool] = []

    def fail() -> None:
        if faults:
            faults.pop()
            raise RuntimeError("CUDA error at 0xdeadbeef")

    batches(monkeypatch, fail)
    async with small_service(tmp_path, monkeypatch) as small:
        faults.append(True)
        with pytest.raises(EngineError) as failed:
            await small.explain(IMAGE)
        assert "CUDA" not in failed.value.detail
        assert (await small.explain(IMAGE)).results


async def test_who_is_cancelled_leaves_no_place_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gate: threading.Event
) -> None:
    async with small_service(tmp_path, monkeypatch, max_queue_size=2, max_images_per_request=2) as small:
        for _ in range(2):
            small.codecs.submit(gate.wait, PATIENCE_S)
        task = asyncio.create_task(small.explain(IMAGE, IMAGE))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        gate.set()
        assert len((await small.explain(IMAGE, IMAGE)).results) == 2


async def test_methods_are_told(small: SmallService) -> None:
    told = {method.name: method for method in small.explainer.methods()}
    assert told["gradcam"].cost == "head"
    assert "1610.02391" in told["gradcam"].paper


async def test_a_image_is_the_document(small: SmallService) -> None:
    answer = await small.explain(IMAGE, delivery="webp", size=64)
    assert isinstance(answer.media, Media)
    assert (answer.media.media_type, answer.media.width, answer.media.height) == ("image/webp", 64, 32)
    assert explained(answer)[0].explanations[0].heatmap is None

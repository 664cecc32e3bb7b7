"""What the owner of a model must know before it serves: whether the maps of its methods depend on what it learnt.

Runs for seconds to minutes, on a model that serves nobody. Knows no HTTP and no torch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import mean
from typing import Final

import numpy as np
from numpy.typing import NDArray

from service import __version__
from service.engine.batch import EngineRequest
from service.engine.evaluation.sanity import rank_correlation
from service.engine.methods import METHODS
from service.engine.types import EngineResult, EvaluationRequest, Faithfulness
from service.explain.model import Model
from service.explain.options import ExplainOptions
from service.explain.preprocess import PreparedImage
from service.explain.render import render_heatmaps
from service.explain.results import FaithfulnessScores, MethodCheck, ModelCheck

DEFAULT_METHOD: Final = "gradcam"
BASELINE_METHOD: Final = "random_cam"  # is not to be trusted by design
IGNORES: Final = 0.98  # a rank correlation above it: the map is the same for other weights of the head
DEPENDS_IN_PART: Final = 0.7

Map = NDArray[np.float32]
Results = Sequence[EngineResult]


def methods_to_check(model: Model, *, every: bool) -> tuple[str, ...]:
    """The methods that fit a model: every one, or those that need few passes of the network, of the fast lane."""
    return tuple(name for name in model.network.methods if name != BASELINE_METHOD and (every or METHODS[name].lane == "fast"))


def check_model(
    model: Model,
    images: Sequence[PreparedImage],
    methods: Sequence[str],
    evaluated: Sequence[str],
    advance: Callable[[], None] = lambda: None,
) -> ModelCheck:
    """Explains the best class of each image with each method, before and after the weights of the head are shuffled.

    Args:
        model: loaded; nobody else may use it meanwhile.
        images: at least one.
        methods: names of methods that fit.
        evaluated: those of them whose faithfulness is measured too, see `Evaluation`.
        advance: called after each method and each image's evaluation: `len(methods) + len(images)` times.
    """
    network = model.network
    predictions = _run(model, [EngineRequest(pixels=image.pixels) for image in images])
    classes = [int(result.logits.argmax()) for result in predictions]
    checks: list[MethodCheck] = []
    maps: dict[str, Results] = {}
    for name in methods:
        method, parameters = network.resolve_method(name)
        requests = [
            EngineRequest(pixels=image.pixels, classes=(class_id,), method=method, parameters=parameters)
            for image, class_id in zip(images, classes, strict=True)
        ]
        started = time.perf_counter()
        before = _run(model, requests)
        seconds = (time.perf_counter() - started) / len(images)
        with network.shuffled_head():
            after = _run(model, requests)
        sanity = _sanity(before, after)
        if name in evaluated:
            maps[name] = before
        checks.append(MethodCheck(method=name, ms=1000 * seconds, sanity=sanity, verdict=_verdict(sanity), faithfulness=None))
        advance()
    scores, random, center = _evaluate(model, images, classes, maps, advance)
    return ModelCheck(
        camserve=__version__,
        digest=network.digest,
        layer=network.default_layers,
        images=len(images),
        methods=tuple(
            MethodCheck(
                method=one.method, ms=one.ms, sanity=one.sanity, verdict=one.verdict, faithfulness=scores.get(one.method)
            )
            for one in checks
        ),
        random=random,
        center=center,
    )


def problems(check: ModelCheck, layer_warning: str | None = None) -> list[str]:
    """Why a model would not serve well; [] where nothing was found.

    Args:
        check: of its methods.
        layer_warning: why maps at its default layer show nothing, if so.
    """
    found = [f"{layer_warning}; name another one with layer"] if layer_warning is not None else []
    for one in check.methods:
        if one.method != DEFAULT_METHOD:
            continue
        if one.sanity is None and layer_warning is None:
            found.append(f"every map of {one.method} is blank: the layer carries no evidence; name another one with layer")
        if one.faithfulness is not None and check.random is not None and one.faithfulness.insertion <= check.random.insertion:
            found.append(
                f"maps of {one.method} are no more faithful than random ones (insertion {one.faithfulness.insertion:.3f}, of "
                f"random maps {check.random.insertion:.3f}): are these the network's weights, and is its preprocessing right?"
            )
    return found


def _run(model: Model, requests: Sequence[EngineRequest]) -> Results:
    """The results of requests, a batch at a time.

    Raises:
        CamserveError: the network failed.
    """
    results: list[EngineResult] = []
    for start in range(0, len(requests), model.max_batch_size):
        for result in model.network.run(requests[start : start + model.max_batch_size]):
            if isinstance(result, Exception):
                raise result
            results.append(result)
    return results


def _sanity(before: Results, after: Results) -> float | None:
    """The mean rank correlation of maps, positive evidence as it is rendered; None where every map is blank."""
    correlations = []
    for one, other in zip(before, after, strict=True):
        own, shuffled = (np.maximum(result.maps[0][0], 0) for result in (one, other))
        if own.any():
            # A map that became blank has no order left, and nothing in common with the one before.
            correlations.append(rank_correlation(own, shuffled) or 0.0)
    return mean(correlations) if correlations else None


def _verdict(sanity: float | None) -> str:
    """What the map does on this network, in words."""
    if sanity is None:
        return "is blank"
    if sanity > IGNORES:
        return "ignores the class"
    return "depends in part" if sanity > DEPENDS_IN_PART else "depends on the class"


def _evaluate(
    model: Model,
    images: Sequence[PreparedImage],
    classes: Sequence[int],
    maps: Mapping[str, Results],
    advance: Callable[[], None],
) -> tuple[dict[str, FaithfulnessScores], FaithfulnessScores | None, FaithfulnessScores | None]:
    """The mean faithfulness of each method, of random maps and of a centred one; all methods of an image share these two."""
    of_methods: dict[str, list[Faithfulness]] = {name: [] for name in maps}
    random: list[Faithfulness] = []
    center: list[Faithfulness] = []
    for index, image in enumerate(images):
        heatmaps = [render_heatmaps(image, results[index], ExplainOptions(method=name))[0] for name, results in maps.items()]
        request = EvaluationRequest(
            pixels=image.pixels,
            classes=(classes[index],) * len(heatmaps),
            maps=tuple(heatmap.values for heatmap in heatmaps),
            grid=model.network.layers[model.network.default_layers[0]].grid,
            activation=model.network.activation,
        )
        evaluations = model.network.evaluate(request) if heatmaps else ()
        for name, evaluation in zip(maps, evaluations, strict=True):
            of_methods[name].append(evaluation.map)
        random += [evaluation.random for evaluation in evaluations[:1]]
        center += [evaluation.center for evaluation in evaluations[:1]]
        advance()
    means = {name: _mean(measured) for name, measured in of_methods.items() if measured}
    return means, _mean(random) if random else None, _mean(center) if center else None


def _mean(measured: Sequence[Faithfulness]) -> FaithfulnessScores:
    return FaithfulnessScores(
        deletion=mean(one.deletion for one in measured),
        insertion=mean(one.insertion for one in measured),
        average_drop=mean(one.average_drop for one in measured),
        road=mean(one.road for one in measured),
    )

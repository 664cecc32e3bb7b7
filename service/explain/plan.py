"""A request understood: model, method, parameters and classes found, and all that can be refused before a byte is decoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from service import __version__
from service.engine.batch import EngineRequest
from service.engine.evaluation.faithfulness import PASSES_PER_MAP
from service.engine.methods.input_gradients import GRADIENT_COST
from service.engine.methods.method import Method
from service.engine.types import LayerStatisticsRequest, MethodParameters
from service.errors import NotAcceptable, ParameterInvalid
from service.explain.cache import CacheKey
from service.explain.cells import check_one_grid
from service.explain.model import ClassSelection, Model
from service.explain.options import ExplainOptions, InspectOptions, Targets
from service.explain.preprocess import PreparedImage
from service.imaging.provenance import Provenance
from service.vocabulary import CachePolicy, Delivery, Fit, LaneName, Size


@dataclass(frozen=True, slots=True)
class ImageInput:
    """One image of a request, as its file's bytes or as upright pixels, uint8 ``[H, W, 3]``, with the classes asked for."""

    data: bytes | NDArray[np.uint8]
    targets: Targets


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A request of /predict or /explain whose model, method and classes have been found.

    Attributes:
        method, parameters: as `Network.resolve_method` gives them.
        selections: one per image.
        request_id: None where no request over HTTP asks.
    """

    model: Model
    method: Method
    parameters: MethodParameters
    images: tuple[ImageInput, ...]
    selections: tuple[ClassSelection, ...]
    options: ExplainOptions
    delivery: Delivery
    policy: CachePolicy = "use"
    request_id: str | None = None

    @property
    def fit(self) -> Fit:
        """How images meet the network."""
        return self.options.fit or self.model.network.preprocessing.fit

    @property
    def lane(self) -> LaneName:
        """The lane that runs it; an image size not met before has the network exported, which takes seconds."""
        return "slow" if self.fit == "native" else self.method.lane

    @property
    def explains(self) -> bool:
        """Whether any class of any image is to be explained; else there are predictions only."""
        return any(selection.count for selection in self.selections)

    @property
    def evaluates(self) -> bool:
        """Whether explanations are to be measured: only where the answer has a place for it."""
        plotted = self.options.overlay_type == "curves" and (self.delivery != "json" or self.options.overlay)
        return self.explains and self.delivery != "npy" and (plotted or (self.options.evaluate and self.delivery == "json"))

    @property
    def rendered_size(self) -> Size | None:
        """At which size images are rendered; None where the answer holds none."""
        rendered = self.options.overlay if self.delivery == "json" else self.delivery != "npy"
        return self.options.image_size if self.explains and rendered else None

    @property
    def places(self) -> dict[LaneName, int]:
        """How many places it takes in which lane."""
        count = len(self.images)
        places: dict[LaneName, int] = {self.lane: count}
        if self.evaluates:
            places["slow"] = places.get("slow", 0) + count
        return places

    @property
    def costs(self) -> list[int]:
        """Passes of the network that the maps of each image need."""
        layers = len(self.options.layer or self.model.network.default_layers) if self.method.layered else 1
        passes = self.method.passes(self.parameters) * layers
        return [max(1, passes * selection.count) for selection in self.selections]

    @property
    def evaluation_costs(self) -> list[int]:
        """Passes of the network that measuring the maps of each image needs, two baselines among them."""
        return [PASSES_PER_MAP * (selection.count + 2) for selection in self.selections]

    @property
    def slow_passes(self) -> int:
        """Passes of the network in the slow lane."""
        return sum(self.costs if self.lane == "slow" else ()) + sum(self.evaluation_costs if self.evaluates else ())

    @property
    def provenance(self) -> Provenance:
        """What all images of the answer say of their origin."""
        options = self.options
        return replace(
            _provenance(self.model, self.request_id), method=options.method, polarity=options.polarity, scale=options.scale
        )

    def requests(self, images: Sequence[PreparedImage]) -> list[EngineRequest]:
        """What the network is asked; for predictions alone without a layer, so that they share any batch."""
        return [
            EngineRequest(
                pixels=image.pixels,
                classes=selection.classes,
                best=selection.best,
                versus=selection.versus,
                method=self.method,
                parameters=self.parameters,
                layers=self.options.layer if selection.count else (),
            )
            for image, selection in zip(images, self.selections, strict=True)
        ]

    def keys(self, images: Sequence[PreparedImage], requests: Sequence[EngineRequest]) -> list[CacheKey]:
        """What the results are cached by, for each image."""
        return [
            CacheKey.of(request, image.sha256, self.fit, image.decoded.reduction)
            for image, request in zip(images, requests, strict=True)
        ]

    def check_delivery(self) -> None:
        """Refuses to show several explanations as one, or as cells what has none.

        Raises:
            NotAcceptable: one image or array cannot answer this request.
            ParameterInvalid: `size=grid` is asked of an image, or of maps without one grid.
        """
        if self.options.size == "grid":
            self._check_grid()
        explanations = sum(selection.count for selection in self.selections)
        if self.delivery == "npy" and len(self.selections) > 1:
            raise NotAcceptable("An array answers for one image. Send one image a request, or accept application/json.")
        if self.delivery in {"png", "jpeg", "webp"} and explanations > 1 and self.options.overlay_type != "panel":
            raise NotAcceptable(
                f"An image shows one class of one image, and this request asks for {explanations} explanations. Use "
                "overlay_type=panel for one sheet with a row each, or accept application/json."
            )

    def _check_grid(self) -> None:
        if self.delivery != "npy" and (self.delivery != "json" or self.options.heatmap not in {"npy", "list"}):
            raise ParameterInvalid(
                "size: grid is for maps. Ask for format=npy, or in JSON for heatmap=list or npy; images have the size "
                "original, input, or a number of pixels."
            )
        if not self.method.has_grid:
            raise ParameterInvalid(
                f"size: {self.method.name} has no grid, but a value for each pixel of the network's input. Ask for size=input."
            )
        if self.method.layered:
            network = self.model.network
            check_one_grid([network.layers[layer].grid for layer in self.options.layer or network.default_layers])


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectPlan:
    """A request of /inspect whose model and classes have been found."""

    model: Model
    images: tuple[ImageInput, ...]
    selections: tuple[ClassSelection, ...]
    options: InspectOptions
    delivery: Delivery
    request_id: str | None = None

    @property
    def fit(self) -> Fit:
        """How images meet the network."""
        return self.options.fit or self.model.network.preprocessing.fit

    @property
    def rendered_size(self) -> Size | None:
        """No image of the original is rendered."""
        return None

    @property
    def costs(self) -> list[int]:
        """Passes of the network that each image needs."""
        return [GRADIENT_COST] * len(self.images)

    @property
    def provenance(self) -> Provenance:
        """What the sheet says of its origin."""
        return _provenance(self.model, self.request_id)

    def requests(self, images: Sequence[PreparedImage]) -> list[LayerStatisticsRequest]:
        """What the network is asked, for each image."""
        return [
            LayerStatisticsRequest(
                pixels=image.pixels,
                class_id=selection.classes[0] if selection.classes else None,
                versus=selection.versus,
                layers=self.options.layer,
                channels=self.options.channels,
            )
            for image, selection in zip(images, self.selections, strict=True)
        ]

    def check(self) -> None:
        """Refuses to look at several classes, or to show several images as one.

        Raises:
            ParameterInvalid: an image names more than one class.
            NotAcceptable: one sheet cannot answer this request.
        """
        if any(selection.count > 1 for selection in self.selections):
            raise ParameterInvalid("class_id, class_name, top_k: one class of an image is looked at. Name one, or none.")
        if self.delivery != "json" and len(self.selections) > 1:
            raise NotAcceptable("A sheet shows layers for one image. Send one, or accept application/json.")


def _provenance(model: Model, request_id: str | None) -> Provenance:
    identity = model.identity
    return Provenance(
        software=f"camserve {__version__}",
        model=identity.name,
        version=identity.version,
        digest=identity.digest,
        request_id=request_id,
    )

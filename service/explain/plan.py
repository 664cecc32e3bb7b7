"""A request understood: model, method, parameters and classes found, and all that can be refused before a byte is decoded."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

from service.engine.evaluation.faithfulness import PASSES_PER_MAP
from service.engine.methods.method import Method
from service.engine.types import EngineRequest, EngineResult, MethodParameters
from service.errors import DeadlineExceeded, NotAcceptable, ParameterInvalid
from service.explain.batcher import Batcher
from service.explain.cache import CacheKey, CachePolicy
from service.explain.model import ClassSelection, Model
from service.explain.options import Fit, Options
from service.explain.preprocess import PreparedImage, Size
from service.explain.results import Delivery, ImageInput


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A request whose model, method and classes have been found."""

    model: Model
    method: Method
    parameters: MethodParameters
    subjects: tuple[ImageInput, ...]
    wanted: tuple[ClassSelection, ...]
    options: Options
    delivery: Delivery
    reuse: CachePolicy = "use"

    @property
    def fit(self) -> Fit:
        """How images meet the network."""
        return self.options.fit or self.model.fit

    @property
    def slow(self) -> bool:
        """Whether it runs beside the batches: it takes many passes, or the export of an image size not met before."""
        return self.method.cost == "many forwards" or self.fit == "native"

    @property
    def lane(self) -> Batcher[EngineRequest, EngineResult]:
        """The worker that runs it."""
        return self.model.slow_batcher if self.slow else self.model.batcher

    @property
    def explains(self) -> bool:
        """Whether any class of any image is to be explained; else there are predictions only."""
        return any(asked.classes or asked.best for asked in self.wanted)

    @property
    def evaluates(self) -> bool:
        """Whether explanations are to be measured: only where the answer has a place for it."""
        plotted = self.options.overlay_type == "curves" and (self.delivery != "json" or self.options.overlay)
        return self.explains and self.delivery != "npy" and (plotted or (self.options.evaluate and self.delivery == "json"))

    @property
    def drawn(self) -> Size | None:
        """At which size images are drawn; None where the answer holds none."""
        images = self.options.overlay if self.delivery == "json" else self.delivery != "npy"
        return self.options.size if self.explains and images else None

    def works(self, seen: Sequence[PreparedImage], abandoned: threading.Event) -> list[EngineRequest]:
        """What the network is asked; for predictions alone without a layer, so that they share any batch."""
        return [
            EngineRequest(
                pixels=image.pixels,
                classes=asked.classes,
                best=asked.best,
                versus=asked.versus,
                method=self.method.name,
                layers=self.options.layer if asked.classes or asked.best else (),
                parameters=self.parameters,
                abandoned=abandoned,
            )
            for image, asked in zip(seen, self.wanted, strict=True)
        ]

    def keys(self, seen: Sequence[PreparedImage], works: Sequence[EngineRequest]) -> list[CacheKey]:
        """What the outcomes are known by, for each image."""
        return [CacheKey.of(work, image.sha256, self.fit, image.image.shrunk) for image, work in zip(seen, works, strict=True)]

    def check_delivery(self) -> None:
        """Refuses to show several explanations as one.

        Raises:
            NotAcceptable: one image or array cannot answer this request.
        """
        explanations = sum(len(asked.classes) or asked.best for asked in self.wanted)
        if self.delivery == "npy" and len(self.wanted) > 1:
            raise NotAcceptable("An array answers for one image. Send one image a request, or accept application/json.")
        if self.delivery in {"png", "jpeg", "webp"} and explanations > 1 and self.options.overlay_type != "panel":
            raise NotAcceptable(
                f"An image shows one class of one image, and this request asks for {explanations} explanations. Use "
                "overlay_type=panel for one sheet with a row each, or accept application/json."
            )

    def check_inspection(self) -> None:
        """Refuses to look at several classes, or to show several images as one.

        Raises:
            ParameterInvalid: an image names more than one class.
            NotAcceptable: one image cannot answer this request.
        """
        if any(max(len(asked.classes), asked.best) > 1 for asked in self.wanted):
            raise ParameterInvalid("class_id, class_name, top_k: one class of an image is looked at. Name one, or none.")
        if self.delivery != "json" and len(self.wanted) > 1:
            raise NotAcceptable("A sheet shows layers for one image. Send one, or accept application/json.")

    def check_time(self, left_s: float) -> None:
        """Refuses at once what could not be ready in time.

        Raises:
            DeadlineExceeded: the passes that the method needs would take longer than there is time.
        """
        maps = [len(asked.classes) or asked.best for asked in self.wanted]
        layers = len(self.options.layer or self.model.network.default_layers) if self.method.layered else 1
        passes = sum(self.method.passes(self.parameters) * count * layers for count in maps)
        if self.evaluates:
            passes += sum(PASSES_PER_MAP * (count + 2) for count in maps)  # two baselines for each image
        needed = passes * self.model.network.seconds_per_image
        if (self.slow or self.evaluates) and needed > left_s:
            raise DeadlineExceeded(
                f"This would need about {needed:.0f} s here, {left_s:.0f} s are left. Ask for fewer samples or classes, or "
                "have request_timeout_s raised."
            )

"""The wire's shapes for what is measured: how faithful a map is, what a layer holds. The rest is in `schemas.py`."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Shape(BaseModel):
    """Every shape names all its fields."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class Faithfulness(Shape):
    """How one map fares; probabilities are of the class explained."""

    deletion: float = Field(description="Area under `deletion_curve`; low is good.")
    insertion: float = Field(description="Area under `insertion_curve`; high is good.")
    average_drop: float = Field(description="Part of the probability lost when the map masks the image; low is good.")
    road: float = Field(description="Mean of (`road_least` - `road_most`) / 2; high is good.")
    deletion_curve: list[float] = Field(description="Probability while pixels, hottest first, are set to the channels' means.")
    insertion_curve: list[float] = Field(
        description="Probability while pixels, hottest first, enter the image blurred by a Gaussian (kernel 11, sigma 5)."
    )
    road_most: list[float] = Field(description="Probability without the hottest pixels, for each of `road_percent`.")
    road_least: list[float] = Field(description="Probability without the coldest pixels.")


class Evaluation(Shape):
    """A map measured against the network, beside a random map on the same grid and a bump in the centre: read it by those."""

    steps: int = Field(description="Of the curves, from 0 to all of the pixels.")
    road_percent: list[int] = Field(description="Pixels removed, which ROAD makes up from their neighbours.")
    probability: float = Field(description="Of the class in the whole image.")
    map: Faithfulness
    random: Faithfulness
    center: Faithfulness


class Histogram(Shape):
    """Counts of values between edges; one more edge than counts."""

    edges: list[float]
    counts: list[int]


class Channel(Shape):
    channel: int
    weight: float = Field(description="Mean gradient of the score, as in Grad-CAM.")
    mean: float = Field(description="Mean activation.")

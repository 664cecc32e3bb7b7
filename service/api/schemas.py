"""Shapes of requests, of the greeting and of problems. Those of answers are declared in `explain.results`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.explain.options import ExplainOptions, InspectOptions, PredictOptions, Targets


class JsonImage(Targets):
    """One image. Classes that it names itself replace those of the request."""

    b64: str = Field(description="The file's bytes in standard base64, or a data URI of it.")


class JsonImages(BaseModel):
    images: list[JsonImage] | None = Field(None, description="One or more images.", min_length=1)
    image: str | None = Field(None, description="The one image: base64 or a data URI.")


class FormImages(BaseModel):
    image: list[Annotated[str, Field(json_schema_extra={"format": "binary"})]] = Field(
        description="The image as a file part; repeat it for several. `file` is another name for it."
    )


class PredictJson(PredictOptions, JsonImages):
    """Images in base64 beside the options: `images`, or `image` for one. Options of /explain are accepted too."""

    model_config = ConfigDict(extra="ignore")


class ExplainJson(ExplainOptions, JsonImages):
    """Images in base64 beside the options: `images`, or `image` for one."""


class InspectJson(InspectOptions, JsonImages):
    """Images in base64 beside the options: `images`, or `image` for one."""


class PredictForm(PredictOptions, FormImages):
    """File parts beside the options. Options of /explain are accepted too."""

    model_config = ConfigDict(extra="ignore")


class ExplainForm(ExplainOptions, FormImages):
    """File parts beside the options."""


class InspectForm(InspectOptions, FormImages):
    """File parts beside the options."""


class Welcome(BaseModel):
    """What this is and where to go on."""

    model_config = ConfigDict(extra="forbid")

    status: Literal["alive"]
    name: str
    version: str
    explain: str
    predict: str
    models: str
    methods: str
    docs: str


class Problem(BaseModel):
    """RFC 9457."""

    type: str
    title: str
    status: int
    detail: str = Field(description="What is wrong and what to do, for people.")
    instance: str = Field(description="`urn:request:` and the request's id.")
    code: str = Field(description="What is wrong, for programs: stable, in snake case.")
    error: str = Field(description="The same as `detail`.")
    estimate_s: float | None = Field(
        None,
        description="Only of `deadline_exceeded` and `overloaded`, of a request refused beforehand because it could not be "
        "ready in time: the seconds that it would take here.",
    )

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "example": {
                "type": "urn:camserve:problem:parameter_invalid", "title": "Invalid parameter", "status": 422,
                "detail": "alpha: must be at most 1", "instance": "urn:request:3f1c", "code": "parameter_invalid",
                "error": "alpha: must be at most 1",
            }
        },
    )  # fmt: skip

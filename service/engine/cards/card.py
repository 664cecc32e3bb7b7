"""A model card: one TOML file that describes a model: its network, weights, labels and layers. This module imports no torch.

A card's name is its file's name. A card may leave out what the source's metadata states. An invalid card stops the start with a
message that names its file and field.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, ValidationError, field_validator, model_validator

from service.errors import ConfigurationError
from service.vocabulary import Activation, Channels, EngineOption, Fit, Interpolation, LayoutKind, PrecisionOption

NAME = re.compile(r"^[a-z0-9][a-z0-9._-]{0,63}$")
COMMIT = re.compile(r"^[0-9a-f]{40}$")


def _one_or_many(value: object) -> object:
    return (value,) if isinstance(value, str) else value


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Architecture(_Table):
    """`source` is the library that builds the network, `name` the network's name there, `args` more arguments of its builder.

    An argument may be a table, such as `vision_config = {hidden_size = 768}` of transformers, or an array. Source `local` is a
    saved program, which has no name. transformers reads it from the configuration beside the weights, and Keras from a saved
    model, where it is left out.
    """

    source: Literal["torchvision", "timm", "transformers", "keras", "local"]
    name: str = ""
    args: dict[str, JsonValue] = {}

    @model_validator(mode="after")
    def _check_name(self) -> Self:
        if self.source == "local" and self.name:
            raise ValueError("name: source local is a file and has no name")
        if self.source in {"torchvision", "timm"} and not self.name:
            raise ValueError("name: give the network's name in its source")
        return self


class Weights(_Table):
    """The origin of the weights; exactly one of `name`, `hub`, `file` and `random`.

    `name`: the source's own name of hub weights (torchvision: an enum such as IMAGENET1K_V2; timm: a tag such as a1_in1k;
    keras: imagenet), or `default`. `hub`: a repository of the Hugging Face hub (transformers, timm). `revision`: the commit of
    the repository, of `hub` or behind timm's `name`. `file`: a checkpoint beside the card. `package` with `file`: a checkpoint
    inside an installed Python package. `random`: the seed of random weights, for tests and benchmarks.
    """

    name: str | None = None
    hub: str | None = Field(None, pattern=r"^[\w.-]+/[\w.-]+$")
    revision: str | None = Field(None, pattern=r"^[\w./-]+$")
    package: str | None = None
    file: str | None = None
    random: int | None = Field(None, ge=0)
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    keys: Literal["efficientnet_lite"] | None = Field(
        None, description="Map of the checkpoint's parameter names to the source's."
    )

    def __str__(self) -> str:
        if self.package is not None:
            return f"package {self.package}"
        return self.file or (f"hub {self.name or self.hub}" if self.from_hub else f"random {self.random}")

    @property
    def from_hub(self) -> bool:
        """Whether the source's library fetches the weights."""
        return self.name is not None or self.hub is not None

    @model_validator(mode="after")
    def _check_origin(self) -> Self:
        origins = [name for name in ("name", "hub", "file", "random") if getattr(self, name) is not None]
        if len(origins) != 1:
            raise ValueError(
                f"give exactly one of name, hub, file (with or without package) or random; got {origins or 'none'}"
            )
        if self.revision is not None and not self.from_hub:
            raise ValueError("revision belongs to hub, or to a name of timm")
        if self.package is not None and self.file is None:
            raise ValueError("package needs file: the checkpoint's path inside the package")
        return self

    def check_pinned(self) -> None:
        """Checks that the weights cannot change unnoticed, as a card promises that is kept.

        Raises:
            ValueError: a repository without a commit, or a file without a digest.
        """
        if (self.hub is not None or self.revision is not None) and not COMMIT.match(self.revision or ""):
            raise ValueError("weights: hub needs revision: the commit, 40 hexadecimal digits; a branch or tag may move")
        if self.file is not None and self.sha256 is None:
            raise ValueError("weights: file needs sha256: 64 hexadecimal digits, as `sha256sum FILE` prints them")


class Labels(_Table):
    """`dataset`: names and WordNet ids that come with timm. `file`: one line a class: `label` or `wnid<TAB>label`. `names`: the
    labels themselves. Without any of them the labels are the source's own, or numbers where it states none.

    `activation`: the function from logits to probabilities. `softmax`: exactly one class is true. `sigmoid`: each class is true
    or false independently of the others (multi-label). A binary network with one logit is a sigmoid with two labels: class 1
    has the logit, class 0 its negative, so each can be explained and the two probabilities add up to one. A card without an
    activation takes the source's: sigmoid for a zero-shot classifier of SigLIP, softmax for every other network.

    `prompt` makes a network with a text tower (transformers: clip, metaclip_2, siglip) a zero-shot classifier: a template of
    the text of each class, in which "{}" stands for its label, such as "a photo of a {}."; the features of several templates
    are averaged. The template "{}" takes each line of the file as it is, so that a line may be a whole prompt. Where the
    configuration beside the weights names the two towers, the family's own template is the default.
    """

    dataset: Literal["imagenet-1k"] | None = None
    file: str | None = None
    names: tuple[str, ...] | None = Field(None, min_length=1)
    activation: Activation | None = None
    prompt: Annotated[tuple[str, ...], BeforeValidator(_one_or_many)] = Field((), min_length=1)

    @field_validator("prompt")
    @classmethod
    def _check_prompt(cls, prompt: tuple[str, ...]) -> tuple[str, ...]:
        if any("{}" not in template for template in prompt):
            raise ValueError('every template needs "{}", where the label stands')
        return prompt

    @model_validator(mode="after")
    def _check_origin(self) -> Self:
        if sum(origin is not None for origin in (self.dataset, self.file, self.names)) > 1:
            raise ValueError("give one of dataset, file or names, or none for the source's own labels")
        return self


class PreprocessingOverrides(_Table):
    """The preprocessing of images for the network; fields that are left out come from the source's metadata.

    `resize`: short side in pixels before the centre crop. `crop`: side of the network's square input, or [height, width].
    `mean`, `std`: per channel, for values 0..1; of one value each for a network that takes grey images, [N, 1, h, w].
    """

    resize: int | None = Field(None, ge=8, le=4096)
    crop: int | tuple[int, int] | None = None
    interpolation: Interpolation | None = None
    mean: Channels | None = None
    std: Channels | None = None
    fit: Fit | None = None

    @model_validator(mode="after")
    def _check_channels(self) -> Self:
        if self.mean is not None and self.std is not None and len(self.mean) != len(self.std):
            raise ValueError("mean and std need one value a channel: three each, or one each")
        if self.std is not None and min(self.std) <= 0:
            raise ValueError("std: every value must be above 0")
        return self


class Explain(_Table):
    """`layer`: path of the module at which the network is split and explained, or several paths, whose maps are fused.

    The default layer depends on the network: the last grid before pooling, or the input of the last attention. `layout` and
    `prefix_tokens` (class token, registers) are inferred from the graph; a card states them where that fails.
    """

    layer: Annotated[tuple[str, ...], BeforeValidator(_one_or_many)] = Field((), min_length=1)
    layout: LayoutKind | None = None
    prefix_tokens: int | None = Field(None, ge=0, le=64)

    @model_validator(mode="after")
    def _check_layout(self) -> Self:
        if self.layout is not None and not self.layer:
            raise ValueError("layout needs layer: the path of the module that it belongs to")
        if self.prefix_tokens is not None and self.layout != "tokens":
            raise ValueError('prefix_tokens needs layout = "tokens"')
        return self


class Runtime(_Table):
    """Overrides of the service's settings for this model."""

    max_batch_size: int | None = Field(None, ge=1, le=256)
    engine: EngineOption | None = None
    precision: PrecisionOption | None = None


class Card(_Table):
    """One model: a file of the repository, or made of a reference (`cards/reference.py`), which is then its `reference`."""

    name: str
    reference: str | None = None
    version: str = "1"
    description: str = ""
    architecture: Architecture
    weights: Weights
    labels: Labels = Labels()
    explain: Explain = Explain()
    preprocess: PreprocessingOverrides = PreprocessingOverrides()
    runtime: Runtime = Runtime()
    folder: Path

    @model_validator(mode="after")
    def _check_text_tower(self) -> Self:
        if self.labels.prompt and self.architecture.source != "transformers":
            raise ValueError(
                f"labels.prompt: networks of {self.architecture.source} have no text tower; leave it out, or take a network of "
                "source transformers (clip, metaclip_2, siglip)"
            )
        return self

    @classmethod
    def read(cls, path: Path) -> Card:
        """The card in one TOML file.

        Raises:
            ConfigurationError: the file cannot be read, is not TOML, or a field is wrong; the message names file and field.
        """
        if not NAME.match(path.stem):
            raise ConfigurationError(f"{path}: a card's file name is its model's name: a-z, 0-9, '.', '_', '-', at most 64")
        try:
            table = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigurationError(f"{path}: not a readable TOML file: {error}") from error
        for field in ("name", "folder", "reference"):
            if field in table:
                raise ConfigurationError(f"{path}: {field}: not a field of a card; the model is named after the file")
        try:
            card = cls.model_validate({**table, "name": path.stem, "folder": path.parent})
            card.weights.check_pinned()
        except ValidationError as error:
            raise ConfigurationError(f"{path}: {describe_faults(error)}") from error
        except ValueError as error:
            raise ConfigurationError(f"{path}: {error}") from error
        return card


def describe_faults(error: ValidationError) -> str:
    """What is wrong with a card, field by field."""
    return "; ".join(f"{'.'.join(map(str, detail['loc'])) or 'card'}: {detail['msg']}" for detail in error.errors())

"""References: a model in one word, from which a card is made on the spot. This module imports no torch and fetches nothing.

| reference | model |
| --- | --- |
| `timm/resnet50.a1_in1k` | a network of timm, with the weights of that tag; without a tag with timm's default weights |
| `torchvision/resnet50/IMAGENET1K_V2` | a network of torchvision; without the last part with its default weights |
| `hf/google/vit-base-patch16-224@main` | an image classifier of the Hugging Face hub, at a branch, tag or commit |
| `keras/Xception` | a network of `keras.applications`, with weights of ImageNet |
| `path/to/model.pt2`, `.keras` | a saved program of torch.export, a saved Keras model |
| `path/to/folder` | a folder as `save_pretrained` writes it, or with a card (`.toml`), or with one `.pt2` or `.keras` file |

Each may have a name in front, `name=reference`, and options behind it, `reference?random=0&layer=layer4`: `ReferenceOptions`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import parse_qs

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from service.engine.cards.card import NAME, Card, describe_faults
from service.errors import ConfigurationError
from service.vocabulary import Activation, Channels

FORMS: Final = (
    "timm/NAME[.TAG], torchvision/NAME[/WEIGHTS], hf/OWNER/REPOSITORY[@REVISION], keras/NAME, or the path of a folder, a "
    ".pt2 or a .keras file"
)
SAVED_MODELS: Final = {".pt2": "local", ".keras": "keras"}  # suffix -> the source that reads the whole model
CHECKPOINTS: Final = ("model.safetensors", "pytorch_model.bin")  # what `save_pretrained` writes, beside config.json
LABELS_FILE: Final = "labels.txt"
IMAGENET: Final[dict[str, Any]] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def _only(value: object) -> object:
    """The value of an option that may be given once: `parse_qs` makes lists."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


class ReferenceOptions(BaseModel):
    """The options behind the question mark of a reference; each overrides a field of the card.

    `random`: seed of random weights, nothing is fetched. `labels`: file of labels. `prompt`: template of a zero-shot network,
    repeatable. `activation`: softmax or sigmoid. `layer`: module path, repeatable. `crop`: side of the square input. `mean`,
    `std`: for values 0..1, given once for all channels or once for each.
    """

    model_config = ConfigDict(extra="forbid")

    random: Annotated[int | None, BeforeValidator(_only), Field(ge=0)] = None
    labels: Annotated[Path | None, BeforeValidator(_only)] = None
    activation: Annotated[Activation | None, BeforeValidator(_only)] = None
    prompt: tuple[str, ...] = ()
    layer: tuple[str, ...] = ()
    crop: Annotated[int | None, BeforeValidator(_only)] = None
    mean: Channels | None = None
    std: Channels | None = None


def is_reference(text: str) -> bool:
    """Whether a text is written as a reference; otherwise it is the name of a card."""
    return "/" in text or "=" in text or "?" in text or Path(text).suffix in SAVED_MODELS


def card_of_reference(text: str) -> Card:
    """The card that a reference means.

    Raises:
        ConfigurationError: it is no reference, an option of it is wrong, or the path does not hold a model.
    """
    name, body = "", text
    if match := re.match(r"^([a-z0-9][a-z0-9._-]*)=(.+)$", text):
        name, body = match.groups()
    body, _, query = body.partition("?")
    source, _, rest = body.partition("/")
    try:
        options = ReferenceOptions.model_validate(parse_qs(query, keep_blank_values=True, strict_parsing=bool(query)))
        if source in {"timm", "torchvision", "hf", "keras"} and rest:
            own_name, table = _library_table(source, rest)
            card = _make_card(body + (f"?{query}" if query else ""), own_name, table, Path.cwd())
        else:
            card = _card_of_path(Path(body))
        return _apply(options, card.model_copy(update={"name": _check_name(name or card.name)}))
    except ValidationError as error:
        raise ConfigurationError(f"model {text}: {describe_faults(error)}") from error
    except ValueError as error:
        raise ConfigurationError(f"model {text}: {error}") from error


def card_of_folder(folder: Path) -> Card | None:
    """The card of a folder that holds one model, named after the folder; None for another folder.

    Raises:
        ConfigurationError: the card in it is invalid.
    """
    cards = sorted(folder.glob("*.toml"))
    if len(cards) == 1:
        return Card.read(cards[0]).model_copy(update={"name": slug(folder.resolve().name)})
    checkpoint = next((name for name in CHECKPOINTS if (folder / name).is_file()), None)
    saved = [path for path in sorted(folder.iterdir()) if path.suffix in SAVED_MODELS]
    if cards or not ((checkpoint and (folder / "config.json").is_file()) or len(saved) == 1):
        return None
    if checkpoint and (folder / "config.json").is_file():
        table: dict[str, Any] = {"architecture": {"source": "transformers"}, "weights": {"file": checkpoint}}
    else:
        table = _saved_model_table(saved[0])
    return _make_card(folder.resolve().name, slug(folder.resolve().name), table, folder)


def slug(text: str) -> str:
    """The text as the name of a model: lower case, other characters than `a-z 0-9 . _ -` replaced, at most 64."""
    return re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("._-")[:64] or "model"


def _library_table(source: str, rest: str) -> tuple[str, dict[str, Any]]:
    """The model's own name and the tables of the card of a reference to a library."""
    path, _, revision = rest.partition("@")
    weights: dict[str, Any] = {"revision": revision} if revision else {}
    if source == "hf":
        if path.count("/") != 1:
            raise ValueError("a repository of the hub is hf/OWNER/REPOSITORY, with or without @REVISION")
        return slug(path.rpartition("/")[2]), {"architecture": {"source": "transformers"}, "weights": weights | {"hub": path}}
    name, _, tag = path.partition("." if source == "timm" else "/")
    if revision and source != "timm":
        raise ValueError(f"@: the weights of {source} have names, not revisions")
    if source == "keras" and tag:
        raise ValueError("a network of Keras is keras/NAME")
    architecture = {"source": source, "name": name}
    return slug(path if source == "timm" else name), {
        "architecture": architecture,
        "weights": weights | {"name": tag or "default"},
    }


def _card_of_path(path: Path) -> Card:
    """The card of a folder or file.

    Raises:
        ValueError: there is none, or it holds no model.
    """
    if path.is_dir():
        card = card_of_folder(path)
        if card is None:
            raise ValueError(
                f"the folder holds no model: neither one card (*.toml), nor config.json with {' or '.join(CHECKPOINTS)}, nor "
                "one .pt2 or .keras file"
            )
        return card
    if not path.is_file():
        raise ValueError(f"there is no such file or folder, and no other form of a reference fits: {FORMS}")
    if path.suffix == ".toml":
        return Card.read(path)
    if path.suffix not in SAVED_MODELS:
        raise ValueError(
            "weights alone do not tell the network; write a card (.toml) beside the file that names it, or give a folder with "
            "config.json"
        )
    return _make_card(path.name, slug(path.stem), _saved_model_table(path), path.parent)


def _saved_model_table(path: Path) -> dict[str, Any]:
    table: dict[str, Any] = {"architecture": {"source": SAVED_MODELS[path.suffix]}, "weights": {"file": path.name}}
    if path.suffix == ".pt2":
        table["preprocess"] = IMAGENET  # a program has no mean and std of its own; `sources.local` says so in the log
    return table


def _make_card(reference: str, name: str, table: dict[str, Any], folder: Path) -> Card:
    """The card of these tables. Its reference is what clients are shown, so that of a path is the last part alone."""
    labels = {"file": LABELS_FILE} if "file" in table["weights"] and (folder / LABELS_FILE).is_file() else {}
    return Card.model_validate({"labels": labels, **table, "name": name, "reference": reference, "folder": folder.resolve()})


def _check_name(name: str) -> str:
    if not NAME.match(name):
        raise ValueError(f"a model's name is a-z, 0-9, '.', '_', '-', at most 64: not {name!r}")
    return name


def _apply(options: ReferenceOptions, card: Card) -> Card:
    """The card with the options of its reference.

    Raises:
        ValueError: an option that does not fit.
    """
    update: dict[str, Any] = {}
    if options.random is not None:
        if not card.architecture.name:
            raise ValueError("random: only for timm/, torchvision/ and keras/, which build a network without its weights")
        update["weights"] = {"random": options.random}
    if options.labels is not None or options.activation is not None or options.prompt:
        labels = card.labels.model_dump(exclude_defaults=True)
        if options.labels is not None:
            labels = {"file": str(options.labels.resolve())}
        given = {"activation": options.activation, "prompt": options.prompt}
        update["labels"] = labels | {name: value for name, value in given.items() if value}
    if options.layer:
        update["explain"] = {"layer": options.layer}
    preprocess = {
        key: _each_channel(value) if isinstance(value, tuple) else value
        for key in ("crop", "mean", "std")
        if (value := getattr(options, key)) is not None
    }
    if preprocess:
        update["preprocess"] = card.preprocess.model_dump() | preprocess
    return Card.model_validate({**{name: getattr(card, name) for name in Card.model_fields}, **update})


def _each_channel(values: tuple[float, ...]) -> tuple[float, ...]:
    return values * 3 if len(values) == 1 else values

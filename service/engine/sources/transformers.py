"""Image classifiers of transformers. No pickle is read: weights are safetensors, or the tensors of a checkpoint alone.

`[architecture] name` is the library's name of a family ("vit", "swin", "convnext"), `args` are further arguments of its
configuration; weights from a hub, or with a `config.json` beside their file, come with their configuration and preprocessing.
The library's default attention is used: scaled dot products wherever a family has them, each a single node of the graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import transformers
from torch import Tensor, nn

from service.engine.cards.card import Card
from service.engine.sources.base import SourceNetwork, returning
from service.engine.sources.checkpoint import read_state
from service.errors import ConfigurationError
from service.vocabulary import Fit, Interpolation, Preprocessing

# The library is only partly typed.
_configs: Any = transformers.AutoConfig
_processors: Any = transformers.AutoImageProcessor
_classes: Any = transformers.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING
_processor_classes: Any = transformers.IMAGE_PROCESSOR_MAPPING

RESAMPLING: Final[dict[int, Interpolation]] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers


def from_architecture(card: Card) -> SourceNetwork:
    """See `Source`."""
    config = _config(card)
    return _source_network(_classifier_class(card, config)._from_config(config), _processor(config))


def from_file(card: Card, path: Path) -> SourceNetwork:
    """See `Source`; `config.json` and `preprocessor_config.json` beside the file are read if they exist."""
    config = _config(card, path.parent) if (path.parent / "config.json").is_file() else _config(card)
    # The library's own loader is used rather than load_state_dict, for it maps the parameter names of older versions.
    module, report = _classifier_class(card, config).from_pretrained(
        None,
        config=config,
        state_dict=read_state(card, path),
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    _check_report(card, report)
    has_processor = (path.parent / "preprocessor_config.json").is_file()
    return _source_network(
        module, _processors.from_pretrained(path.parent, local_files_only=True) if has_processor else _processor(config)
    )


def from_hub(card: Card) -> SourceNetwork:
    """See `Source`; the weights are the safetensors of a repository of the hub at a pinned revision."""
    hub: Any = {"pretrained_model_name_or_path": card.weights.hub, "revision": card.weights.revision}
    config = _configs.from_pretrained(**hub, **card.architecture.args)
    module, report = _classifier_class(card, config).from_pretrained(
        **hub,
        config=config,
        use_safetensors=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    _check_report(card, report)
    return _source_network(module, _processors.from_pretrained(**hub))


def _config(card: Card, folder: Path | None = None) -> Any:
    if folder is not None:
        return _configs.from_pretrained(folder, local_files_only=True, **card.architecture.args)
    return _configs.for_model(card.architecture.name, **card.architecture.args)


def _classifier_class(card: Card, config: Any) -> Any:
    """The class of image classifiers of a configuration's family, which must be the card's family."""
    if config.model_type != card.architecture.name:
        raise ConfigurationError(f"card {card.name}: architecture.name: the weights are of the family {config.model_type!r}")
    if type(config) not in _classes:
        raise ConfigurationError(f"card {card.name}: architecture.name: {config.model_type} has no image classifier")
    classes = _classes[type(config)]
    return classes[0] if isinstance(classes, tuple) else classes


def _check_report(card: Card, report: Mapping[str, Any]) -> None:
    """Checks that the loaded weights and the network have the same names and shapes, as strictly as `load_into`.

    Raises:
        ConfigurationError: names or shapes differ; the message lists the first of them.
    """
    differences = [f"{kind}: {name}" for kind in ("missing_keys", "unexpected_keys") for name in sorted(report[kind])]
    differences += [f"size: {name}" for name, *_ in report["mismatched_keys"]]
    if differences:
        raise ConfigurationError(f"card {card.name}: weights do not fit the network: {'; '.join(differences)[:600]}")


def _processor(config: Any) -> Any:
    """The image processor of a family, with its defaults except the size, which is the network's if the network has one."""
    family = _processor_classes[type(config)]["pil"]
    processor, side = family(), getattr(config, "image_size", None)
    return family(size={"height": side, "width": side}) if side and processor.size.get("height") else processor


def _source_network(module: Any, processor: Any) -> SourceNetwork:
    assert isinstance(module, nn.Module)
    return SourceNetwork(returning(module, _logits), preprocessing_of(processor))


def _logits(output: Any) -> Tensor:
    logits: Tensor = output.logits
    return logits


def preprocessing_of(processor: Any) -> Preprocessing:
    """The preprocessing that is equal to an image processor of the library.

    A processor with a size of height and width squashes the whole image to it; one with a shortest edge keeps the aspect ratio
    and crops. ConvNeXT's processor crops too, by a ratio, if its edge is shorter than 384.
    """
    size, crop, ratio = processor.size, processor.crop_size, getattr(processor, "crop_pct", None)
    edge: int | None = size.get("shortest_edge")
    height, width = (edge, edge) if edge else (size.get("height"), size.get("width"))
    fit: Fit = "crop" if edge else "squash"
    resize = min(height, width)
    if edge and ratio:
        fit, resize = ("crop", int(edge / ratio)) if edge < 384 else ("squash", edge)
    elif processor.do_center_crop and crop:
        fit, height, width = "crop", crop["height"], crop["width"]
    mean, std = tuple(processor.image_mean), tuple(processor.image_std)
    if not processor.do_normalize:
        mean, std = (0.0,) * len(mean), (1.0,) * len(std)
    return Preprocessing(
        height=height,
        width=width,
        resize=resize,
        interpolation=RESAMPLING[int(processor.resample)],
        mean=mean,
        std=std,
        fit=fit,
    )

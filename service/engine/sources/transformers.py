"""Image classifiers of transformers. No pickle is read: weights are safetensors, or the tensors of a checkpoint alone.

`[architecture] name` is the library's name of a family ("vit", "swin", "convnext"), `args` are further arguments of its
configuration; weights from a hub, or with a `config.json` beside their file, come with their configuration and preprocessing.
The library's default attention is used: scaled dot products wherever a family has them, each a single node of the graph.
A family of an image tower and a text tower is a plain classifier or, by the labels' prompt, a zero-shot one (`zero_shot`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
import transformers
from torch import Tensor, nn

from service.engine.cards.card import Card
from service.engine.cards.labels import LabelSet
from service.engine.sources.base import SourceNetwork, returning
from service.engine.sources.checkpoint import read_state
from service.engine.sources.hub import resolve_commit
from service.engine.sources.timm import pretrained_config, timm_preprocessing
from service.engine.sources.zero_shot import FAMILIES, zero_shot_class, zero_shot_classifier
from service.errors import ConfigurationError
from service.vocabulary import Fit, Interpolation, Preprocessing

# The library is only partly typed.
_configs: Any = transformers.AutoConfig
_processors: Any = transformers.AutoImageProcessor
_tokenizers: Any = transformers.AutoTokenizer
_classes: Any = transformers.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING
_processor_classes: Any = transformers.IMAGE_PROCESSOR_MAPPING

PROCESSOR_OF: Final = {"dinov2_with_registers": "dinov2"}  # families whose checkpoints come with the processor of another
PATCH_INPUT: Final = {"siglip2"}  # families whose input is a list of patches and its shape (NaFlex)
PROCESSOR_FILES: Final = ("preprocessor_config.json", "processor_config.json")  # of images alone, or of images and texts
TOKENIZER_FILES: Final = ("tokenizer.json", "vocab.json", "spiece.model", "sentencepiece.bpe.model")  # one of them
RESAMPLING: Final[dict[int, Interpolation]] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers


def from_architecture(card: Card) -> SourceNetwork:
    """See `Source`; the tokenizer of a zero-shot classifier lies beside the card."""
    config = _config(card)
    module = _classifier_class(card, config)._from_config(config)
    return _source_network(card, module, _processor(card, config), _folder(card.folder))


def from_file(card: Card, path: Path) -> SourceNetwork:
    """See `Source`; the configurations of network and images and the tokenizer beside the file are read if they exist."""
    config = _config(card, path.parent) if (path.parent / "config.json").is_file() else _config(card)
    # The library's own loader is used rather than load_state_dict, for it maps the parameter names of older versions.
    module, report = _classifier_class(card, config).from_pretrained(
        None,
        config=config,
        dtype=torch.float32,
        state_dict=read_state(card, path),
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    _check_report(card, report)
    has_processor = _has_one(path.parent, PROCESSOR_FILES)
    processor = _processors.from_pretrained(path.parent, local_files_only=True) if has_processor else _processor(card, config)
    return _source_network(card, module, processor, _folder(path.parent))


def from_hub(card: Card) -> SourceNetwork:
    """See `Source`; the weights are the safetensors of a repository of the hub at one commit."""
    if card.weights.hub is None:
        raise ConfigurationError(f"card {card.name}: weights: source transformers takes hub, with revision; not name")
    commit = resolve_commit(card, card.weights.hub, card.weights.revision)
    hub: Any = {"pretrained_model_name_or_path": card.weights.hub, "revision": commit}
    config = _without_repeated_classes(_configs.from_pretrained(**hub, **card.architecture.args))
    module, report = _classifier_class(card, config).from_pretrained(
        **hub,
        config=config,
        dtype=torch.float32,
        use_safetensors=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    _check_report(card, report)
    return replace(_source_network(card, module, _processors.from_pretrained(**hub), hub), revision=commit)


def _has_one(folder: Path, names: Sequence[str]) -> bool:
    return any((folder / name).is_file() for name in names)


def _folder(path: Path) -> dict[str, Any]:
    """The arguments of the library's loaders for files of a folder, and no others."""
    return {"pretrained_model_name_or_path": path, "local_files_only": True}


def _config(card: Card, folder: Path | None = None) -> Any:
    if folder is not None:
        return _without_repeated_classes(_configs.from_pretrained(folder, local_files_only=True, **card.architecture.args))
    if not card.architecture.name:
        raise ConfigurationError(
            f"card {card.name}: architecture.name: the family (such as vit) is needed where the weights have no config.json"
        )
    return _configs.for_model(card.architecture.name, **card.architecture.args)


def _without_repeated_classes(config: Any) -> Any:
    """The configuration without the number of classes in model_args: timm writes it there too, and the library refuses that."""
    if config.model_type == "timm_wrapper" and config.model_args:
        config.model_args = {name: value for name, value in config.model_args.items() if name != "num_classes"}
    return config


def _classifier_class(card: Card, config: Any) -> Any:
    """The class of classifiers, zero-shot or plain, of a configuration's family, which must be the card's family."""
    if card.architecture.name and config.model_type != card.architecture.name:
        raise ConfigurationError(f"card {card.name}: architecture.name: the weights are of the family {config.model_type!r}")
    if config.model_type in PATCH_INPUT:
        raise ConfigurationError(
            f"card {card.name}: architecture.name: {config.model_type} takes a list of patches, not an image; use a family of "
            "fixed size, such as siglip"
        )
    two_towers = zero_shot_class(card, config)
    if two_towers is not None:
        return two_towers
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


def _processor(card: Card, config: Any) -> Any:
    """The image processor of a family, with its defaults except the size, which is the network's if the network has one."""
    if config.model_type == "timm_wrapper":
        weights = getattr(config, "pretrained_cfg", None) or pretrained_config(config.architecture)
        return transformers.TimmWrapperImageProcessor(dict(weights or {}), architecture=config.architecture)
    family = PROCESSOR_OF.get(config.model_type, config.model_type)
    classes = _processor_classes.get(transformers.CONFIG_MAPPING[family], None)
    if classes is None:
        raise ConfigurationError(
            f"card {card.name}: preprocess: transformers has no image processor of the family {config.model_type}; put the "
            "checkpoint's preprocessor_config.json beside the weights"
        )
    processor_class = classes.get("pil") or classes["torchvision"]
    processor, side = processor_class(), getattr(getattr(config, "vision_config", config), "image_size", None)
    is_cropped = not processor.size.get("height")
    if not side or (is_cropped and config.model_type not in FAMILIES):
        return processor
    height, width = (side, side) if isinstance(side, int) else side
    size = {"height": height, "width": width}
    return (
        processor_class(size={"shortest_edge": min(height, width)}, crop_size=size)
        if is_cropped
        else processor_class(size=size)
    )


def _source_network(card: Card, module: Any, processor: Any, weights: Mapping[str, Any]) -> SourceNetwork:
    """The network and its preprocessing; `weights` are the library's arguments for the place of its weights."""
    assert isinstance(module, nn.Module)
    if hasattr(module, "text_model"):
        config: Any = module.config
        classifier = zero_shot_classifier(card, module, _tokenizer(card, config, weights))
        activation = FAMILIES[config.model_type].activation
        return SourceNetwork(module=classifier, preprocessing=preprocessing_of(processor), activation=activation)
    if _is_bgr(processor):
        module.register_forward_pre_hook(_flip_channels)
    return SourceNetwork(
        module=returning(module, _logits), preprocessing=preprocessing_of(processor), labels=_labels(module.config)
    )


def _labels(config: Any) -> LabelSet | None:
    """The labels of the configuration; None where they are the library's placeholders, LABEL_0 and so on."""
    names = [str(label) for _, label in sorted((int(key), label) for key, label in (config.id2label or {}).items())]
    if config.model_type == "timm_wrapper" and (own := (getattr(config, "pretrained_cfg", None) or {}).get("label_names")):
        names = [str(name) for name in own]
    return None if names == [f"LABEL_{index}" for index in range(len(names))] else LabelSet(tuple(names))


def _tokenizer(card: Card, config: Any, weights: Mapping[str, Any]) -> Any:
    """The tokenizer that comes with the weights, from a folder or from a repository."""
    place = weights["pretrained_model_name_or_path"]
    # Without its files the library would make a tokenizer that knows no word.
    if isinstance(place, Path) and not _has_one(place, TOKENIZER_FILES):
        raise ConfigurationError(
            f"card {card.name}: labels.prompt: there is no tokenizer in {place}; put the tokenizer.json and the "
            "tokenizer_config.json of the weights there"
        )
    try:
        return _tokenizers.from_pretrained(config=config, **weights)
    except ImportError as error:  # SigLIP's own class needs SentencePiece; a tokenizer.json of the weights does not
        try:
            return transformers.PreTrainedTokenizerFast.from_pretrained(**weights)
        except (ImportError, OSError, ValueError):
            raise ConfigurationError(
                f"card {card.name}: labels.prompt: the tokenizer of {place} needs a library; "
                "pip install sentencepiece protobuf, or put a tokenizer.json beside the weights"
            ) from error


def _is_bgr(processor: Any) -> bool:
    """Whether the processor hands the channels to the network in the order blue, green, red."""
    return bool(getattr(processor, "do_flip_channel_order", False)) or isinstance(processor, transformers.PPLCNetImageProcessor)


def _flip_channels(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (inputs[0].flip(1), *inputs[1:])


def _logits(output: Any) -> Tensor:
    """The logits of a classifier's output; PP-LCNet calls them its last hidden state."""
    logits: Tensor = output.logits if hasattr(output, "logits") else output.last_hidden_state
    return logits


def preprocessing_of(processor: Any) -> Preprocessing:
    """The preprocessing that is equal to an image processor of the library.

    A processor with a size of height and width squashes the whole image to it; one with a shortest edge keeps the aspect ratio
    and crops. ConvNeXT's processor crops too, by a ratio, if its edge is shorter than 384. The order of the channels
    is not part of it: a network for BGR gets a hook that reverses the channels of RGB.
    """
    if isinstance(processor, transformers.TimmWrapperImageProcessor):
        return timm_preprocessing(processor.data_config)
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

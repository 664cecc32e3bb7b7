"""Zero-shot classifiers of transformers: an image tower, whose classes are the text features of a card's labels.

The text tower runs once, when the network is loaded; the image tower and the similarity to the text features are the network
that is explained. Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision" (CLIP), section
3.1; Zhai et al. 2023, "Sigmoid Loss for Language Image Pre-Training" (SigLIP).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
import transformers
from torch import Tensor, nn

from service.engine.cards.card import Card
from service.engine.cards.labels import read_labels
from service.errors import ConfigurationError
from service.vocabulary import Activation

# The library is only partly typed.
_classes: Any = transformers.MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING

TEXTS_AT_ONCE: Final = 256  # texts of one pass of the text tower
LEGACY_END: Final = 2  # with this end token CLIP's text tower reads the token of the highest id instead


@dataclass(frozen=True, slots=True, kw_only=True)
class ZeroShotFamily:
    """A family of networks with an image tower and a text tower.

    Attributes:
        template: of a class's text, where the card says none.
        activation: the function from logits to probabilities that the loss of the training implies.
        pads_to_context: whether texts are padded to the tower's whole context, as in the training; else to the longest of them.
        reads_end: whether the text's features are those of its end token.
    """

    template: str
    activation: Activation
    pads_to_context: bool
    reads_end: bool


FAMILIES: Final = {
    # The template of the paper, section 3.1.4.
    "clip": ZeroShotFamily(template="a photo of a {}.", activation="softmax", pads_to_context=False, reads_end=True),
    "metaclip_2": ZeroShotFamily(template="a photo of a {}.", activation="softmax", pads_to_context=False, reads_end=True),
    # The template and the padding of transformers' documentation of SigLIP.
    "siglip": ZeroShotFamily(template="This is a photo of {}.", activation="sigmoid", pads_to_context=True, reads_end=False),
}


def zero_shot_class(card: Card, config: Any) -> Any:
    """The library's class of the two towers, or None where the card means a plain image classifier.

    The card means two towers where it has a prompt, and where the configuration of the weights names them.

    Raises:
        ConfigurationError: the card has a prompt, but the network no text tower.
    """
    architectures = config.architectures or []
    if config.model_type not in FAMILIES:
        if card.labels.prompt:
            raise ConfigurationError(
                f"card {card.name}: labels.prompt: the family {config.model_type!r} has no text tower; leave the prompt out, "
                f"or take one of {', '.join(FAMILIES)}"
            )
        return None
    two_towers = _classes[type(config)]
    if card.labels.prompt:
        if architectures and two_towers.__name__ not in architectures:
            raise ConfigurationError(
                f"card {card.name}: labels.prompt: the weights are those of {', '.join(architectures)}, without a text tower; "
                f"leave the prompt out, or take weights of {two_towers.__name__}"
            )
        return two_towers
    return two_towers if two_towers.__name__ in architectures else None


class ZeroShotClassifier(nn.Module):
    """An image tower and the similarity of its features to those of the classes' texts.

    Maps float32 ``[N, 3, height, width]`` to logits ``[N, classes]``: the library's own `logits_per_image`, cosine similarities
    times the learned scale, for SigLIP plus the learned bias. The modules of the image tower keep their paths. The text
    features are no parameters, so the digest of the weights does not depend on the prompt.
    """

    def __init__(self, towers: Any, text_features: Tensor) -> None:
        """Takes the image tower.

        Args:
            towers: the library's network of two towers.
            text_features: float32 ``[classes, D]`` of norm 1.
        """
        super().__init__()
        self.vision_model = towers.vision_model
        self.visual_projection = getattr(towers, "visual_projection", nn.Identity())
        scale, bias = towers.logit_scale.detach().exp(), getattr(towers, "logit_bias", torch.zeros(1)).detach()
        self.text_features = nn.Buffer(text_features * scale, persistent=False)
        self.logit_bias = nn.Buffer(bias.expand(len(text_features)).clone(), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """The logits ``[N, classes]`` of normalised images ``[N, 3, height, width]``."""
        features: Tensor = self.visual_projection(self.vision_model(pixel_values=images).pooler_output)
        return nn.functional.linear(features / features.norm(dim=-1, keepdim=True), self.text_features, self.logit_bias)


def zero_shot_classifier(card: Card, towers: Any, tokenizer: Any) -> ZeroShotClassifier:
    """The classifier of a card's labels.

    Args:
        card: labels and prompt.
        towers: the library's network of two towers, with its weights.
        tokenizer: of the text tower.

    Raises:
        ConfigurationError: there are no labels, they cannot be read, or the text of one of them does not fit the text tower.
    """
    family = FAMILIES[towers.config.model_type]
    labels = read_labels(card)
    if labels is None:
        raise ConfigurationError(
            f"card {card.name}: labels: two towers have no classes of their own; give the labels to tell apart, in the card or "
            "with the reference: ?labels=labels.txt"
        )
    templates = card.labels.prompt or (family.template,)
    if len(labels) == 1 and (card.labels.activation or family.activation) == "softmax":
        raise ConfigurationError(
            f"card {card.name}: labels: there is one label, of which a softmax makes 1 whatever the network sees; give "
            "another, such as what an image without it shows"
        )
    texts = [
        [template.replace("{}", description if template == "{}" else label) for template in templates]
        for label, description in zip(labels.labels, labels.descriptions, strict=True)
    ]
    _check_texts(card, towers, tokenizer, texts, labels.descriptions)
    return ZeroShotClassifier(towers, text_features(towers.eval(), tokenizer, texts))


def text_features(towers: Any, tokenizer: Any, texts: Sequence[Sequence[str]]) -> Tensor:
    """The features of each class: the mean of its texts' features, each of norm 1, and again of norm 1 (section 3.1.4).

    Args:
        towers: the library's network of two towers, in eval mode.
        tokenizer: of the text tower.
        texts: of each class, equally many.

    Returns:
        float32 ``[classes, D]``.
    """
    context = towers.config.text_config.max_position_embeddings
    pads_to_context = FAMILIES[towers.config.model_type].pads_to_context
    padding = {"padding": "max_length", "max_length": context} if pads_to_context else {"padding": "longest"}
    flat = [text for class_texts in texts for text in class_texts]
    chunks = []
    with torch.no_grad():
        for start in range(0, len(flat), TEXTS_AT_ONCE):
            chunk = flat[start : start + TEXTS_AT_ONCE]
            tokens = tokenizer(chunk, **padding, return_tensors="pt")
            inputs = {name: tokens[name] for name in ("input_ids", "attention_mask") if name in tokens}
            features = towers.get_text_features(**inputs).pooler_output
            chunks.append(nn.functional.normalize(features, dim=-1))
    means = torch.cat(chunks).reshape(len(texts), len(texts[0]), -1).mean(dim=1)
    return nn.functional.normalize(means, dim=-1)


def _check_texts(card: Card, towers: Any, tokenizer: Any, texts: Sequence[Sequence[str]], descriptions: Sequence[str]) -> None:
    """Checks that the tokenizer is the text tower's and that every text fits it.

    Raises:
        ConfigurationError: names the label whose text does not fit.
    """
    config = towers.config.text_config
    context, size, end = config.max_position_embeddings, config.vocab_size, config.eos_token_id
    reads_end = FAMILIES[towers.config.model_type].reads_end and not (towers.config.model_type == "clip" and end == LEGACY_END)
    special = set(tokenizer.all_special_ids)
    of_another = "is it the tokenizer of these weights? It must lie beside them"
    words = tokenizer(list(descriptions), add_special_tokens=False)["input_ids"]
    for description, class_texts, label_words in zip(descriptions, texts, words, strict=True):
        if special.issuperset(label_words):
            raise ConfigurationError(
                f"card {card.name}: labels: the tokenizer knows no part of the label {description!r}; {of_another}"
            )
        for text, tokens in zip(class_texts, tokenizer(list(class_texts))["input_ids"], strict=True):
            if len(tokens) > context:
                raise ConfigurationError(
                    f"card {card.name}: labels.prompt: the text of the label {description!r} has {len(tokens)} tokens, and the "
                    f"text tower reads {context}: {text[:200]!r}; shorten the label or the prompt"
                )
            if max(tokens) >= size:
                raise ConfigurationError(
                    f"card {card.name}: labels: the tokenizer gives the token {max(tokens)}, and the text tower has {size}; "
                    f"{of_another}"
                )
            if reads_end and end not in tokens:
                raise ConfigurationError(
                    f"card {card.name}: labels: the tokenizer does not end {text[:200]!r} with the token {end}, which the text "
                    f"tower reads; {of_another}"
                )

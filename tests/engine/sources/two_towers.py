"""Networks of an image tower and a text tower, small and of seeded random weights, saved as a repository of the library is."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

transformers: Any = pytest.importorskip("transformers")
tokenizers: Any = pytest.importorskip("tokenizers")

LABELS = ("cat", "dog", "blue sofa")
WORDS = (
    "<pad>",
    "<s>",
    "<unk>",
    "a",
    "photo",
    "of",
    "this",
    "is",
    ".",
    "drawing",
    "the",
    "cat",
    "dog",
    "blue",
    "sofa",
    "red",
    "</s>",
)
END = WORDS.index("</s>")
CONTEXT, SIDE, CELLS = 12, 64, 4
FAMILIES = ("clip", "siglip", "metaclip_2")
ACTIVATIONS = {"clip": "softmax", "siglip": "sigmoid", "metaclip_2": "softmax"}
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT: dict[str, Any] = TOWER | {
    "vocab_size": len(WORDS), "max_position_embeddings": CONTEXT, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": END,
}  # fmt: skip
VISION: dict[str, Any] = TOWER | {"image_size": SIDE, "patch_size": SIDE // CELLS}


def table(values: dict[str, Any]) -> str:
    """An inline table of TOML."""
    return "{" + ", ".join(f"{name} = {value}" for name, value in values.items()) + "}"


ARGS = f"args = {{text_config = {table(TEXT)}, vision_config = {table(VISION)}}}"


def towers(family: str, text: dict[str, Any] = TEXT) -> Any:
    """A network of two towers; its image tower is scaled up so that images of random weights differ."""
    torch.manual_seed(11)
    config = transformers.AutoConfig.for_model(family, text_config=text, vision_config=VISION)
    module = transformers.AutoModel.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.startswith("vision_model.") and parameter.dim() > 1:
                parameter.mul_(3)
    return module


def tokenizer(words: Sequence[str] = WORDS) -> Any:
    """A tokenizer of whole words in lower case, between `<s>` and `</s>`."""
    ids = {word: number for number, word in enumerate(words)}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token="<unk>"))
    made.normalizer = tokenizers.normalizers.Lowercase()
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", ids["<s>"]), ("</s>", ids["</s>"])]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def image_processor(family: str) -> Any:
    """The family's own, for the size of `towers`."""
    if family == "siglip":
        return transformers.SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE})
    return transformers.CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})


def save_repository(folder: Path, family: str, module: Any = None) -> Any:
    """Saves configuration, weights, tokenizer and image processor; returns the network."""
    module = module or towers(family)
    module.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    image_processor(family).save_pretrained(folder)
    return module


def save_card(
    folder: Path,
    family: str,
    *,
    name: str = "towers",
    labels: str = "",
    lines: Sequence[str] = LABELS,
    args: str = "",
    weights: str | None = None,
) -> Path:
    """A card beside the weights, with `labels` in its table of labels; returns its path."""
    file = folder / "model.safetensors"
    if weights is None:
        weights = f'file = "{file.name}"\nsha256 = "{hashlib.sha256(file.read_bytes()).hexdigest()}"'
    (folder / "labels.txt").write_text("\n".join(lines))
    path = folder / f"{name}.toml"
    path.write_text(
        f'[architecture]\nsource = "transformers"\nname = "{family}"\n{args}\n[weights]\n{weights}\n'
        f'[labels]\nfile = "labels.txt"\n{labels}\n'
    )
    return path

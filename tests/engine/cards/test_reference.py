"""References: a card made of one word, and what is said where the word is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.engine.cards.reference import card_of_reference, is_reference, slug
from service.engine.cards.repository import read_cards, select_cards
from service.errors import ConfigurationError
from service.settings import DEFAULT_MODELS_DIR
from tests.engine.cards.test_card import GOOD, card

COMMIT = "3f49326eb077187dfe1c2a2bb15fbd74e6ab91e3"


def saved(folder: Path) -> Path:
    """A folder as `save_pretrained` leaves it, as far as a card needs it."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}", encoding="utf-8")
    (folder / "model.safetensors").write_bytes(b"")
    return folder


@pytest.mark.parametrize(
    ("text", "name", "architecture", "weights"),
    [
        ("timm/resnet50.a1_in1k", "resnet50.a1_in1k", ("timm", "resnet50"), {"name": "a1_in1k"}),
        ("timm/resnet50", "resnet50", ("timm", "resnet50"), {"name": "default"}),
        (f"timm/resnet50.a1_in1k@{COMMIT}", "resnet50.a1_in1k", ("timm", "resnet50"), {"name": "a1_in1k", "revision": COMMIT}),
        ("timm/regnety_002?random=0", "regnety_002", ("timm", "regnety_002"), {"random": 0}),
        ("torchvision/resnet50", "resnet50", ("torchvision", "resnet50"), {"name": "default"}),
        ("torchvision/resnet50/IMAGENET1K_V2", "resnet50", ("torchvision", "resnet50"), {"name": "IMAGENET1K_V2"}),
        ("hf/google/ViT-Base", "vit-base", ("transformers", ""), {"hub": "google/ViT-Base"}),
        (f"hf/google/vit@{COMMIT}", "vit", ("transformers", ""), {"hub": "google/vit", "revision": COMMIT}),
        ("dogs=hf/google/vit@main", "dogs", ("transformers", ""), {"hub": "google/vit", "revision": "main"}),
        ("keras/Xception", "xception", ("keras", "Xception"), {"name": "default"}),
    ],
)
def test_a_library_s_network(text: str, name: str, architecture: tuple[str, str], weights: dict[str, object]) -> None:
    made = card_of_reference(text)
    assert made.name == name
    assert (made.architecture.source, made.architecture.name) == architecture
    assert made.weights.model_dump(exclude_none=True) == weights
    assert made.reference == text.removeprefix("dogs=")
    assert (made.labels.dataset, made.labels.file, made.labels.names) == (None, None, None)


def test_options_override_fields(tmp_path: Path) -> None:
    labels = tmp_path / "my.txt"
    labels.write_text("cat\ndog\n", encoding="utf-8")
    made = card_of_reference(
        f"timm/resnet18?random=3&labels={labels}&activation=sigmoid&layer=layer3&layer=layer4&crop=128&mean=0.5&std=0.1&std=0.2&std=0.3"
    )
    assert made.weights.random == 3
    assert (made.labels.file, made.labels.activation) == (str(labels), "sigmoid")
    assert made.explain.layer == ("layer3", "layer4")
    assert (made.preprocess.crop, made.preprocess.mean, made.preprocess.std) == (128, (0.5, 0.5, 0.5), (0.1, 0.2, 0.3))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("timm/resnet18?rnadom=0", "rnadom"),
        ("timm/resnet18?random=-1", "random"),
        ("timm/resnet18?random=0&random=1", "random"),
        ("timm/resnet18?layer", "layer"),
        ("hf/vit", "hf/OWNER/REPOSITORY"),
        ("hf/google/vit?random=0", "random: only for"),
        ("torchvision/resnet50@main", "names, not revisions"),
        ("keras/Xception/imagenet", "keras/NAME"),
        ("google/vit-base", "no such file or folder.*hf/OWNER"),
        ("missing.pt2", "no such file or folder"),
    ],
)
def test_what_is_wrong_is_named(text: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words) as raised:
        card_of_reference(text)
    assert str(raised.value).startswith(f"model {text}: ")


def test_folders_and_files(tmp_path: Path) -> None:
    folder = saved(tmp_path / "My Dogs")
    (folder / "labels.txt").write_text("collie\npug\n", encoding="utf-8")
    made = card_of_reference(str(folder))
    assert (made.name, made.reference, made.folder) == ("my-dogs", "My Dogs", folder)
    assert (made.architecture.source, made.weights.file, made.labels.file) == (
        "transformers",
        "model.safetensors",
        "labels.txt",
    )

    (tmp_path / "net.pt2").write_bytes(b"")
    program = card_of_reference(f"cats={tmp_path / 'net.pt2'}")
    assert (program.name, program.reference, program.architecture.source, program.labels.file) == (
        "cats", "net.pt2", "local", None
    )  # fmt: skip
    (tmp_path / "state.pth").write_bytes(b"")
    with pytest.raises(ConfigurationError, match="write a card"):
        card_of_reference(str(tmp_path / "state.pth"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigurationError, match="the folder holds no model"):
        card_of_reference(str(tmp_path / "empty"))


def test_a_folder_with_a_card_is_named_after_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "pets"
    folder.mkdir()
    card(folder, GOOD, "card")
    assert card_of_reference(str(folder)).name == "pets"
    assert card_of_reference(str(folder / "card.toml")).name == "card"
    assert read_cards(tmp_path).keys() == {"pets"}


def test_a_models_folder_holds_cards_and_folders(tmp_path: Path) -> None:
    card(tmp_path, GOOD, "mine")
    saved(tmp_path / "dogs")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "labels.txt").write_text("cat\n", encoding="utf-8")
    saved(tmp_path / "mine")  # which the card of that name describes
    cards = read_cards(tmp_path)
    assert list(cards) == ["mine", "dogs"]
    assert cards["mine"].reference is None
    saved(tmp_path / "DOGS")
    with pytest.raises(ConfigurationError, match="two models are named 'dogs'"):
        read_cards(tmp_path)


def test_a_models_folder_that_is_one_model(tmp_path: Path) -> None:
    assert list(read_cards(saved(tmp_path / "models"))) == ["models"]


def test_models_of_an_operator_in_order() -> None:
    cards = read_cards(DEFAULT_MODELS_DIR)
    selected = select_cards(["vgg16", "torchvision/resnet50", "b=timm/resnet50"], cards)
    assert list(selected) == ["vgg16", "resnet50", "b"]
    assert selected["vgg16"] is cards["vgg16"]
    assert selected["resnet50"].reference == "torchvision/resnet50"


def test_models_of_an_operator_that_cannot_be_served() -> None:
    cards = read_cards(DEFAULT_MODELS_DIR)
    with pytest.raises(ConfigurationError, match="two models are named 'resnet50'; name one of them: NAME=timm/resnet50"):
        select_cards(["torchvision/resnet50", "timm/resnet50"], cards)
    with pytest.raises(ConfigurationError, match=r"no card 'resnet5'.*vgg16.*timm/NAME"):
        select_cards(["resnet5"], cards)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("resnet50", False),
        ("timm/resnet50", True),
        ("a=b", True),
        ("net.pt2", True),
        ("net.keras", True),
        ("resnet50.a1", False),
    ],
)
def test_names_and_references_are_told_apart(text: str, expected: bool) -> None:
    assert is_reference(text) is expected


@pytest.mark.parametrize(
    ("text", "name"), [("ViT Base/16", "vit-base-16"), ("..", "model"), ("x" * 99, "x" * 64), ("Ü", "model")]
)
def test_slugs(text: str, name: str) -> None:
    assert slug(text) == name

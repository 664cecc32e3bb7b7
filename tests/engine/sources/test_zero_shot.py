"""Zero-shot classifiers: the library's own similarities of images and texts, explained as any other network."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from service.engine.batch import EngineRequest
from service.engine.cards.card import Card
from service.engine.methods import METHODS
from service.engine.network import Network
from service.engine.sources import load
from service.engine.types import EngineResult
from service.errors import ConfigurationError
from tests.engine.cards.test_card import GOOD, card
from tests.engine.sources import two_towers
from tests.image_files import scene

transformers: Any = pytest.importorskip("transformers")

PROMPT = 'prompt = "a photo of a {}."'
IMAGES = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(2)) * 4 - 2


def expected_logits(module: Any, family: str, texts: list[str]) -> Tensor:
    """The library's `logits_per_image` of `IMAGES`, of texts padded as its documentation says."""
    padding = {"padding": "max_length", "max_length": two_towers.CONTEXT} if family == "siglip" else {"padding": True}
    inputs = two_towers.tokenizer()(texts, return_tensors="pt", **padding)
    with torch.no_grad():
        logits: Tensor = module(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], pixel_values=IMAGES
        ).logits_per_image
    return logits


@pytest.mark.parametrize("family", two_towers.FAMILIES)
def test_logits_are_the_librarys(tmp_path: Path, family: str) -> None:
    module = two_towers.save_repository(tmp_path, family)
    loaded = load(Card.read(two_towers.save_card(tmp_path, family, labels=PROMPT)))
    expected = expected_logits(module, family, [f"a photo of a {label}." for label in two_towers.LABELS])
    torch.testing.assert_close(loaded.module(IMAGES), expected, rtol=0, atol=1e-5)
    assert expected.std(dim=0).min() > 1e-3  # the images differ to this network
    assert loaded.activation == two_towers.ACTIVATIONS[family]
    assert (loaded.preprocessing.height, loaded.preprocessing.width) == (64, 64)
    assert loaded.preprocessing.fit == ("squash" if family == "siglip" else "crop")
    assert not any(name.startswith("text") for name, _ in loaded.module.named_modules())


@pytest.mark.parametrize("family", two_towers.FAMILIES)
def test_two_towers_without_a_prompt_have_the_familys_own(tmp_path: Path, family: str) -> None:
    template = "This is a photo of {}." if family == "siglip" else "a photo of a {}."
    module = two_towers.save_repository(tmp_path, family)
    loaded = load(Card.read(two_towers.save_card(tmp_path, family)))
    expected = expected_logits(module, family, [template.format(label) for label in two_towers.LABELS])
    torch.testing.assert_close(loaded.module(IMAGES), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", two_towers.FAMILIES)
def test_the_features_of_several_templates_are_averaged(tmp_path: Path, family: str) -> None:
    """By the library's own features: the mean of unit vectors, itself made a unit vector."""
    templates = ["a photo of a {}.", "a drawing of the {}.", "{}"]
    module = two_towers.save_repository(tmp_path, family)
    loaded = load(Card.read(two_towers.save_card(tmp_path, family, labels=f"prompt = {json.dumps(templates)}")))
    for class_id, label in enumerate(two_towers.LABELS):
        padding = {"padding": "max_length", "max_length": two_towers.CONTEXT} if family == "siglip" else {"padding": True}
        inputs = two_towers.tokenizer()([template.format(label) for template in templates], return_tensors="pt", **padding)
        with torch.no_grad():
            texts = module.get_text_features(inputs["input_ids"], attention_mask=inputs["attention_mask"]).pooler_output
            images = module.get_image_features(IMAGES).pooler_output
        mean = torch.nn.functional.normalize(texts).mean(0)
        cosine = torch.nn.functional.cosine_similarity(images, mean[None])
        bias = module.logit_bias if family == "siglip" else 0
        torch.testing.assert_close(
            loaded.module(IMAGES)[:, class_id], cosine * module.logit_scale.exp() + bias, rtol=0, atol=1e-5
        )


def test_a_line_may_be_a_whole_prompt(tmp_path: Path) -> None:
    lines = ("a cat, the red cat", "a dog")
    module = two_towers.save_repository(tmp_path, "clip")
    loaded = load(Card.read(two_towers.save_card(tmp_path, "clip", labels='prompt = "{}"', lines=lines)))
    torch.testing.assert_close(loaded.module(IMAGES), expected_logits(module, "clip", list(lines)), rtol=0, atol=1e-5)
    # In any other template a label is what predictions call it.
    loaded = load(Card.read(two_towers.save_card(tmp_path, "clip", labels='prompt = "the {}"', lines=lines)))
    expected = expected_logits(module, "clip", ["the a cat", "the a dog"])
    torch.testing.assert_close(loaded.module(IMAGES), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_the_images_own_configuration_is_read_where_it_lies_with_the_texts(tmp_path: Path, family: str) -> None:
    two_towers.towers(family).save_pretrained(tmp_path)
    images = two_towers.image_processor(family)
    images.image_mean = [0.1, 0.2, 0.3]
    processor = {"clip": transformers.CLIPProcessor, "siglip": transformers.SiglipProcessor}[family]
    processor(image_processor=images, tokenizer=two_towers.tokenizer()).save_pretrained(tmp_path)
    assert not (tmp_path / "preprocessor_config.json").exists()
    assert load(Card.read(two_towers.save_card(tmp_path, family))).preprocessing.mean == (0.1, 0.2, 0.3)


def test_the_digest_is_that_of_the_weights(tmp_path: Path) -> None:
    two_towers.tokenizer().save_pretrained(tmp_path)
    digests = [
        load(
            Card.read(
                two_towers.save_card(
                    tmp_path, "clip", labels=f'prompt = "{prompt}"', args=two_towers.ARGS, weights=f"random = {seed}"
                )
            )
        ).digest
        for prompt, seed in (("a {}", 1), ("the {}", 1), ("a {}", 2))
    ]
    assert digests[0] == digests[1] != digests[2]


def test_a_card_alone_describes_towers(tmp_path: Path) -> None:
    """Nested tables of a configuration, random weights, and the tokenizer beside the card."""
    two_towers.tokenizer().save_pretrained(tmp_path)
    for family in two_towers.FAMILIES:
        path = two_towers.save_card(tmp_path, family, labels=PROMPT, args=two_towers.ARGS, weights="random = 3")
        loaded = load(Card.read(path))
        assert (loaded.preprocessing.height, loaded.preprocessing.width) == (64, 64)
        assert loaded.module(IMAGES).shape == (3, 3)
        plain = path.read_text().replace(PROMPT, "").replace("args = {", "args = {num_labels = 3, ")
        path.write_text(plain)
        assert "classifier" in dict(load(Card.read(path)).module.named_modules())


def test_a_repository_at_its_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's own loader, which takes a folder of that name for the repository; its weights may be of half precision."""
    module = two_towers.save_repository(tmp_path / "our" / "net", "siglip", two_towers.towers("siglip").half())
    monkeypatch.chdir(tmp_path)
    weights = f'hub = "our/net"\nrevision = "{"a" * 40}"'
    loaded = load(Card.read(two_towers.save_card(tmp_path, "siglip", labels=PROMPT, weights=weights)))
    expected = expected_logits(module.float(), "siglip", [f"a photo of a {label}." for label in two_towers.LABELS])
    torch.testing.assert_close(loaded.module(IMAGES), expected, rtol=0, atol=1e-5)


def test_position_ids_of_older_checkpoints_are_no_surprise(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    two_towers.save_repository(tmp_path, "clip")
    path = tmp_path / "model.safetensors"
    state = load_file(path) | {"text_model.embeddings.position_ids": torch.arange(two_towers.CONTEXT)[None]}
    save_file(state, path, metadata={"format": "pt"})
    loaded = load(Card.read(two_towers.save_card(tmp_path, "clip")))
    assert loaded.module(IMAGES).shape == (3, 3)


@pytest.fixture(params=two_towers.FAMILIES)
def network(request: pytest.FixtureRequest, tmp_path: Path) -> Network:
    two_towers.save_repository(tmp_path, request.param)
    return Network.load(Card.read(two_towers.save_card(tmp_path, request.param)), torch.device("cpu"))


def explained(network: Network, method: str, **options: Any) -> tuple[EngineResult, np.ndarray[Any, Any]]:
    chosen = METHODS[method]
    request = EngineRequest(pixels=scene(64, 64), method=chosen, parameters=chosen.defaults, **options)
    (result,) = network.run([request])
    assert isinstance(result, EngineResult), result
    return result, result.maps[0][0]


def hooked_gradcam(network: Network, score: Any) -> Tensor:
    """Grad-CAM by a plain hook on the loaded network, over the patches behind the class token where there is one."""
    outputs: list[Tensor] = []
    (layer,) = network.default_layers
    handle = network._module.get_submodule(layer).register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    own = network.preprocessing
    images = (torch.tensor(scene(64, 64)) / 255 - torch.tensor(own.mean)) / torch.tensor(own.std)
    logits = network._module(images.permute(2, 0, 1)[None].requires_grad_())
    handle.remove()
    (gradients,) = torch.autograd.grad(score(logits[0]), outputs[0])
    cells = two_towers.CELLS
    patches, weights = outputs[0][0, -cells * cells :].detach(), gradients[0, -cells * cells :].mean(0)
    return (patches @ weights).reshape(cells, cells)


def test_gradcam_at_the_default_layer_is_that_of_plain_hooks(network: Network) -> None:
    _, found = explained(network, "gradcam", classes=(1,))
    expected = hooked_gradcam(network, lambda logits: logits[1])
    torch.testing.assert_close(torch.tensor(found), expected, rtol=1e-4, atol=1e-6)
    assert np.ptp(found) > 1e-3 * np.abs(found).max() > 0


def test_a_label_is_contrasted_with_another(network: Network) -> None:
    _, found = explained(network, "gradcam", classes=(0,), versus=2)
    expected = hooked_gradcam(network, lambda logits: logits[0] - logits[2])
    torch.testing.assert_close(torch.tensor(found), expected, rtol=1e-4, atol=1e-6)


def test_attention_is_explained(network: Network) -> None:
    _, rollout = explained(network, "attention_rollout", classes=(1,))
    assert rollout.shape == (4, 4)
    assert np.ptp(rollout) > 0


@pytest.mark.parametrize(
    ("family", "labels", "lines", "message"),
    [
        ("clip", PROMPT, ["cat", "red " * 9 + "dog"], r"labels\.prompt: .* 'red red .* dog' has 17 tokens, .* reads 12"),
        ("clip", PROMPT, ["cat", "zebra"], "no part of the label 'zebra'"),
        ("clip", PROMPT, ["cat"], "there is one label"),
        ("clip", 'prompt = "a photo"', ["cat", "dog"], r'labels\.prompt: .*every template needs "\{\}"'),
        ("clip", "prompt = []", ["cat", "dog"], r"labels\.prompt"),
    ],
)
def test_labels_and_prompts_that_do_not_fit(tmp_path: Path, family: str, labels: str, lines: list[str], message: str) -> None:
    two_towers.save_repository(tmp_path, family)
    with pytest.raises(ConfigurationError, match=rf"towers.*{message}"):
        load(Card.read(two_towers.save_card(tmp_path, family, labels=labels, lines=lines)))


def test_a_card_may_say_another_activation(tmp_path: Path) -> None:
    two_towers.save_repository(tmp_path, "siglip")
    loaded = load(Card.read(two_towers.save_card(tmp_path, "siglip", labels='activation = "softmax"')))
    assert loaded.activation == "softmax"


def test_one_label_is_enough_for_a_sigmoid(tmp_path: Path) -> None:
    two_towers.save_repository(tmp_path, "siglip")
    for labels in ("", 'activation = "sigmoid"'):
        loaded = load(Card.read(two_towers.save_card(tmp_path, "siglip", labels=labels, lines=["cat"])))
        assert loaded.module(IMAGES).shape == (3, 1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("more", *two_towers.WORDS), "gives the token 17, and the text tower has 17"),
        ((*two_towers.WORDS[:-2], "</s>"), "with the token 16, which the text tower reads"),
    ],
)
def test_a_tokenizer_of_other_weights(tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    two_towers.save_repository(tmp_path, "metaclip_2")
    two_towers.tokenizer(words).save_pretrained(tmp_path)
    with pytest.raises(ConfigurationError, match=message):
        load(Card.read(two_towers.save_card(tmp_path, "metaclip_2")))


@pytest.mark.parametrize("family", two_towers.FAMILIES)
def test_a_tokenizer_is_missing(tmp_path: Path, family: str) -> None:
    two_towers.save_repository(tmp_path, family)
    (tmp_path / "tokenizer.json").unlink()
    for weights in (None, "random = 0"):
        path = two_towers.save_card(tmp_path, family, labels=PROMPT, args=two_towers.ARGS, weights=weights)
        with pytest.raises(ConfigurationError, match=r"labels\.prompt: there is no tokenizer in .*put the tokenizer\.json"):
            load(Card.read(path))


def byte_pair_tokenizer() -> Any:
    """CLIP's own: byte pairs of lower-case letters; the token that ends a text also pads it."""
    merges: Any = [("c", "a"), ("ca", "t</w>"), ("d", "o"), ("do", "g</w>")]
    letters = [letter + end for letter in "abcdefghijklmnopqrstuvwxyz." for end in ("", "</w>")]
    words = [*letters, *("".join(pair) for pair in merges), "<|startoftext|>", "<|endoftext|>"]
    return transformers.CLIPTokenizer(vocab={word: number for number, word in enumerate(words)}, merges=merges)


def unigram_tokenizer() -> Any:
    """MetaCLIP 2's, which is that of XLM-RoBERTa: pieces of words by their probability; the token 2 ends a text."""
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "\u2581a", "\u2581cat", "\u2581Cat", "\u2581dog", "e", "."]
    return transformers.XLMRobertaTokenizer(vocab=[(piece, -float(number)) for number, piece in enumerate(pieces)])


@pytest.mark.parametrize(
    ("family", "own", "end"),
    [
        ("clip", byte_pair_tokenizer(), None),
        ("clip", byte_pair_tokenizer(), 2),  # as the first weights of CLIP say, which read the token of the highest id
        ("metaclip_2", unigram_tokenizer(), 2),
    ],
)
def test_the_familys_own_tokenizer(tmp_path: Path, family: str, own: Any, end: int | None) -> None:
    text = two_towers.TEXT | {"vocab_size": len(own), "eos_token_id": end or own.eos_token_id}
    module = two_towers.towers(family, text)
    two_towers.save_repository(tmp_path, family, module)
    own.save_pretrained(tmp_path)
    loaded = load(Card.read(two_towers.save_card(tmp_path, family, labels='prompt = "a {}."', lines=["Cat", "doge"])))
    inputs = own(["a Cat.", "a doge."], padding=True, return_tensors="pt")
    assert own.unk_token_id not in inputs["input_ids"][:, 1:4]
    with torch.no_grad():
        expected = module(**inputs, pixel_values=IMAGES).logits_per_image
    torch.testing.assert_close(loaded.module(IMAGES), expected, rtol=0, atol=1e-5)
    assert (expected[:, 0] - expected[:, 1]).abs().min() > 1e-4


@pytest.mark.skipif(find_spec("sentencepiece") is not None, reason="the library's own class of SigLIP's tokenizer can be used")
def test_siglips_tokenizer_without_sentencepiece(tmp_path: Path) -> None:
    """Its configuration names a class that needs SentencePiece; tokenizer.json is the same without it."""
    module = two_towers.save_repository(tmp_path, "siglip")
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"tokenizer_class": "SiglipTokenizer"}))
    path = two_towers.save_card(tmp_path, "siglip", labels=PROMPT)
    expected = expected_logits(module, "siglip", [f"a photo of a {label}." for label in two_towers.LABELS])
    torch.testing.assert_close(load(Card.read(path)).module(IMAGES), expected, rtol=0, atol=1e-5)
    (tmp_path / "tokenizer.json").rename(tmp_path / "spiece.model")
    with pytest.raises(ConfigurationError, match="pip install sentencepiece protobuf"):
        load(Card.read(path))


def test_a_tokenizer_that_cannot_be_read(tmp_path: Path) -> None:
    two_towers.save_repository(tmp_path, "clip")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigurationError, match="card towers"):
        load(Card.read(two_towers.save_card(tmp_path, "clip")))


def test_no_text_tower(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"'vit' has no text tower; .* clip, metaclip_2, siglip"):
        load(Card.read(two_towers.save_card(tmp_path, "vit", labels=PROMPT, weights="random = 0")))
    with pytest.raises(ConfigurationError, match=r"mine.*labels\.prompt: networks of timm have no text tower"):
        Card.read(card(tmp_path, GOOD.replace("[labels]", f"[labels]\n{PROMPT}")))


def test_a_classifier_made_of_an_image_tower_has_no_text_tower(tmp_path: Path) -> None:
    two_towers.save_repository(tmp_path, "clip", transformers.CLIPForImageClassification(two_towers.towers("clip").config))
    with pytest.raises(ConfigurationError, match="those of CLIPForImageClassification, without a text tower"):
        load(Card.read(two_towers.save_card(tmp_path, "clip", labels=PROMPT)))
    loaded = load(Card.read(two_towers.save_card(tmp_path, "clip")))
    assert loaded.module(IMAGES).shape == (3, 2)

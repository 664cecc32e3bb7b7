"""Networks of timm: images prepared as timm's own transforms prepare them, whatever the crop mode."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import timm.data
from PIL import Image

from service.engine.cards.card import Card
from service.engine.sources import load
from service.engine.sources.timm import timm_preprocessing
from service.imaging.geometry import mean_color, place, resample
from tests.engine.cards.test_card import GOOD, card
from tests.image_files import scene

DATA: dict[str, Any] = {
    "input_size": (3, 96, 96), "interpolation": "bicubic", "mean": (0.48, 0.46, 0.41), "std": (0.27, 0.26, 0.28),
    "crop_pct": 1.0,
}  # fmt: skip
# timm is only partly typed.
_data: Any = timm.data
_config: Any = timm.get_pretrained_cfg


@pytest.mark.parametrize(("width", "height"), [(250, 170), (170, 251), (60, 90)])
@pytest.mark.parametrize(
    "change",
    [
        {"crop_mode": "squash"},
        {"crop_mode": "squash", "crop_pct": 0.9},
        {"crop_mode": "squash", "input_size": (3, 96, 64)},
        {"crop_mode": "border"},
        {"crop_mode": "center", "crop_pct": 0.875},
        {"crop_pct": 0.95, "interpolation": "bilinear"},
    ],
    ids=str,
)
def test_images_are_prepared_as_timm_prepares_them(change: dict[str, Any], width: int, height: int) -> None:
    data = DATA | change
    theirs = np.asarray(_data.create_transform(**data, normalize=False)(Image.fromarray(scene(width, height))))
    own = timm_preprocessing(data)
    ours = resample(scene(width, height), place(width, height, own, own.fit), own.interpolation, mean_color(own))
    assert np.abs(ours.transpose(2, 0, 1).astype(int) - theirs).max() <= 1


@pytest.mark.parametrize(("name", "fit", "kept"), [("eva02_base_patch14_448", "squash", 1.0), ("dm_nfnet_f0", "squash", 0.9)])
def test_the_crop_mode_of_weights(name: str, fit: str, kept: float) -> None:
    own = timm_preprocessing(_data.resolve_data_config(pretrained_cfg=_config(name).to_dict()))
    assert (own.fit, own.squash_crop) == (fit, kept)


def test_no_crop_mode_of_timms_own_weights_is_unknown() -> None:
    configs = [_config(name).to_dict() for name in timm.list_models(pretrained=True)]
    fits = {timm_preprocessing(_data.resolve_data_config(pretrained_cfg=config)).fit for config in configs}
    assert fits == {"crop", "squash", "pad"}


def test_a_crop_mode_that_no_fit_has() -> None:
    with pytest.raises(ValueError, match=r"crop_mode 'border' and crop_pct 0\.9"):
        timm_preprocessing(DATA | {"crop_mode": "border", "crop_pct": 0.9})


def test_a_card_may_choose_another_fit(tmp_path: Path) -> None:
    text = GOOD.replace('"resnet18"', '"vit_small_patch16_224"').replace('layer = "layer4"', "")
    assert load(Card.read(card(tmp_path, text))).preprocessing.fit == "crop"
    text += '[preprocess]\nfit = "squash"\n'
    assert load(Card.read(card(tmp_path, text))).preprocessing.fit == "squash"

"""References through the libraries' own loaders, offline: from their caches, and what is said where these are empty.

The libraries read their environment when they are imported, so that every load is in a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file

transformers: Any = pytest.importorskip("transformers")

COMMIT = "3f49326eb077187dfe1c2a2bb15fbd74e6ab91e3"
LOAD = """
import json, sys
from service.engine.cards.reference import card_of_reference
from service.engine.sources import load
from service.errors import ConfigurationError
for reference in sys.argv[1:]:
    try:
        loaded = load(card_of_reference(reference))
    except ConfigurationError as error:
        print(json.dumps({"error": str(error)}))
        continue
    bias = list(loaded.module.parameters())[-1]
    print(json.dumps({
        "revision": loaded.revision, "labels": loaded.labels.labels[:3] if loaded.labels else None,
        "sum": float(bias.double().sum()), "side": loaded.preprocessing.height, "digest": loaded.digest,
    }))
"""


def load_offline(home: Path, *references: str) -> list[dict[str, Any]]:
    environment = os.environ | {"HF_HOME": str(home / "hf"), "TORCH_HOME": str(home / "torch"), "HF_HUB_OFFLINE": "1"}
    ended = subprocess.run(
        [sys.executable, "-c", LOAD, *references], env=environment, capture_output=True, text=True, check=True, timeout=240
    )
    return [json.loads(line) for line in ended.stdout.splitlines() if line.startswith('{"') and '"event"' not in line]


def fill_cache(home: Path, repository: str, files: Path) -> None:
    """Puts files into the hub's cache as if a client had fetched them from the branch main."""
    folder = home / "hf" / "hub" / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT, encoding="ascii")
    (folder / "snapshots").mkdir()
    files.rename(folder / "snapshots" / COMMIT)


def bias_sum(module: torch.nn.Module) -> float:
    return float(list(module.parameters())[-1].detach().double().sum())


def test_weights_of_filled_caches(tmp_path: Path) -> None:
    torch.manual_seed(7)
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, image_size=64, patch_size=16,
        id2label={0: "cat", 1: "dog", 2: "eel"},
    )  # fmt: skip
    vit = transformers.ViTForImageClassification(config)
    regnet = timm.create_model("regnety_002")
    resnet = torchvision.models.resnet18()
    for module in (vit, regnet, resnet):
        torch.nn.init.normal_(list(module.parameters())[-1])
    vit.save_pretrained(tmp_path / "vit")
    transformers.ViTImageProcessor(size={"height": 64, "width": 64}).save_pretrained(tmp_path / "vit")
    fill_cache(tmp_path, "acme/tiny-vit", tmp_path / "vit")
    (tmp_path / "regnet").mkdir()
    save_file(regnet.state_dict(), tmp_path / "regnet" / "model.safetensors")
    fill_cache(tmp_path, "timm/regnety_002.pycls_in1k", tmp_path / "regnet")
    checkpoints = tmp_path / "torch" / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    torch.save(resnet.state_dict(), checkpoints / "resnet18-f37072fd.pth")

    branch, pinned, by_tag, by_default, of_torchvision = load_offline(
        tmp_path, "hf/acme/tiny-vit", f"hf/acme/tiny-vit@{COMMIT}", "timm/regnety_002.pycls_in1k", "timm/regnety_002",
        "torchvision/resnet18",
    )  # fmt: skip

    assert (branch["revision"], branch["labels"], branch["side"]) == (COMMIT, ["cat", "dog", "eel"], 64)
    assert branch["sum"] == pytest.approx(bias_sum(vit))
    assert pinned == branch
    assert (by_tag["revision"], by_tag["labels"][:2]) == (COMMIT, ["tench", "goldfish"])
    assert by_tag["sum"] == pytest.approx(bias_sum(regnet))
    assert by_default == by_tag
    assert (of_torchvision["revision"], of_torchvision["labels"][:2]) == (None, ["tench", "goldfish"])
    assert of_torchvision["sum"] == pytest.approx(bias_sum(resnet))


def test_empty_caches_say_what_to_do(tmp_path: Path) -> None:
    hub, pinned, tag = load_offline(tmp_path, "hf/acme/vit", f"hf/acme/vit@{COMMIT}", "timm/regnety_002@main")
    assert "HF_HUB_OFFLINE is set" in hub["error"]
    assert "has no acme/vit at main; connect once to fill the cache" in hub["error"]
    assert "cannot be fetched" in pinned["error"]
    assert "connect once to fill the cache" in pinned["error"]
    assert "has no timm/regnety_002.pycls_in1k at main" in tag["error"]

"""The oracle matrix: Score-CAM against pytorch-grad-cam's, which asks the whole network about every channel."""

from __future__ import annotations

import pytest
import torch
from pytorch_grad_cam import ScoreCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

from tests.parity.matrix import NETWORKS, Record
from tests.parity.oracle import functional, hold_raw, ready
from tests.parity.subjects import SMALL

pytestmark = pytest.mark.slow

# Early, where channels are few.
LAYERS = {
    "resnet18": "layer1",
    "resnet50": "layer1.0.conv2",
    "vgg16": "features.4",
    "timm:tf_efficientnet_lite0": "blocks.1",
    "densenet121": "features.pool0",
    "mobilenet_v3_large": "features.4",
    "convnext_tiny": "features.1",
    "swin_t": "features.1",
    "vit_b_16": "encoder.layers.encoder_layer_11.ln_1",
}
MOST = 96  # of channels: the ViT has 768 at every layer


@pytest.mark.parametrize("name", NETWORKS)
def test_equals_pytorch_grad_cam(record_property: Record, name: str) -> None:
    """The grids before they are scaled, of all channels of a layer or of those that vary most."""
    subject, module = SMALL[name], ready(SMALL[name].module)
    with functional(), ScoreCAM(module, [module.get_submodule(LAYERS[name])], subject.reshape) as cam:
        cam.activations_and_grads(subject.images())
        activations = cam.activations_and_grads.activations[0]
        convention = ""
        if activations.shape[1] > MOST:
            activations = activations[:, activations[0].flatten(1).var(1).topk(MOST).indices]
            convention = f"of the {MOST} channels that vary most"
        targets = [ClassifierOutputTarget(subject.class_id)]
        expected = cam.get_cam_image(subject.images(), cam.target_layers[0], targets, activations.numpy(), None)
    found = subject.raw("scorecam", layers=(LAYERS[name],), samples=MOST)
    hold_raw(record_property, "pytorch-grad-cam", "scorecam", name, found, torch.from_numpy(expected[0]), convention)

"""The oracle matrix: Ablation-CAM of every channel, against pytorch-grad-cam's."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from pytorch_grad_cam import AblationCAM
from pytorch_grad_cam.ablation_layer import AblationLayer
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn

from service.vocabulary import Polarity
from tests.parity.matrix import NETWORKS, Record
from tests.parity.oracle import hold, library, ready
from tests.parity.subjects import WIDE

pytestmark = pytest.mark.slow

ROWS = 64


class Zeroing(AblationLayer):  # type: ignore[misc]  # the library has no types
    """The paper's ablation, whatever the layer's lowest value; all channels of a batch at once, of any layout."""

    def __init__(self, *, channels_first: bool) -> None:
        super().__init__()
        self.channels_first = channels_first

    def set_next_batch(self, input_batch_index: int, activations: Tensor, num_channels_to_ablate: int) -> None:
        self.activations = activations[input_batch_index].expand(num_channels_to_ablate, *activations.shape[1:]).clone()

    def __call__(self, _: Tensor) -> Tensor:
        rows: Tensor = self.activations
        which, channels = torch.arange(len(rows)), torch.from_numpy(self.indices[: len(rows)]).long()
        if self.channels_first:
            rows[which, channels] = 0
        elif rows.ndim == 4:
            rows[which, :, :, channels] = 0
        else:  # tokens, of which the first is the class's and no place of the grid
            rows[which, 1:, channels] = 0
        return rows


@contextmanager
def once(module: nn.Module) -> Iterator[None]:
    """Computes what lies before the ablated layer for one row: all of a batch are the same image until then."""
    handle = module.register_forward_pre_hook(lambda _, inputs: (inputs[0][:1],))
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize("name", NETWORKS)
def test_equals_pytorch_grad_cam(record_property: Record, name: str) -> None:
    subject = WIDE[name]
    (result,) = subject.explained("ablationcam")
    # They divide by the score.
    polarity: Polarity = "positive" if result.logits[subject.class_id] > 0 else "negative"
    zeroing = Zeroing(channels_first=subject.reshape is None)
    kind = functools.partial(AblationCAM, ablation_layer=zeroing, batch_size=ROWS)
    with once(ready(subject.module)):
        expected = library(
            kind,
            subject.module,
            [subject.layer],
            subject.images(),
            subject.reshape,
            targets=[ClassifierOutputTarget(subject.class_id)],
        )
    convention = "the library's ablation layer made to set channels of the grid to 0, as in the paper"
    hold(record_property, "ablationcam", name, subject.rendered([result], polarity), expected, convention)

"""LitServe with pytorch-grad-cam in batches of eight: the tutorial service, served by a framework that batches.

Run as ``python -m tests.bench.litserver --model NAME --port N``. LitServe is no dependency of camserve; its row is skipped
where it is not installed.
"""

# No postponed annotations here: LitServe reads them to learn what a request is.
import importlib
import io
from typing import Any

import cv2
import cyclopts
import numpy as np
import torch
from fastapi import Request, Response, UploadFile
from PIL import Image
from pytorch_grad_cam.utils.image import show_cam_on_image

from tests.bench.tutorial import Tutorial

BATCH = 8
WAIT_S = 0.02

litserve: Any = importlib.import_module("litserve")


class Explain(litserve.LitAPI):  # type: ignore[misc] # its base is only known where it is installed
    """POST /explain with a file, a PNG back. Its worker is a process of its own, so the network is made in `setup`."""

    def __init__(self, name: str) -> None:
        super().__init__(max_batch_size=BATCH, batch_timeout=WAIT_S, api_path="/explain")
        self.name = name

    def setup(self, device: object) -> None:  # noqa: ARG002 (LitServe calls it so)
        self.tutorial = Tutorial(self.name)

    def decode_request(self, request: Request) -> Any:
        file: UploadFile = request["file"]
        image = Image.open(io.BytesIO(file.file.read())).convert("RGB")
        return image, self.tutorial.transform(image)

    def batch(self, inputs: Any) -> Any:
        images, tensors = zip(*inputs, strict=True)
        return images, torch.stack(tensors)

    def predict(self, inputs: Any) -> Any:
        images, tensors = inputs
        return list(zip(images, self.tutorial.cam(input_tensor=tensors, targets=None), strict=True))

    def unbatch(self, output: Any) -> Any:
        return list(output)

    def encode_response(self, output: Any) -> Response:
        image, heat = output
        drawn = show_cam_on_image(np.asarray(image, np.float32) / 255, cv2.resize(heat, image.size), use_rgb=True)
        encoded = io.BytesIO()
        Image.fromarray(drawn).save(encoded, "PNG")
        return Response(encoded.getvalue(), media_type="image/png")


def main(*, model: str = "resnet50", port: int = 8002) -> None:
    """Serves on the loopback."""
    server = litserve.LitServer(Explain(model), accelerator="cpu", workers_per_device=1, timeout=120)
    server.run(host="127.0.0.1", port=port, generate_client_file=False, log_level="warning")


if __name__ == "__main__":
    cyclopts.run(main)

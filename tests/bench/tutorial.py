"""The service that the tutorials lead to: FastAPI, pytorch-grad-cam, one lock, an overlay at full size as Pillow's PNG.

Run as ``python -m tests.bench.tutorial --model NAME --port N``. Only the network comes from camserve's cards, so that both
sides serve the same one.
"""

from __future__ import annotations

import io
import threading
from typing import Annotated, Any

import cv2
import cyclopts
import numpy as np
import uvicorn
from fastapi import FastAPI, File, Response, UploadFile
from PIL import Image
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.image import show_cam_on_image
from torchvision import transforms

from tests.bench import peers


class Tutorial:
    """A network, its transforms, and the lock that pytorch-grad-cam's hooks need."""

    def __init__(self, name: str) -> None:
        loaded = peers.loaded(name)
        module, pre = peers.fresh(loaded.module), loaded.preprocessing
        self.lock = threading.Lock()
        self.cam: Any = GradCAM(model=module, target_layers=[module.get_submodule(peers.card(name).explain.layer[0])])
        self.transform: Any = transforms.Compose(
            [
                transforms.Resize(pre.resize, transforms.InterpolationMode(pre.interpolation)),
                transforms.CenterCrop((pre.height, pre.width)),
                transforms.ToTensor(),
                transforms.Normalize(pre.mean, pre.std),
            ]
        )

    def overlay(self, data: bytes) -> bytes:
        """A photograph's bytes -> a PNG of its size with the best class's heat on it."""
        image = Image.open(io.BytesIO(data)).convert("RGB")
        tensor = self.transform(image)[None]
        with self.lock:
            heat = self.cam(input_tensor=tensor, targets=None)[0]
        drawn = show_cam_on_image(np.asarray(image, np.float32) / 255, cv2.resize(heat, image.size), use_rgb=True)
        file = io.BytesIO()
        Image.fromarray(drawn).save(file, "PNG")
        return file.getvalue()


def create_app(name: str) -> FastAPI:
    """POST /explain with a file, a PNG back."""
    app = FastAPI()
    tutorial = Tutorial(name)

    @app.get("/")
    def ready() -> str:
        return "ready"

    @app.post("/explain")
    def explain(file: Annotated[UploadFile, File()]) -> Response:
        return Response(tutorial.overlay(file.file.read()), media_type="image/png")

    return app


def main(*, model: str = "resnet50", port: int = 8001) -> None:
    """Serves on the loopback."""
    uvicorn.run(create_app(model), port=port, log_level="warning")


if __name__ == "__main__":
    cyclopts.run(main)

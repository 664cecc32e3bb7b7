"""The oracle matrix as tables: for every method that another library has too, and every network, how far the answers differ.

A test states its cell as a property of its report, so the tables are whole whichever processes ran the tests. Knows neither
torch nor the libraries.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

NETWORKS = {
    "resnet18": "ResNet-18",
    "resnet50": "ResNet-50",
    "vgg16": "VGG-16",
    "timm:tf_efficientnet_lite0": "EfficientNet-Lite0",
    "densenet121": "DenseNet-121",
    "mobilenet_v3_large": "MobileNetV3",
    "convnext_tiny": "ConvNeXt-T",
    "swin_t": "Swin-T",
    "vit_b_16": "ViT-B/16",
}
# The methods of the service that a library has too, in the order of the table.
ROWS = {
    "pytorch-grad-cam": (
        "gradcam", "hirescam", "gradcam_elementwise", "gradcam_plusplus", "xgradcam", "layercam", "eigengradcam", "eigencam",
        "kpca_cam", "fem", "random_cam", "shapleycam", "finercam", "ablationcam", "scorecam", "guided_backprop",
    ),
    "captum": (
        "saliency", "input_x_gradient", "integrated_gradients", "smoothgrad", "gradient_shap", "guided_backprop",
        "guided_gradcam", "gradcam", "occlusion", "lime", "kernel_shap",
    ),
}  # fmt: skip
# Those that neither has.
ALONE = ("reciprocam", "rise", "attention", "attention_rollout", "chefer", "legrad")
NOT_RUN, NONE = "not run", "none"
PROPERTY = "parity"

# The largest difference, None where the library has no counterpart; by which convention, or why not.
Cell = tuple[float | None, str]


class Record(Protocol):
    """pytest's `record_property`."""

    def __call__(self, name: str, value: object) -> None: ...


def record(to: Record, library: str, method: str, network: str, difference: float | None, convention: str = "") -> None:
    """States a cell."""
    to(PROPERTY, (library, method, network, difference, convention))


def collect(reports: Iterable[object]) -> dict[str, dict[tuple[str, str], Cell]]:
    """The cells of each library, by method and network, from pytest's reports."""
    found: dict[str, dict[tuple[str, str], Cell]] = {}
    for report in reports:
        for name, value in getattr(report, "user_properties", ()):
            if name == PROPERTY:
                library, method, network, difference, convention = value
                found.setdefault(library, {})[method, network] = (difference, convention)
    return found


def table(library: str, cells: Mapping[tuple[str, str], Cell]) -> str:
    """Methods down, networks across; what was not run says so, and conventions are notes below."""
    notes: dict[str, str] = {}
    widths = {network: max(len(title), 9) + 2 for network, title in NETWORKS.items()}
    titles = "".join(f"{title:>{widths[network]}}" for network, title in NETWORKS.items())
    lines = [f"largest difference from {library}", f"{'':28}{titles}"]
    for method in dict.fromkeys([*ROWS[library], *(method for method, _ in cells)]):
        row = []
        for network, width in widths.items():
            text, mark = NOT_RUN, ""
            if (method, network) in cells:
                difference, convention = cells[method, network]
                text = NONE if difference is None else f"{difference:.1e}"
                mark = notes.setdefault(convention, chr(ord("a") + len(notes))) if convention else ""
            row.append(f"{f'{text} {mark:1}':>{width}}")
        lines.append(f"{method:28}" + "".join(row).rstrip())
    return "\n".join([*lines, *(f"{mark}: {convention}" for convention, mark in notes.items())]) + "\n"


def write(reports: Iterable[object], folder: Path) -> list[str]:
    """Writes `<library>.txt` for each library of which cells were run, and returns the tables."""
    texts = []
    for library, cells in collect(reports).items():
        folder.mkdir(parents=True, exist_ok=True)
        texts.append(table(library, cells))
        (folder / f"{library}.txt").write_text(texts[-1])
    return texts

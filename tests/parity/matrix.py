"""The oracle matrix as tables: for every method that another library has too, and every network, how far the answers differ.

A test states its cell as a property of its report, so the tables are whole whichever processes ran the tests. Knows neither
torch nor the libraries.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

NETWORKS = (
    "resnet18", "resnet50", "vgg16", "timm:tf_efficientnet_lite0", "densenet121", "mobilenet_v3_large", "convnext_tiny",
    "swin_t", "vit_b_16",
)  # fmt: skip
# The methods of the service that a library has too, in the order of the table.
ROWS = {
    "pytorch-grad-cam": (
        "gradcam", "hirescam", "gradcam_elementwise", "gradcam_plusplus", "xgradcam", "layercam", "eigengradcam", "eigencam",
        "kpca_cam", "fem", "random_cam", "shapleycam", "finercam", "ablationcam", "scorecam",
    ),
    "captum": (
        "saliency", "input_x_gradient", "integrated_gradients", "smoothgrad", "gradient_shap", "guided_backprop",
        "guided_gradcam", "gradcam", "occlusion", "lime", "kernel_shap",
    ),
}  # fmt: skip
# Those that neither has.
ALONE = ("reciprocam", "rise", "attention", "attention_rollout", "chefer", "legrad")
NOT_RUN = "not run"
PROPERTY = "parity"

Cell = tuple[float, str]  # the largest difference; by which convention, where that is not the library's own


class Record(Protocol):
    """pytest's `record_property`."""

    def __call__(self, name: str, value: object) -> None: ...


def record(to: Record, library: str, method: str, network: str, difference: float, convention: str = "") -> None:
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
    titles = [name.rpartition(":")[2].removeprefix("tf_")[:12] for name in NETWORKS]
    lines = [f"largest difference from {library}", f"{'':24}" + "".join(f"{title:>14}" for title in titles)]
    for method in dict.fromkeys([*ROWS[library], *(method for method, _ in cells)]):
        row = []
        for network in NETWORKS:
            difference, convention = cells.get((method, network), (None, ""))
            mark = notes.setdefault(convention, chr(ord("a") + len(notes))) if convention else " "
            row.append(f"{NOT_RUN:>12}  " if difference is None else f"{difference:12.1e} {mark}")
        lines.append(f"{method:24}" + "".join(row).rstrip())
    return "\n".join([*lines, *(f"{mark}: {convention}" for convention, mark in notes.items())]) + "\n"


def write(reports: Iterable[object], folder: Path) -> list[str]:
    """Writes `<library>.txt` for each library of which cells were run, and returns the tables."""
    texts = []
    for library, cells in collect(reports).items():
        folder.mkdir(parents=True, exist_ok=True)
        texts.append(table(library, cells))
        (folder / f"{library}.txt").write_text(texts[-1])
    return texts

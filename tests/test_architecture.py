"""The stairs go down only: every import in service/ is read with `ast` and held against the rule."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / "service").rglob("*.py"))

GROUND = {"settings", "errors", "telemetry"}
# Each room, and the rooms whose modules it may import beside its own. The roof sees all.
MAY_IMPORT = {
    "api": {"explain"} | GROUND,
    "explain": {"engine", "imaging"} | GROUND,
    "engine": GROUND,
    "imaging": GROUND,
    "telemetry": {"settings", "errors"},
    "errors": set(),
    "settings": {"errors"},
}
ROOF = {"app", "cli", "__main__"}
TORCH = {"torch", "torchvision", "timm", "transformers", "keras", "safetensors", "openvino"}
HTTP = {"fastapi", "starlette", "uvicorn", "multipart", "python_multipart"}


def room_of(path: Path) -> str:
    return path.relative_to(ROOT / "service").with_suffix("").parts[0]


def imports(source: str) -> Iterator[tuple[str, int]]:
    """Every module imported, anywhere in the file, with its line; `from service import errors` is `service.errors`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute"
            assert node.module is not None
            if node.module == "service":
                yield from ((f"service.{alias.name}", node.lineno) for alias in node.names)
            else:
                yield node.module, node.lineno


def violations(source: str, room: str) -> list[str]:
    found = []
    for module, line in imports(source):
        top, _, rest = module.partition(".")
        if top == "service" and room not in ROOF:
            target = rest.partition(".")[0]
            if target not in MAY_IMPORT[room] | {room, "", "__version__"}:
                found.append(f"line {line}: {room} must not import {module}")
        elif top in TORCH and room != "engine":
            found.append(f"line {line}: only engine imports {top}")
        elif top in HTTP and room not in {"api"} | ROOF:
            found.append(f"line {line}: only api imports {top}")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down_only(path: Path) -> None:
    room = room_of(path)
    if room == "__init__":
        assert list(imports(path.read_text())) == []
        return
    assert room in MAY_IMPORT or room in ROOF, "a room that the house does not know"
    assert violations(path.read_text(), room) == []


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("api", "import torch"),
        ("api", "from service.engine.types import Work"),
        ("api", "from service import imaging"),
        ("api", "def f():\n    import service.app"),
        ("explain", "from torchvision.models import resnet50"),
        ("explain", "from service.api import health"),
        ("explain", "from starlette.requests import Request"),
        ("engine", "from service.imaging.decode import decode"),
        ("imaging", "from service.explain.options import Options"),
        ("imaging", "import timm.data"),
        ("imaging", "import fastapi"),
        ("settings", "from service.telemetry import Metrics"),
        ("app", "import torch"),
    ],
)
def test_the_rule_bites(room: str, source: str) -> None:
    assert len(violations(source, room)) == 1


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_say_what_they_are_and_stay_short(path: Path) -> None:
    source = path.read_text()
    assert ast.get_docstring(ast.parse(source)), "the first lines say what the file is"
    assert len(source.splitlines()) <= 300

"""The house's walls and words: every file in service/ is read with `ast` and held against the rules of CONTRIBUTING.md."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / "service").rglob("*.py"))

GROUND = {"settings", "errors", "telemetry", "tracing", "vocabulary"}
# Each room, and the rooms whose modules it may import beside its own. The roof sees all.
MAY_IMPORT = {
    "api": {"explain"} | GROUND,
    "explain": {"engine", "imaging"} | GROUND,
    "engine": GROUND,
    "imaging": GROUND,
    "telemetry": {"settings", "errors", "vocabulary"},
    "tracing": {"settings", "errors", "vocabulary"},
    "settings": {"errors", "vocabulary"},
    "errors": set(),
    "vocabulary": set(),
}
# The same inside the engine, where everything stands on types, device and cards, and network sees all.
ENGINE_MAY_IMPORT: dict[str, set[str]] = {
    "types": set(),
    "device": set(),
    "disk_cache": set(),
    "cards": set(),
    "runtimes": {"types", "device", "disk_cache"},
    "graph": {"runtimes", "types", "device", "disk_cache"},
    "sources": {"cards", "device"},
    "methods": {"graph", "types"},
    "evaluation": {"graph", "types"},
    "layer_statistics": {"graph", "methods", "types"},
    "layer_choice": {"disk_cache", "types"},
    "calibration": {"disk_cache", "graph", "layer_choice", "runtimes", "types"},
    "batch": {"graph", "methods", "types"},
    "network": {
        "batch", "calibration", "cards", "device", "disk_cache", "evaluation", "graph", "layer_choice", "layer_statistics",
        "methods", "runtimes", "sources", "types",
    },
}  # fmt: skip
ROOF = {"app", "cli", "__main__"}
TORCH = {"torch", "torchvision", "timm", "transformers", "keras", "safetensors", "openvino"}
HTTP = {"fastapi", "starlette", "uvicorn", "multipart", "python_multipart"}
KEYWORD_ONLY_FROM = 4  # fields of a dataclass
# Words that say what has been done to a thing and not what it is.
PARTICIPLES = ("ed", "Seen", "Found", "Done", "Drawn", "Built", "Made", "Held", "Kept", "Sent", "Given", "Known")
# Names of the standard library and of frameworks that a class of ours must not shadow.
TAKEN = {"Axes", "Figure", "Future", "Image", "Module", "Path", "Request", "Response", "Task", "Tensor"}


def room_of(path: Path) -> tuple[str, str]:
    """The room of a file, and where it lies in the engine the room in there; "" for a package's own file."""
    room, *rest = path.relative_to(ROOT / "service").with_suffix("").parts
    inner = rest[0] if room == "engine" and rest and rest[0] != "__init__" else ""
    return room, inner


def imports(source: str) -> Iterator[tuple[str, int]]:
    """Every module imported, anywhere in the file, with its line; `from service import errors` is `service.errors`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute"
            assert node.module is not None
            if node.module in {"service", "service.engine"}:
                yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)
            else:
                yield node.module, node.lineno


def violations(source: str, room: str, inner: str = "") -> list[str]:
    found = []
    for module, line in imports(source):
        top, *rest = module.split(".")
        if top == "service" and room not in ROOF:
            target = rest[0] if rest else ""
            if target not in MAY_IMPORT[room] | {room, "", "__version__"}:
                found.append(f"line {line}: {room} must not import {module}")
            elif room == target == "engine" and inner and {*rest[1:2]} - ENGINE_MAY_IMPORT[inner] - {inner}:
                found.append(f"line {line}: engine/{inner} must not import {module}")
        elif top in TORCH and room != "engine":
            found.append(f"line {line}: only engine imports {top}")
        elif top in HTTP and room not in {"api"} | ROOF:
            found.append(f"line {line}: only api imports {top}")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down_only(path: Path) -> None:
    room, inner = room_of(path)
    if room == "__init__":
        assert list(imports(path.read_text())) == []
        return
    assert room in MAY_IMPORT or room in ROOF, "a room that the house does not know"
    assert not inner or inner in ENGINE_MAY_IMPORT, "a room of the engine that the house does not know"
    assert violations(path.read_text(), room, inner) == []


@pytest.mark.parametrize(
    ("room", "inner", "source"),
    [
        ("api", "", "import torch"),
        ("api", "", "from service.engine.types import EngineResult"),
        ("api", "", "from service import imaging"),
        ("api", "", "def f():\n    import service.app"),
        ("explain", "", "from torchvision.models import resnet50"),
        ("explain", "", "from service.api import health"),
        ("explain", "", "from starlette.requests import Request"),
        ("engine", "network", "from service.imaging.decode import decode"),
        ("engine", "graph", "from service.engine.methods.method import Method"),
        ("engine", "graph", "from service.engine import network"),
        ("engine", "methods", "from service.engine.batch import EngineRequest"),
        ("engine", "runtimes", "from service.engine.graph.split import Split"),
        ("engine", "cards", "from service.engine.device import prepare_device"),
        ("engine", "types", "from service.engine.cards.card import Card"),
        ("engine", "evaluation", "from service.engine.methods import METHODS"),
        ("imaging", "", "from service.explain.options import ExplainOptions"),
        ("imaging", "", "import timm.data"),
        ("imaging", "", "import fastapi"),
        ("settings", "", "from service.telemetry import Metrics"),
        ("vocabulary", "", "from service.settings import Settings"),
        ("app", "", "import torch"),
    ],
)
def test_the_walls_hold(room: str, inner: str, source: str) -> None:
    assert len(violations(source, room, inner)) == 1


def test_the_engine_has_no_circle() -> None:
    """The rules themselves go down only: every room can be built after those that it imports."""
    built: set[str] = set()
    while len(built) < len(ENGINE_MAY_IMPORT):
        ready = {room for room, below in ENGINE_MAY_IMPORT.items() if below <= built} - built
        assert ready, f"a circle among {ENGINE_MAY_IMPORT.keys() - built}"
        built |= ready


# Words --------------------------------------------------------------------------------------------------------------------


def classes() -> Iterator[tuple[Path, ast.ClassDef]]:
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                yield path, node


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_say_what_they_are(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text())), "the first lines say what the file is"


def test_a_type_s_name_stands_for_one_thing() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for path, node in classes():
        places[node.name.lstrip("_")].append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert {name: found for name, found in places.items() if len(found) > 1} == {}
    assert not places.keys() & TAKEN


def test_types_are_nouns() -> None:
    # Errors are named for the code that a client reads.
    names = [node.name for path, node in classes() if path.name != "errors.py"]
    one_word = [name for name in names if sum(letter.isupper() for letter in name) == 1]
    assert len(one_word) > 20
    assert [name for name in one_word if name.endswith(PARTICIPLES)] == []


def test_long_dataclasses_take_keywords_only() -> None:
    positional = []
    for path, node in classes():
        decorators = [ast.unparse(one) for one in node.decorator_list]
        fields = [one for one in node.body if isinstance(one, ast.AnnAssign) and "ClassVar" not in ast.unparse(one.annotation)]
        is_dataclass = any(one.startswith("dataclass") for one in decorators)
        if is_dataclass and len(fields) >= KEYWORD_ONLY_FROM and not any("kw_only=True" in one for one in decorators):
            positional.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}")
    assert positional == []

"""The wheel in an environment of its own: it brings its cards, and serves without the checkout."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import venv
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZipFile

import httpx
import pytest

from tests.photographs import CHELSEA

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("pyproject.toml", "setup.py", "README.md", "service", "models")
START_S = 300.0
# Nothing that could lead an installed service back to the checkout, or to cards of somebody's own.
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "CAMSERVE_"))}


@dataclass(frozen=True, slots=True)
class Installation:
    """A wheel in a virtual environment, with an empty folder to run in."""

    wheel: Path
    environment: Path
    folder: Path

    def command(self, program: str, *arguments: str) -> tuple[str, ...]:
        """The command line of one of the environment's programs."""
        return str(self.environment / "bin" / program), *arguments

    def run(self, program: str, *arguments: str) -> str:
        """What one of the environment's programs prints."""
        command = self.command(program, *arguments)
        return subprocess.run(command, cwd=self.folder, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True, check=True).stdout


def pip(*arguments: str | Path) -> None:
    options = ("--disable-pip-version-check", "--quiet", "--no-index")
    subprocess.run([sys.executable, "-m", "pip", *map(str, arguments), *options], env=ENVIRONMENT, check=True)


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """The wheel of this checkout beside the dependencies of the environment that runs the tests."""
    sources = tmp_path_factory.mktemp("sources")  # a build leaves files beside its sources
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, sources / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, sources / name)
    wheels = tmp_path_factory.mktemp("wheels")
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", wheels, sources)
    (wheel,) = wheels.glob("*.whl")

    environment = tmp_path_factory.mktemp("environment")
    venv.create(environment, symlinks=True)
    python = environment / "bin" / "python"
    pip("--python", python, "install", "--no-deps", wheel)
    # Folders of a .pth file stand behind the environment's own packages, and the .pth files in them are not read: among
    # them is that of the editable installation.
    (packages,) = (environment / "lib").glob("python*/site-packages")
    folders = [path for path in sys.path if Path(path).name in {"site-packages", "dist-packages"}]
    (packages / "dependencies.pth").write_text("\n".join(folders), encoding="utf-8")
    return Installation(wheel, environment, tmp_path_factory.mktemp("elsewhere"))


@contextmanager
def serve(installation: Installation) -> Iterator[str]:
    """A `camserve serve` of the installation on a free port, ready; ended at the end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = installation.command("camserve", "serve", "--port", str(port), "--request-timeout-s", "60")
    process = subprocess.Popen(command, cwd=installation.folder, env=ENVIRONMENT)
    try:
        started = time.monotonic()
        while True:
            assert process.poll() is None, "the server ended"
            assert time.monotonic() - started < START_S
            with suppress(httpx.TransportError):
                if httpx.get(f"{url}/readyz").status_code == 200:
                    break
            time.sleep(0.1)
        yield url
    finally:
        process.kill()
        process.wait(30)


def test_the_wheel_has_the_cards_and_no_package_but_the_service(installation: Installation) -> None:
    names = ZipFile(installation.wheel).namelist()
    cards = {name.removeprefix("service/models/") for name in names if name.startswith("service/models/")}
    assert cards == {path.relative_to(ROOT / "models").as_posix() for path in (ROOT / "models").rglob("*") if path.is_file()}
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "service").rglob("*.py")}
    assert modules == {name for name in names if name.endswith(".py")}
    assert {name.split("/")[0].split("-")[0] for name in names} == {"service", "camserve"}


def test_what_is_installed_is_what_runs(installation: Installation) -> None:
    lines = installation.run(
        "python", "-c", "import service.settings as s; print(s.__file__); print(s.Settings().models_dir)"
    ).splitlines()
    assert [Path(line).is_relative_to(installation.environment) for line in lines] == [True, True]


def test_its_cards_are_listed(installation: Installation) -> None:
    listed = installation.run("camserve", "models")
    for card in (ROOT / "models").glob("*.toml"):
        assert f" {card.stem} " in listed


@pytest.mark.slow
def test_it_serves(installation: Installation) -> None:
    with serve(installation) as url:
        answer = httpx.post(f"{url}/explain", files={"image": CHELSEA.data}, timeout=120)
    assert answer.status_code == 200, answer.text
    (result,) = answer.json()["results"]
    assert result["explanations"][0]["class_id"] == CHELSEA.top[0]

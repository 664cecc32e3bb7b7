"""docs/clients.md, run block by block against the service: what stands there is what works."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Running
from tests.photographs import CHELSEA

PAGE = (Path(__file__).parents[2] / "docs" / "clients.md").read_text(encoding="utf-8")
BLOCKS = [(match[1], match[2]) for match in re.finditer(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)]
COMMANDS = {"python": [sys.executable, "-c"], "sh": ["sh", "-e", "-c"], "javascript": ["node", "--input-type=module", "--eval"]}
# What each block prints, in the order of the page.
PRINTED = [
    r"tiger cat 39%, gradcam at bn2",
    r"\(224, 224\) (1\.0|0\.9999)",
    r'"tiger cat": ?0\.39',
    r"tiger cat 0\.39\d+ \[",
    r"tiger cat",
    r"\[\[282\]\] \(1, 1, 224, 224\) uint8",
]


def test_every_block_is_run() -> None:
    assert [language for language, _ in BLOCKS] == ["python", "python", "sh", "javascript", "python", "python"]
    assert len(PRINTED) == len(BLOCKS)


@pytest.mark.parametrize(
    "number", range(len(BLOCKS)), ids=[f"{number}-{language}" for number, (language, _) in enumerate(BLOCKS)]
)
def test_a_block_of_the_page(server: Running, tmp_path: Path, number: int) -> None:
    language, block = BLOCKS[number]
    if shutil.which(COMMANDS[language][0]) is None:
        pytest.skip(f"{COMMANDS[language][0]} is not installed")
    (tmp_path / "cat.png").write_bytes(CHELSEA.data)
    address = server.url.removeprefix("http://")
    assert "localhost:8000" in block
    program = block.replace("localhost:8000", address)
    ended = subprocess.run(
        [*COMMANDS[language], program], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120
    )
    assert ended.returncode == 0, ended.stderr
    assert re.search(PRINTED[number], ended.stdout), ended.stdout
    if language == "sh":
        assert (tmp_path / "overlay.png").read_bytes().startswith(b"\x89PNG")

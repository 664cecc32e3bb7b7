"""Commands run in this process as a shell would run them, with what they say and the code they end with."""

from __future__ import annotations

import io
import os
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import pytest
from cyclopts import App


@dataclass(frozen=True, slots=True)
class CommandResult:
    """How a command ended."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def output(self) -> str:
        """All that it said."""
        return self.stdout + self.stderr


def invoke(app: App, *arguments: str | Path, columns: int = 200) -> CommandResult:
    """Runs one command line, on a terminal without colours that is `columns` wide."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with (
        patch.dict(os.environ, {"COLUMNS": str(columns), "NO_COLOR": "1"}),
        redirect_stdout(stdout),
        redirect_stderr(stderr),
        pytest.raises(SystemExit) as ended,
    ):
        app([str(argument) for argument in arguments])
    assert isinstance(ended.value.code, int)
    return CommandResult(ended.value.code, stdout.getvalue(), stderr.getvalue())

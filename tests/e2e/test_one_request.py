"""The way of one request: how many files of the service it enters, counted in a process of its own by a profile hook."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MOST_FILES = 30

# A hook must be set before the threads of the server start, so that it sees all of them; it counts one request only.
PROGRAM = """
import json, sys, threading
from pathlib import Path

service = str(Path("service").resolve()) + "/"
entered, counting = set(), False

def hook(frame, event, _argument):
    if counting and event == "call" and frame.f_code.co_filename.startswith(service):
        entered.add(frame.f_code.co_filename.removeprefix(service))

threading.setprofile(hook)

import httpx
from service.settings import Settings
from tests.conftest import running
from tests.photographs import CHELSEA

def explain(url, cache):
    headers = {"Accept": "image/png", "Cache-Control": cache}
    return httpx.post(f"{url}/explain", content=CHELSEA.data, headers=headers, timeout=60)

with running(Settings(request_timeout_s=60, log_format="json")) as server:
    explain(server.url, "no-store")
    counting = True
    answer = explain(server.url, "max-age=0")
    counting = False
assert answer.status_code == 200 and answer.headers["content-type"] == "image/png"
print(json.dumps({"status": answer.status_code, "files": sorted(entered)}))
"""


def test_an_overlay_enters_few_files() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    files = json.loads(done.stdout.splitlines()[-1])["files"]
    # The rooms that any overlay needs, so that a hook that counts nothing does not pass.
    assert {"api/routes.py", "explain/explainer.py", "engine/network.py", "imaging/overlay.py"} <= set(files)
    assert len(files) <= MOST_FILES, files

"""Hostile multipart bodies: each a 4xx, none a 5xx, whatever the chunks."""

from __future__ import annotations

import asyncio

import httpx
import orjson
import pytest
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.api.standins import StandInExplainer, make_app, speak

pytestmark = pytest.mark.anyio

FORM = "multipart/form-data; boundary=b"


def part(headers: str, body: bytes = b"x", boundary: bytes = b"b") -> bytes:
    return b"--" + boundary + b"\r\n" + headers.encode() + b"\r\n\r\n" + body + b"\r\n"


def image(body: bytes = b"image", filename: str = "cat.png") -> bytes:
    return part(f'Content-Disposition: form-data; name="image"; filename="{filename}"\r\nContent-Type: image/png', body)


def text(name: str, body: bytes) -> bytes:
    return part(f'Content-Disposition: form-data; name="{name}"', body)


END = b"--b--\r\n"
MANY = b"".join(text("class_id", b"1") for _ in range(1001))

NAMED = 'Content-Disposition: form-data; name="image"'
NAMED_FILE = NAMED + '; filename="a"'

REFUSED = {
    "no boundary": ("multipart/form-data", image() + END, "multipart_invalid"),
    "empty boundary": ("multipart/form-data; boundary=", image() + END, "multipart_invalid"),
    "boundary of 257": (f"multipart/form-data; boundary={'b' * 257}", image() + END, "multipart_invalid"),
    "boundary of 70 kB": (f"multipart/form-data; boundary={'b' * 70_000}", image() + END, "multipart_invalid"),
    "boundary of dashes": (f"multipart/form-data; boundary={'-' * 70}", b"-" * 5000, "image_missing"),
    "another boundary": ("multipart/form-data; boundary=c", image() + END, "multipart_invalid"),
    "1001 files": (FORM, image() * 1001 + END, "too_many_images"),
    "1001 fields": (FORM, image() + MANY + END, "multipart_invalid"),
    "a field of 2 MB": (FORM, image() + text("method", b"a" * 2_000_000) + END, "multipart_invalid"),
    "9 headers": (FORM, part(NAMED_FILE + "\r\nX-A: b" * 9) + END, "multipart_invalid"),
    "a header of 64 kB": (FORM, part(NAMED_FILE + "; b=" + "a" * 65_536) + END, "multipart_invalid"),
    "header never ends": (FORM, b"--b\r\nContent-Disposition: form-data", "multipart_invalid"),
    "no name": (FORM, part('Content-Disposition: form-data; filename="a"') + END, "multipart_invalid"),
    "no disposition": (FORM, part("Content-Type: image/png") + END, "multipart_invalid"),
    "cut in the file": (FORM, image()[:-6], "multipart_invalid"),
    "cut before the last boundary": (FORM, image(), "multipart_invalid"),
    "cut in an option": (FORM, image() + text("alpha", b"0.5")[:-4], "multipart_invalid"),
    "nothing": (FORM, b"", "multipart_invalid"),
    "no parts": (FORM, END, "image_missing"),
    "options only": (FORM, text("alpha", b"0.5") + END, "image_missing"),
    "image as text": (FORM, text("image", b"cat.jpg") + END, "image_missing"),
    "image as long text": (FORM, text("image", b"a" * 2_000_000) + END, "image_missing"),
    "file without file name": (FORM, part(NAMED + "\r\nContent-Type: image/png") + END, "image_missing"),
    "another file field": (FORM, part('Content-Disposition: form-data; name="photo"; filename="a"') + END, "parameter_invalid"),
    "unknown option": (FORM, image() + text("alpa", b"1") + END, "parameter_invalid"),
    "scalar twice": (FORM, image() + text("alpha", b"1") * 2 + END, "parameter_invalid"),
    "charset idna": (FORM + "; charset=idna", image() + text("method", b"\xff.\xff") + END, "multipart_invalid"),
    "charset with NUL": (FORM + "; charset=a\0b", image() + END, "multipart_invalid"),
    "charset undefined": (FORM + '; charset="undefined"', image() + END, "multipart_invalid"),
}  # fmt: skip

TAKEN = {
    "preamble": (FORM, b"\r\n" * 1000 + image() + END),
    "epilogue": (FORM, image() + END + b"\r\n" * 100_000),
    "path as file name": (FORM, image(filename="../../etc/passwd") + END),
    "long file name": (FORM, image(filename="a" * 2000) + END),
    "odd file name": (FORM, image(filename="\x00%0d%0a") + END),
    "utf-8": (FORM + "; charset=UTF-8", image() + END),
    "nested multipart": (FORM, part(NAMED_FILE + "\r\nContent-Type: multipart/mixed; boundary=c", b"image") + END),
}  # fmt: skip


@pytest.mark.parametrize("step", [7, 1 << 20], ids=["small chunks", "one chunk"])
@pytest.mark.parametrize("name", REFUSED)
async def test_refused(app: FastAPI, explainer: StandInExplainer, name: str, step: int) -> None:
    kind, body, code = REFUSED[name]
    step = max(step, len(body) // 2000)
    chunks = [body[start : start + step] for start in range(0, len(body), step)]
    reply = await speak(app, chunks, headers={"Content-Type": kind})
    assert orjson.loads(reply.body)["code"] == code
    assert reply.status is not None
    assert 400 <= reply.status < 500
    assert explainer.calls == []


@pytest.mark.parametrize("name", TAKEN)
async def test_taken(app: FastAPI, explainer: StandInExplainer, name: str) -> None:
    kind, body = TAKEN[name]
    reply = await speak(app, [body], headers={"Content-Type": kind})
    assert reply.status == 200
    assert explainer.subjects[0].data == b"image"


async def test_nothing_touches_the_disk(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_disk(*args: object, **kwargs: object) -> None:
        raise AssertionError("a temporary file was made")

    monkeypatch.setattr("tempfile.TemporaryFile", no_disk)
    response = await client.post("/explain", files={"image": bytes(5_000_000)})
    assert response.status_code == 200


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    where=st.integers(0, 400),
    splice=st.binary(max_size=20),
    cut=st.integers(0, 20),
    kind=st.sampled_from([FORM, "multipart/form-data; boundary=b; charset=latin-1", 'multipart/form-data; boundary="b'])
    | st.text(st.characters(max_codepoint=255, blacklist_characters="\r\n"), max_size=40).map(
        lambda tail: "multipart/form-data;" + tail
    ),
)
def test_mutated_forms_never_fail_us(where: int, splice: bytes, cut: int, kind: str) -> None:
    body = image() + text("alpha", b"0.5") + text("class_name", "élan".encode()) + END
    mutated = body[:where] + splice + body[where + cut :]
    reply = asyncio.run(speak(make_app(StandInExplainer()), [mutated], headers={"Content-Type": kind}))
    assert reply.status is not None
    assert reply.status < 500

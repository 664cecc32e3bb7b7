"""Hostile multipart bodies: each a 4xx, none a 5xx, whatever the chunks; and where exactly the limits are."""

from __future__ import annotations

import asyncio
import gc
import time
import tracemalloc
from collections.abc import AsyncGenerator, Iterable

import httpx
import orjson
import pytest
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.datastructures import Headers

from service.api.multipart import MAX_FIELD_BYTES, MAX_FIELDS, MAX_HEADER_BYTES, MAX_HEADERS, Form, read_form
from service.errors import ImageMissing, MultipartInvalid, RequestError, TooManyImages
from tests.api.stand_ins import StandInExplainer, make_app, speak

pytestmark = pytest.mark.anyio

FORM = "multipart/form-data; boundary=b"


def part(headers: str, body: bytes = b"x", boundary: bytes = b"b") -> bytes:
    return b"--" + boundary + b"\r\n" + headers.encode() + b"\r\n\r\n" + body + b"\r\n"


def image(body: bytes = b"pixels", filename: str = "cat.png") -> bytes:
    return part(f'Content-Disposition: form-data; name="image"; filename="{filename}"\r\nContent-Type: image/png', body)


def text(name: str, body: bytes) -> bytes:
    return part(f'Content-Disposition: form-data; name="{name}"', body)


def ending(boundary: str) -> bytes:
    return f"--{boundary}--\r\n".encode()


END = ending("b")
LONG = "b" * 256
MANY = b"".join(text("class_id", b"1") for _ in range(1001))

NAMED = 'Content-Disposition: form-data; name="image"'
NAMED_FILE = NAMED + '; filename="a"'
MORE_HEADERS = "\r\nX-A: b"


def long_header(size: int) -> str:
    """One more header, whose line takes `size` bytes without its end."""
    return "\r\nX-A: " + "b" * (size - len("X-A: "))


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
    "9 headers": (FORM, part(NAMED_FILE + MORE_HEADERS * 8) + END, "multipart_invalid"),
    "thousands of headers": (FORM, part(NAMED_FILE + MORE_HEADERS * 9999) + END, "multipart_invalid"),
    "a header line one byte too long": (FORM, part(NAMED_FILE + long_header(4225)) + END, "multipart_invalid"),
    "a long header name": (FORM, part(NAMED_FILE + "\r\n" + "A" * 4225 + ": b") + END, "multipart_invalid"),
    "many spaces before a header's value": (FORM, part(NAMED_FILE + "\r\nX-A:" + " " * 4225) + END, "multipart_invalid"),
    "NUL in a header name": (FORM, part(NAMED_FILE + "\r\nX\0A: b") + END, "multipart_invalid"),
    "space in a header name": (FORM, part(NAMED_FILE + "\r\nX-A : b") + END, "multipart_invalid"),
    "accent in a header name": (FORM, part(NAMED_FILE + "\r\nÉ: b") + END, "multipart_invalid"),
    "header without name": (FORM, part(NAMED_FILE + "\r\n: b") + END, "multipart_invalid"),
    "header without colon": (FORM, part(NAMED_FILE + "\r\nX-A") + END, "multipart_invalid"),
    "folded header": (FORM, part(NAMED + ';\r\n filename="a"') + END, "multipart_invalid"),
    "CR alone in a header": (FORM, part(NAMED_FILE + "\r\nX-A: a\rb") + END, "multipart_invalid"),
    "no headers": (FORM, b"--b\r\n\r\nx\r\n" + END, "multipart_invalid"),
    "a header of 64 kB": (FORM, part(NAMED_FILE + "; b=" + "a" * 65_536) + END, "multipart_invalid"),
    "header never ends": (FORM, b"--b\r\nContent-Disposition: form-data", "multipart_invalid"),
    "no name": (FORM, part('Content-Disposition: form-data; filename="a"') + END, "multipart_invalid"),
    "extended name only": (FORM, part("Content-Disposition: form-data; name*=UTF-8''image") + END, "multipart_invalid"),
    "extended file name only": (FORM, part(NAMED + "; filename*=UTF-8''a.png") + END, "image_missing"),
    "empty disposition": (FORM, part("Content-Disposition:") + END, "multipart_invalid"),
    "second disposition without name": (FORM, part(NAMED_FILE + "\r\nContent-Disposition: a") + END, "multipart_invalid"),
    "no disposition": (FORM, part("Content-Type: image/png") + END, "multipart_invalid"),
    "cut in the file": (FORM, image()[:-6], "multipart_invalid"),
    "cut before the last boundary": (FORM, image(), "multipart_invalid"),
    "cut in an option": (FORM, image() + text("alpha", b"0.5")[:-4], "multipart_invalid"),
    "cut in the last boundary": (FORM, image() + END[:-3], "multipart_invalid"),
    "cut in the headers": (FORM, image() + text("alpha", b"0.5")[:30], "multipart_invalid"),
    "text before the first boundary": (FORM, b"a form\r\n" + image() + END, "multipart_invalid"),
    "lines end in LF alone": (FORM, (image() + END).replace(b"\r\n", b"\n"), "multipart_invalid"),
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
    "two charsets": (FORM + "; charset=idna; charset=utf-8", image() + END, "multipart_invalid"),
    "undefined hidden": (FORM + '; charset=";undefined"', image() + text("alpha", b"\xff.\xff") + END, "parameter_invalid"),
    "charset undefined": (FORM + '; charset="undefined"', image() + END, "multipart_invalid"),
}  # fmt: skip

TAKEN = {
    "preamble": (FORM, b"\r\n" * 1000 + image() + END),
    "epilogue": (FORM, image() + END + b"\r\n" * 100_000),
    "path as file name": (FORM, image(filename="../../etc/passwd") + END),
    "long file name": (FORM, image(filename="a" * 2000) + END),
    "odd file name": (FORM, image(filename="\x00%0d%0a") + END),
    "utf-8": (FORM + "; charset=UTF-8", image() + END),
    "8 headers": (FORM, part(NAMED_FILE + MORE_HEADERS * 7, b"pixels") + END),
    "a header line as long as allowed": (FORM, part(NAMED_FILE + long_header(4224), b"pixels") + END),
    "odd bytes in a header's value": (FORM, part(NAMED_FILE + "\r\nX-A: \t\0\n\x7fÉ", b"pixels") + END),
    "header without value": (FORM, part("X-A:\r\n" + NAMED_FILE, b"pixels") + END),
    "headers in capitals": (FORM, part('CONTENT-DISPOSITION: form-data; NAME="image"; FILENAME="a"', b"pixels") + END),
    "names without quotes": (FORM, part("Content-Disposition:form-data;name=image;filename=a", b"pixels") + END),
    "quotes in the file name": (FORM, image(filename='a\\"; name=\\"b')  + END),
    "no file name in the quotes": (FORM, image(filename="") + END),
    "both kinds of file name": (FORM, part(NAMED_FILE + "; filename*=UTF-8''b", b"pixels") + END),
    "two names": (FORM, part('Content-Disposition: form-data; name="a"; name="image"; filename="a"', b"pixels") + END),
    "transfer encoding": (FORM, part(NAMED_FILE + "\r\nContent-Transfer-Encoding: base64", b"pixels") + END),
    "unknown transfer encoding": (FORM, part(NAMED_FILE + "\r\nContent-Transfer-Encoding: x", b"pixels") + END),
    "empty text named image": (FORM, image() + text("image", b"") + END),
    "boundary of 256": (f"multipart/form-data; boundary={LONG}", part(NAMED_FILE, b"pixels", LONG.encode()) + ending(LONG)),
    "boundary in quotes": ('multipart/form-data; boundary="b c"', part(NAMED_FILE, b"pixels", b"b c") + ending("b c")),
    "no line end at the end": (FORM, image() + END[:-2]),
    "nested multipart": (FORM, part(NAMED_FILE + "\r\nContent-Type: multipart/mixed; boundary=c", b"pixels") + END),
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
    assert explainer.images[0].data == b"pixels"


async def read(body: Iterable[bytes], *, kind: str = FORM, max_images: int = 2) -> Form:
    async def stream() -> AsyncGenerator[bytes, None]:
        for chunk in body:
            yield chunk

    return await read_form(Headers({"content-type": kind}), stream(), max_images=max_images)


def in_chunks(body: bytes, size: int) -> list[bytes]:
    return [body[start : start + size] for start in range(0, len(body), size)]


async def test_chunks_make_no_difference() -> None:
    images = (bytes(range(256)), b"\r\n--" + b"\r\n--bc" + b"\r\n--b-\r" + b"\r\n--b\r.")
    body = b"\r\n" + image(images[0]) + text("alpha", b"0.5") + image(images[1]) + text("method", b"") + END + b"epilogue"
    for size in range(1, 100):
        form = await read(in_chunks(body, size))
        assert form == Form((("image", images[0]), ("image", images[1])), (("alpha", "0.5"), ("method", "")))


async def test_the_limits_are_where_they_are_said_to_be() -> None:
    assert (MAX_HEADERS, MAX_HEADER_BYTES) == (8, 4224)
    full = text("a", bytes(MAX_FIELD_BYTES)) + text("b", b"") * (MAX_FIELDS - 1) + image() * 2
    form = await read(in_chunks(full + END, 1 << 16))
    assert (len(form.fields), len(form.files), len(form.fields[0][1])) == (MAX_FIELDS, 2, MAX_FIELD_BYTES)
    refusals: list[tuple[bytes, type[RequestError]]] = [
        (full + text("c", b""), MultipartInvalid),
        (full + text("image", b""), ImageMissing),
        (full + image(), TooManyImages),
        (text("a", bytes(MAX_FIELD_BYTES + 1)), MultipartInvalid),
        (text("file", bytes(MAX_FIELD_BYTES + 1)), ImageMissing),
    ]
    for body, error in refusals:
        for size in (1 << 10, len(body) + 5):
            with pytest.raises(error):
                await read(in_chunks(body + END, size))


async def test_one_file_too_many_is_refused_where_it_begins() -> None:
    headers = image().removesuffix(b"pixels\r\n")

    async def stream() -> AsyncGenerator[bytes, None]:
        yield image() * 2 + headers
        raise AssertionError("the rest is read")

    with pytest.raises(TooManyImages):
        await read_form(Headers({"content-type": FORM}), stream(), max_images=2)


@pytest.mark.parametrize(
    ("charset", "sent", "read_as"),
    [
        ("", "é".encode(), "é"),
        ("", b"\xe9", "é"),  # not UTF-8
        ("; charset=utf8", "é".encode(), "é"),
        ("; charset=US-ASCII", "é".encode(), "Ã©"),
        ("; charset=", "é".encode(), "Ã©"),
    ],
)
async def test_names_and_texts_are_utf_8_or_else_latin_1(charset: str, sent: bytes, read_as: str) -> None:
    headers = b'--b\r\nContent-Disposition: form-data; name="' + sent + b'"\r\n\r\n'
    form = await read([headers + sent + b"\r\n" + END], kind=FORM + charset)
    assert form.fields == ((read_as, read_as),)


@pytest.mark.parametrize("where", ["preamble", "file", "epilogue"])
async def test_the_time_of_tiny_chunks_grows_with_their_number(where: str) -> None:
    async def seconds(count: int) -> float:
        padding = {where: b"\r\n" * (count // 2)}
        body = padding.get("preamble", b"") + image(padding.get("file", b"")) + END + padding.get("epilogue", b"")
        chunks = in_chunks(body, 1)
        started = time.thread_time()
        await read(chunks)
        return time.thread_time() - started

    await seconds(1000)
    assert await seconds(300_000) < 5 * 10 * await seconds(30_000)  # squared it would be 100 times


@pytest.mark.parametrize("end", [b"", b"\r\n--b\r\n: x", b"\r\n" + image() * 20], ids=["cut", "malformed", "too many"])
async def test_what_is_refused_does_not_wait_for_the_garbage_collector(app: FastAPI, end: bytes) -> None:
    """A client that sends nothing but broken bodies must not fill the memory."""
    chunks = [*in_chunks(image(bytes(2_000_000))[:-2], 1 << 16), end]
    headers = {"Content-Type": FORM}
    await speak(app, chunks, headers=headers)
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        for _ in range(3):
            assert (await speak(app, chunks, headers=headers)).status in {400, 422}
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        gc.enable()
    assert peak > 2_000_000
    assert kept < 1_000_000


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

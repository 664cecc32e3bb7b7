"""Three forms, one meaning; and every way to get a form wrong."""

from __future__ import annotations

import base64
from typing import Any

import httpx
import orjson
import pytest

from tests.api.stand_ins import StandInExplainer, client_of, make_app, speak

pytestmark = pytest.mark.anyio

IMAGE = b"\x89PNG\r\n\x1a\n" + bytes(range(256))
B64 = base64.b64encode(IMAGE).decode()


def code(response: httpx.Response) -> tuple[int, str]:
    assert response.headers["content-type"] == "application/problem+json"
    return response.status_code, response.json()["code"]


async def test_three_forms_mean_the_same(client: httpx.AsyncClient, explainer: StandInExplainer) -> None:
    await client.post("/explain", files={"image": IMAGE}, data={"class_id": ["281", "285"], "alpha": "0.25", "overlay": "true"})
    await client.post(
        "/explain?class_id=281&class_id=285&alpha=0.25&overlay=true", content=IMAGE, headers={"Content-Type": "image/png"}
    )
    await client.post("/explain?class_id=281,285&alpha=0.25&overlay=1", content=IMAGE)
    await client.post("/explain", json={"image": B64, "class_id": [281, 285], "alpha": 0.25, "overlay": True})
    await client.post("/explain", json={"images": [{"b64": B64}], "class_id": "281,285", "alpha": 0.25, "overlay": True})
    await client.post(
        "/explain?alpha=0.25", json={"image": f"data:image/png;base64,{B64}", "class_id": [281, 285], "overlay": True}
    )
    images = [call.images for call in explainer.calls]
    options = [call.options for call in explainer.calls]
    assert len(images) == 6
    assert all(one == images[0] for one in images)
    assert all(one == options[0] for one in options)
    assert images[0][0].data == IMAGE
    assert images[0][0].targets.class_id == (281, 285)


async def test_several_files_keep_their_order(client: httpx.AsyncClient, explainer: StandInExplainer) -> None:
    files = [("image", b"one"), ("file", b"two"), ("image", b"three")]
    response = await client.post("/explain", files=files)
    assert response.status_code == 200
    assert [image.data for image in explainer.images] == [b"one", b"two", b"three"]


async def test_class_zero_is_a_class(client: httpx.AsyncClient, explainer: StandInExplainer) -> None:
    for sent in (
        client.post("/explain", files={"image": IMAGE}, data={"class_id": "0"}),
        client.post("/explain?class_id=0", content=IMAGE),
        client.post("/explain", json={"image": B64, "class_id": 0}),
    ):
        assert (await sent).json()["results"][0]["explanations"][0]["class_id"] == 0
        assert explainer.options.class_id == (0,)


async def test_versus_is_an_id_or_a_name(client: httpx.AsyncClient, explainer: StandInExplainer) -> None:
    for given, meant in (("282", 282), ("0", 0), ("tabby", "tabby"), ("n02123159", "n02123159")):
        await client.post("/explain", files={"image": IMAGE}, data={"versus": given})
        assert explainer.options.versus == meant
    await client.post("/explain", json={"image": B64, "versus": 0})
    assert explainer.options.versus == 0


async def test_the_body_wins_over_the_query_string_and_empty_is_not_given(
    client: httpx.AsyncClient, explainer: StandInExplainer
) -> None:
    await client.post(
        "/explain?class_id=1&alpha=0.1&polarity=both", files={"image": IMAGE}, data={"class_id": "2", "alpha": ""}
    )
    assert (explainer.options.class_id, explainer.options.alpha, explainer.options.polarity) == ((2,), 0.1, "both")
    await client.post("/explain?method=", json={"image": B64, "versus": None, "color_map": ""})
    assert explainer.options.method == "gradcam"
    assert explainer.options.versus is None


async def test_an_image_carries_its_own_classes(client: httpx.AsyncClient, explainer: StandInExplainer) -> None:
    images = [
        {"b64": B64},
        {"b64": B64, "class_name": "espresso"},
        {"b64": B64, "versus": 7, "top_k": 2},
        {"b64": B64, "class_id": [0]},
    ]
    await client.post("/explain", json={"images": images, "class_id": [281], "versus": 3})
    targets = [image.targets for image in explainer.images]
    assert [one.class_id for one in targets] == [(281,), (), (281,), (0,)]
    assert [one.class_name for one in targets] == [(), ("espresso",), (), ()]
    assert [one.versus for one in targets] == [3, 3, 7, 3]
    assert [one.top_k for one in targets] == [None, None, 2, None]


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("alpha=2", "alpha: must be at most 1"),
        ("alpha=nan", "alpha: must be a finite number"),
        ("alpha=x", "alpha: must be a number"),
        ("alpha=0.5&alpha=0.6", "alpha: give it once"),
        ("class_id=-1", "class_id: must be at least 0"),
        ("class_id=cat", "class_id: must be an integer"),
        ("class_id=" + "9" * 5000, "class_id: must be a smaller integer"),
        ("top_k=0", "top_k: must be at least 1"),
        ("overlay=perhaps", "overlay: must be true or false"),
        ("polarity=up", "polarity: must be one of positive, negative, both"),
        ("size=4", "size: must be one of original, input, grid or at least 8"),
        ("alfa=1", "alfa: unknown option; did you mean alpha?"),
        ("class_idx=1", "class_idx: unknown option; did you mean class_id?"),
        ("zzz=1", "zzz: unknown option; there are "),
        ("%3Cscript%3E=1", "(a name not shown): unknown option"),
        ("alpha=2&polarity=up", "alpha: must be at most 1"),
        (
            "clip_percent_lowerbound=50&clip_percent_upperbound=40",
            "clip_percent_lowerbound must be below clip_percent_upperbound",
        ),
        ("method=" + "a" * 300, "method: must be a text of at most 256 characters"),
        ("model=other", "model: the address names one already; leave the option out"),
    ],
)
async def test_a_wrong_option_is_named_and_what_it_may_be(client: httpx.AsyncClient, query: str, sentence: str) -> None:
    response = await client.post(f"/models/efficientnet_lite0/explain?{query}", content=IMAGE)
    assert code(response) == (422, "parameter_invalid")
    assert sentence in response.json()["detail"]


async def test_every_wrong_option_is_named(client: httpx.AsyncClient) -> None:
    detail = (await client.post("/explain?alpha=2&polarity=up&nope=1", content=IMAGE)).json()["detail"]
    assert "alpha:" in detail
    assert "polarity:" in detail
    assert "nope:" in detail


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", (400, "json_invalid")),
        (b"{", (400, "json_invalid")),
        (IMAGE, (400, "json_invalid")),  # a raw image under the wrong type
        (b"[]", (400, "json_invalid")),
        (b"null", (400, "json_invalid")),
        (b'"text"', (400, "json_invalid")),
        (b'{"image": NaN}', (400, "json_invalid")),
        (b'{"alpha": Infinity, "image": "aGk="}', (400, "json_invalid")),
        (b'{"class_name": "\\ud800", "image": "aGk="}', (400, "json_invalid")),
        (b'{"class_name": "\xff", "image": "aGk="}', (400, "json_invalid")),
        (b"\xef\xbb\xbf{}", (400, "json_invalid")),
        (b'{"image": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", (400, "json_invalid")),
        (b'{"image": ' + b"[" * 500 + b"]" * 500 + b"}", (422, "image_missing")),
        (b"{}", (422, "image_missing")),
        (b'{"image": null}', (422, "image_missing")),
        (b'{"image": 123}', (422, "image_missing")),
        (b'{"image": []}', (422, "image_missing")),
        (b'{"image": {}}', (422, "image_missing")),
        (b'{"image": ""}', (422, "image_missing")),
        (b'{"images": []}', (422, "image_missing")),
        (b'{"images": {}}', (422, "image_missing")),
        (b'{"images": "aGk="}', (422, "image_missing")),
        (b'{"images": ["aGk="]}', (422, "image_missing")),
        (b'{"images": [{}]}', (422, "image_missing")),
        (b'{"images": [{"b64": 1}]}', (422, "image_missing")),
        (b'{"image": "aGk=", "images": [{"b64": "aGk="}]}', (422, "parameter_invalid")),
        (b'{"images": [{"b64": "aGk=", "alpha": 1}]}', (422, "parameter_invalid")),
        (b'{"images": [{"b64": "aGk=", "class_id": true}]}', (422, "parameter_invalid")),
        (b'{"image": "aGk=", "class_id": true}', (422, "parameter_invalid")),
        (b'{"image": "aGk=", "class_id": 1' + b"0" * 5000 + b"}", (400, "json_invalid")),
        (b'{"image": "aGk=", "class_id": {"a": 1}}', (422, "parameter_invalid")),
        (b'{"image": "aGk=", "class_id": 1.5}', (422, "parameter_invalid")),
        (b'{"image": "aGk=", "layer": [[1]]}', (422, "parameter_invalid")),
        (b'{"image": "aGk=", "alpha": [0.5]}', (422, "parameter_invalid")),
        (b'{"image": "aGk=", "": 1}', (422, "parameter_invalid")),
        (b'{"images": [' + b",".join([b'{"b64": "aGk="}'] * 17) + b"]}", (422, "too_many_images")),
        (b'{"image": "a"}', (400, "base64_invalid")),
        (b'{"image": "aGk"}', (400, "base64_invalid")),
        (b'{"image": "aG k="}', (400, "base64_invalid")),
        (b'{"image": "aGk=\\n"}', (400, "base64_invalid")),
        (b'{"image": "a-_="}', (400, "base64_invalid")),
        (b'{"image": "aGk=aGk="}', (400, "base64_invalid")),
        ('{"image": "é==="}'.encode(), (400, "base64_invalid")),
        (b'{"image": "data:image/png,aGk="}', (400, "base64_invalid")),
        (b'{"image": "data:image/png;base64"}', (400, "base64_invalid")),
        (b'{"image": "http://example.org/cat.jpg"}', (400, "base64_invalid")),
    ],
)
async def test_malformed_json(
    client: httpx.AsyncClient, explainer: StandInExplainer, body: bytes, expected: tuple[int, str]
) -> None:
    response = await client.post("/explain", content=body, headers={"Content-Type": "application/json"})
    assert code(response) == expected
    assert explainer.calls == []


async def test_messages_name_the_image(client: httpx.AsyncClient) -> None:
    response = await client.post("/explain", json={"images": [{"b64": B64}, {"b64": B64, "class_idd": 1}]})
    assert response.json()["detail"] == "images[1].class_idd: unknown option; did you mean class_id?"
    response = await client.post("/explain", json={"images": [{"b64": B64}, {"b64": "?"}]})
    assert response.json()["detail"].startswith("images[1].b64: ")


@pytest.mark.parametrize(
    "kind",
    ["text/plain", "text/html", "video/mp4", "multipart/mixed; boundary=x", "nonsense"],
)
async def test_other_content_types(client: httpx.AsyncClient, kind: str) -> None:
    assert code(await client.post("/explain", content=IMAGE, headers={"Content-Type": kind})) == (
        415,
        "content_type_unsupported",
    )


CURLS = "application/x-www-form-urlencoded"  # what --data-binary sends unless it is told otherwise


@pytest.mark.parametrize("kind", ["image/png", "IMAGE/JPEG", "image/whatever; q=1", "application/octet-stream", "", CURLS])
async def test_content_types_of_a_raw_image(client: httpx.AsyncClient, explainer: StandInExplainer, kind: str) -> None:
    assert (await client.post("/explain", content=IMAGE, headers={"Content-Type": kind})).status_code == 200
    assert explainer.images[0].data == IMAGE


@pytest.mark.parametrize(
    ("encoding", "status"), [("gzip", 415), ("br", 415), ("identity, gzip", 415), ("identity", 200), ("", 200)]
)
async def test_a_compressed_body_is_never_inflated(client: httpx.AsyncClient, encoding: str, status: int) -> None:
    response = await client.post("/explain", content=IMAGE, headers={"Content-Encoding": encoding})
    assert response.status_code == status
    if status != 200:
        assert response.json()["code"] == "content_encoding_unsupported"


async def test_an_empty_body(client: httpx.AsyncClient) -> None:
    assert code(await client.post("/explain")) == (422, "image_missing")


async def test_an_honest_length_over_the_limit_is_refused_unread(explainer: StandInExplainer) -> None:
    app = make_app(explainer, max_body_bytes=4096)
    for length in ("4097", "99999999999999999999999999"):
        reply = await speak(app, [b"x"], headers={"Content-Length": length, "Content-Type": "image/png"})
        assert (reply.status, reply.received) == (413, 0)
        assert reply.headers["connection"] == "close"
        assert orjson.loads(reply.body)["code"] == "payload_too_large"


@pytest.mark.parametrize("kind", ["image/png", "application/json", "multipart/form-data; boundary=b"])
@pytest.mark.parametrize("length", [None, "10"])
async def test_a_body_is_cut_at_the_limit_whatever_its_headers_say(
    explainer: StandInExplainer, kind: str, length: str | None
) -> None:
    app = make_app(explainer, max_body_bytes=4096)
    start = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n' if "multipart" in kind else b""
    headers = {"Content-Type": kind} | ({"Content-Length": length} if length else {})
    reply = await speak(app, [start, *[b"x" * 1024] * 100], headers=headers)
    assert reply.status == 413
    assert reply.received <= 6


async def test_a_body_exactly_at_the_limit_passes(explainer: StandInExplainer) -> None:
    async with client_of(make_app(explainer, max_body_bytes=4096)) as client:
        assert (await client.post("/explain", content=b"x" * 4096)).status_code == 200
        assert code(await client.post("/explain", content=b"x" * 4097)) == (413, "payload_too_large")


async def test_a_body_in_chunks_of_one_byte(client: httpx.AsyncClient, explainer: StandInExplainer) -> None:
    async def drip() -> Any:
        for byte in IMAGE:
            yield bytes([byte])

    assert (await client.post("/explain", content=drip())).status_code == 200
    assert explainer.images[0].data == IMAGE


async def test_too_many_images_in_a_form(explainer: StandInExplainer) -> None:
    async with client_of(make_app(explainer, max_images_per_request=2)) as client:
        assert (await client.post("/explain", files=[("image", b"a")] * 2)).status_code == 200
        assert code(await client.post("/explain", files=[("image", b"a")] * 3)) == (422, "too_many_images")

"""What an image says of itself: written by every encoder, read by Pillow and by us, whatever the labels are."""

import io
import re
from dataclasses import replace
from pathlib import Path
from typing import get_args
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from service.imaging.decode import decode
from service.imaging.encode import encode_image, encode_xmp
from service.imaging.headers import Limits
from service.imaging.provenance import ClassProvenance, Provenance, decode_xmp, read_provenance
from service.vocabulary import ImageMedia

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
MEDIA = get_args(ImageMedia)
HOSTILE = (
    "\"quotes\" and 'more'",
    "a < b & c > d",
    "]]>",
    "cat 🐈‍⬛ é",
    "tab\tline\nreturn\r",
    "&amp;",
    "<!-- -->",
    "[bold]",
    "",
)


def tiger_cat(label: str = "tiger cat", image: int = 1, versus: str | None = None) -> ClassProvenance:
    return ClassProvenance(image=image, class_id=282, label=label, probability=0.393517, versus=versus)


WHOLE = Provenance(
    software="camserve 1.2.3",
    model="efficientnet_lite0",
    version="1",
    digest="sha256:5793",
    method="gradcam",
    polarity="both",
    scale="minmax",
    request_id="a.b-C_1",
    layers=("blocks.5", "bn2"),
    classes=(tiger_cat(), tiger_cat("Egyptian cat", image=2, versus="tabby")),
)
LEAST = Provenance(software="camserve", model="m", version="1", digest="sha256:0")


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


@pytest.mark.parametrize("media", MEDIA)
@pytest.mark.parametrize("provenance", [WHOLE, LEAST], ids=["whole", "least"])
def test_what_is_written_is_read(tmp_path: Path, media: ImageMedia, provenance: Provenance) -> None:
    file = tmp_path / "overlay"
    file.write_bytes(encode_image(PIXELS, media, provenance))
    assert read_provenance(file) == provenance


@pytest.mark.parametrize("media", MEDIA)
def test_pillow_finds_it_and_the_image_is_as_before(media: ImageMedia) -> None:
    plain, described = opened(encode_image(PIXELS, media)), opened(encode_image(PIXELS, media, WHOLE))
    np.testing.assert_array_equal(np.asarray(plain), np.asarray(described))
    assert "xmp" not in plain.info
    assert described.info["xmp"] == encode_xmp(WHOLE)
    if media == "png":
        assert described.info["XML:com.adobe.xmp"] == encode_xmp(WHOLE).decode()


@pytest.mark.parametrize("media", MEDIA)
def test_an_image_that_describes_itself_can_be_explained_again(media: ImageMedia) -> None:
    decoded = decode(encode_image(PIXELS, media, WHOLE), Limits(max_pixels=10_000))
    assert (decoded.width, decoded.height) == (32, 24)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_labels_come_back(text: str) -> None:
    provenance = replace(WHOLE, model=text, layers=(text,), classes=(tiger_cat(text, versus=text),))
    assert decode_xmp(encode_xmp(provenance)) == provenance


@pytest.mark.parametrize("text", ["nul \0 here", "escape \x1b[31m", "lone \ud800", "\ufffe"])
def test_what_xml_cannot_hold_is_replaced(text: str) -> None:
    found = decode_xmp(encode_xmp(replace(WHOLE, classes=(tiger_cat(text),))))
    assert found is not None
    assert found.classes[0].label == re.sub("[\0\x1b\ud800\ufffe]", "\ufffd", text)


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=40))
def test_any_label_makes_a_packet_that_every_format_takes(text: str) -> None:
    packet = encode_xmp(replace(WHOLE, classes=(tiger_cat(text),), request_id=text, layers=(text,)))
    ET.fromstring(packet.decode())
    assert b"\0" not in packet
    assert decode_xmp(packet) is not None


def test_there_is_room_for_the_largest_sheet() -> None:
    classes = tuple(tiger_cat(f"label of class {number}", image=number % 16) for number in range(256))
    found = decode_xmp(encode_xmp(replace(WHOLE, classes=classes)))
    assert found is not None
    assert found.classes == classes
    assert found.omitted == 0


@pytest.mark.parametrize("media", MEDIA)
def test_what_there_is_no_room_for_is_counted(tmp_path: Path, media: ImageMedia) -> None:
    classes = tuple(tiger_cat("&" * 1000) for _ in range(256))
    crowded = replace(WHOLE, classes=classes, layers=("a" * 300,) * 1000)
    file = tmp_path / "sheet"
    file.write_bytes(encode_image(PIXELS, media, crowded))
    found = read_provenance(file)
    assert found is not None
    assert 0 < len(found.classes) < 256
    assert found.omitted == 256 - len(found.classes)
    assert found.classes[0].label == "&" * 256
    assert len(encode_xmp(crowded)) > 63_000


FOREIGN = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">{}</rdf:RDF></x:xmpmeta>'


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        b"no XML",
        b"\xff\xfe",
        FOREIGN.format("").encode(),
        FOREIGN.format('<rdf:Description rdf:about="" model="m"/>').encode(),
        FOREIGN.format('<rdf:Description xmlns:c="urn:camserve:provenance:1#" c:model="m"/>').encode(),
        b'<!DOCTYPE x [<!ENTITY a "aaaa">]>' + encode_xmp(LEAST).replace(b"sha256:0", b"&a;"),
        encode_xmp(WHOLE).replace(b'"282"', b'"many"'),
        encode_xmp(WHOLE)[:-60],
    ],
)
def test_what_we_did_not_write_is_not_ours(packet: bytes) -> None:
    assert decode_xmp(packet) is None


def test_a_file_that_is_no_image_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "plain.png").write_bytes(encode_image(PIXELS, "png"))
    (tmp_path / "cut.png").write_bytes(encode_image(PIXELS, "png", WHOLE)[:100])
    for file in tmp_path.iterdir():
        assert read_provenance(file) is None
    with pytest.raises(FileNotFoundError):
        read_provenance(tmp_path / "nowhere.png")

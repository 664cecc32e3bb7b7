"""What a stranger would see: five real photographs, their classes, and the heat where the thing is."""

from __future__ import annotations

import io

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.conftest import Running
from tests.photographs import ALL, CHELSEA, Photograph


@pytest.mark.parametrize("photo", ALL, ids=lambda photo: photo.path.stem)
def test_the_class_and_where_it_is(server: Running, photo: Photograph) -> None:
    answer = httpx.post(f"{server.url}/explain", content=photo.data, timeout=60).json()["results"][0]
    best, (found,) = answer["predictions"][0], answer["explanations"]
    class_id, label, probability = photo.top
    assert (best["class_id"], best["label"], found["class_id"]) == (class_id, label, class_id)
    assert best["probability"] == pytest.approx(probability, abs=0.02)
    assert (answer["image"]["width"], answer["image"]["height"]) == (photo.width, photo.height)

    heat = array(server, photo.data)
    assert heat.shape == (photo.height, photo.width)
    left, top, right, bottom = photo.thing
    row, column = np.unravel_index(heat.argmax(), heat.shape)
    assert top <= row < bottom
    assert left <= column < right
    assert heat[top:bottom, left:right].mean() > 1.5 * np.delete(heat, np.s_[top:bottom], axis=0).mean()


def test_the_map_lies_in_the_region_and_nowhere_else(server: Running) -> None:
    answer = httpx.post(f"{server.url}/explain", content=CHELSEA.data, timeout=60).json()["results"][0]
    left, top, right, bottom = answer["explanations"][0]["region"]
    assert (left, top, right, bottom) == (94, 19, 357, 281)  # resize 256, centre crop 224 of 451x300
    heat = array(server, CHELSEA.data)
    inside = heat[top:bottom, left:right].copy()
    heat[top:bottom, left:right] = 0
    assert inside.max() > 0.9
    assert not heat.any()


def test_an_absent_class_stays_dark_on_a_shared_scale(server: Running) -> None:
    query = "class_id=281,918&scale="
    shared, alone = (array(server, CHELSEA.data, f"{query}{s}") for s in ("shared", "minmax"))
    assert shared[0].max() > 0.9
    assert shared[1].max() < 0.5
    assert alone[1].max() > 0.9


def test_turning_the_file_turns_nothing(server: Running) -> None:
    upright = Image.open(io.BytesIO(CHELSEA.data))
    sideways, exif = upright.transpose(Image.Transpose.ROTATE_90), Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    file = io.BytesIO()
    sideways.save(file, "PNG", exif=exif)
    maps = [array(server, data) for data in (CHELSEA.data, file.getvalue())]
    np.testing.assert_allclose(maps[0], maps[1], atol=1e-5)


@pytest.mark.parametrize("photo", ALL, ids=lambda photo: photo.path.stem)
def test_a_large_jpeg_is_the_same_drawn_or_in_numbers(server: Running, photo: Photograph) -> None:
    """Only to draw it is it decoded whole."""
    with Image.open(photo.path) as small:
        large = small.convert("RGB").resize((4 * photo.width, 4 * photo.height), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    large.save(file, "JPEG", quality=90)
    drawn = httpx.post(f"{server.url}/explain?format=png", content=file.getvalue(), timeout=60)
    answer = httpx.post(f"{server.url}/predict", content=file.getvalue(), timeout=60).json()["results"][0]
    best = answer["predictions"][0]
    assert Image.open(io.BytesIO(drawn.content)).size == large.size == (answer["image"]["width"], answer["image"]["height"])
    assert drawn.headers["x-explain-class-id"] == str(best["class_id"])
    assert float(drawn.headers["x-explain-probability"]) == pytest.approx(best["probability"], abs=0.02)


@pytest.mark.parametrize(
    ("query", "size"),
    [
        ("", (451, 300)),
        ("size=input", (224, 224)),
        ("size=900", (900, 599)),
        ("size=100&fit=pad", (100, 67)),
        ("fit=squash", (451, 300)),
        ("fit=native", (451, 300)),
        ("overlay_type=none&color_map=viridis", (451, 300)),
        ("overlay_type=mask_black", (451, 300)),
        ("overlay_type=grayscale&alpha=0.3", (451, 300)),
        ("polarity=both", (451, 300)),
        ("polarity=negative&scale=max", (451, 300)),
        ("layer=blocks.5&layer=bn2", (451, 300)),
        ("clip_percent_lowerbound=30&clip_percent_upperbound=90", (451, 300)),
    ],
)
def test_every_way_to_draw(server: Running, query: str, size: tuple[int, int]) -> None:
    response = httpx.post(f"{server.url}/explain?format=png&{query}", content=CHELSEA.data, timeout=60)
    assert response.status_code == 200, response.text
    with Image.open(io.BytesIO(response.content)) as image:
        assert image.size == size
        assert len(set(np.asarray(image)[size[1] // 2, ::7, 0].tolist())) > 5


def array(server: Running, data: bytes, query: str = "") -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    response = httpx.post(f"{server.url}/explain?format=npy&{query}", content=data, timeout=60)
    assert response.status_code == 200, response.text
    maps = np.load(io.BytesIO(response.content), allow_pickle=False)
    assert maps.dtype == np.float32
    return np.asarray(maps, np.float32)

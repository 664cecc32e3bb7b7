"""PNG files that are easy to misread: depths, palettes, transparency, interlacing, ancillary chunks, animation."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tests import image_files as make
from tests.ambiguous_files.base import Odd, Pixels, as_rgb, exact, grey, on_white, ramp_alpha, save_scene, white


def _turned_by_pillow(kind: str, orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return make.save(make.stored(orientation, make.scene()), kind, exif=tags, lossless=True)


def _key(*values: int) -> bytes:
    return make.chunk(b"tRNS", struct.pack(f">{len(values)}H", *values))


def files() -> Iterator[Odd]:
    scene = make.scene()
    wide = scene.astype(np.uint16) * 256 + 7
    for kind in ("PNG", "WEBP"):
        for turn in range(1, 9):
            yield from exact("H38", **{f"{kind}_orientation_{turn}": partial(_turned_by_pillow, kind, turn)})
    yield from exact(
        "H39",
        png_orientation_in_XMP=lambda: make.insert(save_scene("PNG"), make.chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0<x/>")),
    )
    yield from exact(
        "H42", lambda: as_rgb(grey()), png_grey_16=lambda: make.png(grey()[:, :, None].astype(np.uint16) * 256 + 9, 16, 0)
    )
    yield from exact("H43", png_RGB_16=lambda: make.png(wide, 16, 2))
    alpha = ramp_alpha()
    yield from exact("H43", white, png_RGBA_16=lambda: make.png(np.dstack([wide, np.zeros_like(wide[:, :, :1])]), 16, 6))
    yield from exact(
        "H43",
        lambda: as_rgb(grey()),
        png_LA_16=lambda: make.png(np.dstack([grey().astype(np.uint16) * 256, np.full((32, 48), 65535)]), 16, 4),
    )
    yield from _low_depths()
    yield from _palettes()
    yield from exact("H46", white, png_hidden_colours=lambda: make.png(np.dstack([scene, np.zeros((32, 48), np.uint8)]), 8, 6))
    yield Odd("H47", "png RGBA", lambda: make.png(np.dstack([scene, alpha]), 8, 6), partial(on_white, alpha), 0.6)
    yield Odd(
        "H47",
        "png LA",
        lambda: make.png(np.dstack([np.zeros((32, 48), np.uint8), alpha]), 8, 4),
        lambda: as_rgb(255 - alpha),
        0.6,
    )
    yield from exact(
        "H47",
        lambda: as_rgb(np.where(grey() == 90, 255, grey())),
        png_grey_keyed=lambda: make.png(grey()[:, :, None], 8, 0, _key(90)),
    )
    yield from exact("H47", _first_pixel_white, png_RGB_keyed=lambda: make.png(scene, 8, 2, _key(*scene[0, 0])))
    yield from exact("H48", png_interlaced=lambda: make.png(scene, 8, 2, interlace=True))
    yield from exact(
        "H48",
        lambda: as_rgb(grey() >> 7) * 255,
        png_interlaced_1_bit=lambda: make.png(grey()[:, :, None] >> 7, 1, 0, interlace=True),
    )
    yield from exact("H48", lambda: scene[:8, :9], png_interlaced_small=lambda: make.png(wide[:8, :9], 16, 2, interlace=True))
    for kind, body in {
        "gAMA": b"\0\0\x27\x10",
        "cHRM": bytes(32),
        "sRGB": b"\0",
        "cICP": b"\x09\x10\0\1",
        "gAMA_cut": b"\0",
    }.items():
        yield from exact("H49", **{f"png_{kind}": partial(make.insert, save_scene("PNG"), make.chunk(kind[:4].encode(), body))})
    yield from exact("H50", png_corrupt_ICC=lambda: make.insert(save_scene("PNG"), make.chunk(b"iCCP", b"p\0\0garbage")))
    yield from exact("H50", png_ICC_cut=lambda: make.insert(save_scene("PNG"), make.chunk(b"iCCP", b"")))
    frames = [Image.fromarray(white()), Image.fromarray(255 - scene)]
    yield from exact("H51", apng=lambda: save_scene("PNG", save_all=True, append_images=frames))
    yield from exact(
        "H51", apng_default_image=lambda: save_scene("PNG", save_all=True, append_images=frames, default_image=True)
    )


def _low_depths() -> Iterator[Odd]:
    """Grey of 1, 2 and 4 bits, plain and with one level see-through."""
    for depth in (1, 2, 4):
        top = (1 << depth) - 1
        levels = grey()[:, :, None] >> (8 - depth)
        shown = levels[:, :, 0].astype(int) * 255 // top
        write = partial(make.png, levels, depth, 0)
        yield from exact("H44", partial(as_rgb, shown), **{f"png_grey_{depth}": write})
        for key in (0, top):
            keyed = np.where(levels[:, :, 0] == key, 255, shown)
            yield from exact("H47", partial(as_rgb, keyed), **{f"png_grey_{depth}_without_{key}": partial(write, _key(key))})


def _palettes() -> Iterator[Odd]:
    """Palettes of every depth, opaque, with one see-through colour and with two."""
    for depth in (1, 2, 4, 8):
        count = 1 << depth
        palette = np.random.default_rng(depth).integers(0, 256, (count, 3), np.uint8)
        index = grey()[:, :, None] >> (8 - depth)
        write = partial(make.png, index, depth, 3, make.chunk(b"PLTE", palette.tobytes()))
        yield from exact("H44", partial(_painted, index, palette), **{f"png_palette_{depth}": write})
        for name, alpha in {"last": [255] * (count - 1) + [0], "first_two": [0, 0] + [255] * (count - 2)}.items():
            visible = np.where(np.array(alpha)[:, None] == 0, 255, palette).astype(np.uint8)
            clear = partial(write, make.chunk(b"tRNS", bytes(alpha)))
            yield from exact("H45", partial(_painted, index, visible), **{f"png_palette_{depth}_without_{name}": clear})


def _painted(index: NDArray[Any], palette: Pixels) -> Pixels:
    return np.asarray(palette[index[:, :, 0]], np.uint8)


def _first_pixel_white() -> Pixels:
    scene = make.scene().copy()
    scene[(scene == scene[0, 0]).all(axis=2)] = 255
    return scene

"""GIF and WebP files that are easy to misread: palettes, frames smaller than the canvas, animation, alpha."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import cache, partial

import numpy as np
from PIL import Image

from tests import image_files as make
from tests.ambiguous_files.base import LOSSY, Odd, Pixels, as_rgb, exact, grey, on_white, ramp_alpha, save_scene, white


def _quantized() -> Image.Image:
    return Image.fromarray(make.scene()).quantize(64)


def _see_through_gif() -> Image.Image:
    image = _quantized().copy()
    image.paste(image.info.get("transparency", 63), (0, 0, 10, 10))
    return image


def _gif_frame_in_canvas(*, transparent: bool) -> bytes:
    """Frame 0 at (4, 6) of a larger canvas; made by widening the screen of a whole GIF."""
    data = make.save(_see_through_gif(), "GIF", transparency=63) if transparent else make.save(_quantized(), "GIF")
    at = data.index(b",\0\0\0\0\x30\0\x20\0")
    return data[:6] + struct.pack("<HH", 60, 50) + data[10:at] + b"," + struct.pack("<HH", 4, 6) + data[at + 5 :]


def _gif_image(*, transparent: bool) -> Pixels:
    canvas = np.full((50, 60, 3), 255, np.uint8)
    inside = np.asarray(_quantized().convert("RGB")).copy()
    if transparent:
        inside[np.asarray(_see_through_gif()) == 63] = 255
    canvas[6:38, 4:52] = inside
    return canvas


def _webp_frame_in_canvas() -> bytes:
    data = save_scene("WEBP", lossless=True)
    bitstream = data[data.index(b"VP8L") :]
    three = [value.to_bytes(3, "little") for value in (2, 3, 47, 31, 0)]
    frame = make.webp_chunk(b"ANMF", b"".join(three) + b"\0" + bitstream)
    head = make.webp_chunk(b"VP8X", b"\x02\0\0\0" + (59).to_bytes(3, "little") + (49).to_bytes(3, "little"))
    return make.riff(head, make.webp_chunk(b"ANIM", bytes(6)), frame)


def _webp_lossy_alpha() -> bytes:
    return make.save(np.dstack([make.scene(), ramp_alpha()]), "WEBP", quality=95)


def files() -> Iterator[Odd]:
    whole = cache(lambda: np.asarray(_quantized().convert("RGB")))
    for see in (False, True):
        yield from exact(
            "H52",
            partial(_gif_image, transparent=see),
            **{f"gif_frame_in_canvas_{see}": partial(_gif_frame_in_canvas, transparent=see)},
        )
    frames = [Image.fromarray(white())]
    yield from exact("H52", whole, gif_animated=lambda: make.save(_quantized(), "GIF", save_all=True, append_images=frames))
    yield from exact("H53", whole, gif_interlaced=lambda: make.save(_quantized(), "GIF", interlace=1))
    yield from exact("H53", whole, gif_not_interlaced=lambda: make.save(_quantized(), "GIF", interlace=0))
    yield from exact("H53", whole, gif_local_palette=_gif_local_palette)
    yield from exact(
        "H53", lambda: np.full_like(make.scene(), 9), gif_one_colour=lambda: make.save(np.full((32, 48), 9, np.uint8), "GIF")
    )
    yield from exact(
        "H53",
        lambda: as_rgb(grey()),
        gif_without_palette=lambda: _gif_without_palette(make.save(grey(), "GIF", optimize=False)),
    )
    yield from exact("H54", webp_lossless=partial(save_scene, "WEBP", lossless=True))
    yield from exact("H54", webp_animated=lambda: save_scene("WEBP", lossless=True, save_all=True, append_images=frames))
    yield from exact(
        "H54",
        lambda: np.pad(make.scene(), ((6, 12), (4, 8), (0, 0)), constant_values=255),
        webp_frame_in_canvas=_webp_frame_in_canvas,
    )
    yield Odd("H54", "webp lossy", partial(save_scene, "WEBP", quality=95), make.scene, LOSSY)
    yield Odd("H54", "webp lossy alpha", _webp_lossy_alpha, lambda: on_white(ramp_alpha()), LOSSY)
    yield from exact(
        "H54",
        white,
        webp_lossless_hidden=lambda: make.save(np.dstack([make.scene(), np.zeros((32, 48), np.uint8)]), "WEBP", lossless=True),
    )


def _gif_local_palette() -> bytes:
    """The global palette moved into the frame."""
    data = make.save(_quantized(), "GIF")
    size = 3 << ((data[10] & 7) + 1)
    at = data.index(b",\0\0\0\0\x30\0\x20\0")
    flags = bytes([data[at + 9] | 0x80 | data[10] & 7])
    return data[:10] + b"\0" + data[11:13] + data[13 + size : at + 9] + flags + data[13 : 13 + size] + data[at + 10 :]


def _gif_without_palette(data: bytes) -> bytes:
    size = 3 << ((data[10] & 7) + 1)
    return data[:10] + b"\0" + data[11:13] + data[13 + size :]

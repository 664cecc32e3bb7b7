"""Requests as the clients of other servers write them, byte by byte."""

from __future__ import annotations

import base64
import io
import json
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

LENGTH_HEADER = "Inference-Header-Content-Length"


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def decoded(data: bytes) -> NDArray[np.uint8]:
    """A file's pixels, uint8 ``[H, W, 3]``."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def elements(*values: bytes) -> bytes:
    """A tensor of BYTES in binary."""
    return b"".join(struct.pack("<I", len(value)) + value for value in values)


def bytes_input(count: int, size: int, name: str = "image") -> dict[str, Any]:
    return {"name": name, "shape": [count], "datatype": "BYTES", "parameters": {"binary_data_size": size}}


def binary(document: dict[str, Any], *tensors: bytes) -> tuple[bytes, dict[str, str]]:
    """A body with tensors behind its JSON, and the header that says so."""
    head = json.dumps(document).encode()
    return b"".join([head, *tensors]), {LENGTH_HEADER: str(len(head))}


def tensors_of(body: bytes, header: str | None) -> dict[str, NDArray[Any]]:
    """The tensors of an answer, in binary or not; of BYTES the texts or files."""
    length = len(body) if header is None else int(header)
    found: dict[str, NDArray[Any]] = {}
    position = length
    for output in json.loads(body[:length])["outputs"]:
        dtype: Any = {"FP32": np.float32, "INT64": np.int64, "UINT8": np.uint8, "BYTES": object}[output["datatype"]]
        if "data" in output:
            values = np.array(output["data"], dtype)
        else:
            part = body[position : position + output["parameters"]["binary_data_size"]]
            position += len(part)
            values = np.array(_elements(part), object) if dtype is object else np.frombuffer(part, dtype)
        found[output["name"]] = values.reshape(output["shape"])
    assert position == len(body)
    return found


def _elements(part: bytes) -> list[bytes]:
    found: list[bytes] = []
    while part:
        (length,) = struct.unpack_from("<I", part)
        found.append(part[4 : 4 + length])
        part = part[4 + length :]
    return found

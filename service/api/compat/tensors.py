"""Requests and answers of the Open Inference Protocol v2 over HTTP, with its binary extension. Knows no HTTP and no images.

A body is JSON, and behind it, where the header Inference-Header-Content-Length tells where the JSON ends, the bytes of tensors
in the order of `inputs`. Numbers are little-endian; an element of BYTES is its length in four bytes, then so many bytes. Every
length is compared with what is there before anything is made of it.
"""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final

import numpy as np
import orjson
from numpy.typing import NDArray

from service.api.json_body import parse_object
from service.errors import RequestError

MAX_DIMENSIONS: Final = 8
MAX_ID: Final = 256  # characters
ITEM_BYTES: Final = {"UINT8": 1, "INT64": 8}
LENGTH: Final = struct.Struct("<I")


@dataclass(frozen=True, slots=True, kw_only=True)
class InputTensor:
    """One tensor of a request; `content` is its part of the body, or its JSON list."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    content: memoryview | list[Any]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def elements(self) -> list[bytes | str]:
        """The elements of a tensor of BYTES; texts where they came as JSON.

        Raises:
            RequestError: lengths do not add up, or there are other than `shape` says.
        """
        if isinstance(self.content, list):
            listed = _flat(self.content)
            if len(listed) != self.size or not all(isinstance(one, str) for one in listed):
                raise self._refusal("data must be as many texts as shape says")
            return listed
        found: list[bytes | str] = []
        position, end = 0, len(self.content)
        while position < end and len(found) < self.size:
            if position + LENGTH.size > end:
                raise self._refusal("an element ends before its length does")
            (length,) = LENGTH.unpack_from(self.content, position)
            position += LENGTH.size
            if length > end - position:
                raise self._refusal("an element is longer than the bytes that are left")
            found.append(bytes(self.content[position : position + length]))
            position += length
        if position != end or len(found) != self.size:
            raise self._refusal("there are not as many elements as shape says")
        return found

    def array(self) -> NDArray[Any]:
        """The elements of a tensor of UINT8 or INT64, in its shape; of a binary one a view of the body.

        Raises:
            RequestError: there are other than `shape` says, or they are no such numbers.
        """
        if self.size == 0:
            raise self._refusal("there are no elements")
        dtype: type[Any] = np.uint8 if self.datatype == "UINT8" else np.int64
        if isinstance(self.content, memoryview):
            if len(self.content) != self.size * ITEM_BYTES[self.datatype]:
                raise self._refusal("there are not as many bytes as shape and datatype say")
            return np.frombuffer(self.content, np.dtype(dtype).newbyteorder("<")).reshape(self.shape)
        listed = _flat(self.content)
        if len(listed) != self.size:
            raise self._refusal("data must be as many numbers as shape says")
        try:
            # Both refuse what is no integer, or is out of range, where np.array would round or wrap it.
            return np.frombuffer(bytes(listed), np.uint8).reshape(self.shape) if dtype is np.uint8 else self._int64(listed)
        except (TypeError, ValueError, OverflowError, struct.error):
            raise self._refusal(f"data must be numbers of datatype {self.datatype}") from None

    def _int64(self, listed: list[Any]) -> NDArray[Any]:
        return np.frombuffer(struct.pack(f"<{len(listed)}q", *listed), "<i8").reshape(self.shape)

    def _refusal(self, why: str) -> RequestError:
        return RequestError(f"inputs: {self.name}: {why}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputRequest:
    """One tensor that a request names: in binary, and of `scores` the best so many as texts, where it says so."""

    name: str
    binary: bool
    classification: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class InferRequest:
    """A request. `outputs` is empty where it names none."""

    id: str | None
    parameters: dict[str, Any]
    inputs: dict[str, InputTensor]
    outputs: tuple[OutputRequest, ...]
    binary: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputTensor:
    """One tensor of an answer: `parts` are contiguous arrays of its datatype, in order, or the elements of one of BYTES."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    parts: Sequence[NDArray[Any]] | Sequence[bytes]
    binary: bool
    encoded: bool = False  # elements are files, which JSON holds in base64


def parse_request(
    body: bytes, header_length: str | None, inputs: Sequence[tuple[str, tuple[str, ...]]], outputs: Sequence[str]
) -> InferRequest:
    """Reads a request.

    Args:
        body: of the request.
        header_length: Inference-Header-Content-Length, if it came.
        inputs: names of inputs, with the datatypes that each may have.
        outputs: names of outputs.

    Raises:
        JsonInvalid: the JSON is none, or no object.
        RequestError: lengths do not add up, or what is not of the protocol.
    """
    length = _length(header_length, len(body))
    document = parse_object(body[:length])
    known = dict(inputs)
    given = document.get("inputs")
    if not isinstance(given, list) or not 1 <= len(given) <= len(known):
        raise RequestError(f"inputs: must be a list of at most {len(known)} tensors: {', '.join(known)}.")
    rest = memoryview(body)[length:]
    tensors: dict[str, InputTensor] = {}
    for entry in given:
        tensor, rest = _parse_input(entry, known, rest)
        if tensor.name in tensors:
            raise RequestError(f"inputs: {tensor.name} is there twice.")
        tensors[tensor.name] = tensor
    if rest:
        raise RequestError("The body is longer than its JSON and the sizes of its tensors say.")
    identity, parameters = document.get("id"), document.get("parameters") or {}
    if not (identity is None or (isinstance(identity, str) and len(identity) <= MAX_ID)):
        raise RequestError(f"id: must be a text of at most {MAX_ID} characters.")
    if not isinstance(parameters, dict):
        raise RequestError("parameters: must be an object.")
    binary = bool(parameters.pop("binary_data_output", False))
    return InferRequest(
        id=identity or None,
        parameters=parameters,
        inputs=tensors,
        outputs=_parse_outputs(document.get("outputs"), outputs, binary=binary),
        binary=binary,
    )


def encode_answer(document: dict[str, Any], outputs: Sequence[OutputTensor]) -> tuple[bytes, int | None]:
    """The body of an answer.

    Args:
        document: its JSON but for `outputs`.
        outputs: in the order in which they are sent.

    Returns:
        The body and, where tensors follow its JSON in binary, the length of that JSON.
    """
    entries: list[dict[str, Any]] = []
    tail: list[Any] = []
    for tensor in outputs:
        entry: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}
        if tensor.binary:
            parts: list[Any] = _elements(tensor) if tensor.datatype == "BYTES" else list(tensor.parts)
            entry["parameters"] = {"binary_data_size": sum(memoryview(part).nbytes for part in parts)}
            tail += parts
        elif tensor.datatype == "BYTES":
            if tensor.encoded:
                entry["parameters"] = {"content_type": "base64"}
            entry["data"] = [_text(element, encoded=tensor.encoded) for element in tensor.parts]
        else:
            entry["data"] = np.concatenate([np.ravel(part) for part in tensor.parts])
        entries.append(entry)
    head = orjson.dumps(document | {"outputs": entries}, option=orjson.OPT_SERIALIZE_NUMPY)
    return (b"".join([head, *tail]), len(head)) if any(tensor.binary for tensor in outputs) else (head, None)


def tensor_bytes(tensor: OutputTensor) -> bytes:
    """The binary form of a tensor."""
    parts: Sequence[Any] = _elements(tensor) if tensor.datatype == "BYTES" else tensor.parts
    return b"".join(parts)


def _length(header: str | None, total: int) -> int:
    """Where the JSON ends."""
    if header is None:
        return total
    if not (header.isascii() and header.isdigit() and len(header) < 19 and int(header) <= total):
        raise RequestError("Inference-Header-Content-Length must be the length of the JSON, no more than that of the body.")
    return int(header)


def _parse_input(entry: object, known: dict[str, tuple[str, ...]], rest: memoryview) -> tuple[InputTensor, memoryview]:
    """One input, and what of the body is left behind it."""
    name = entry.get("name") if isinstance(entry, dict) else None
    if not isinstance(entry, dict) or not isinstance(name, str) or name not in known:
        raise RequestError(f"inputs: the names of inputs are {', '.join(known)}.")
    datatype, shape = entry.get("datatype"), entry.get("shape")
    if datatype not in known[name]:
        raise RequestError(f"inputs: {name}: datatype must be {' or '.join(known[name])}.")
    if not (
        isinstance(shape, list)
        and 1 <= len(shape) <= MAX_DIMENSIONS
        and all(isinstance(side, int) and not isinstance(side, bool) and 0 <= side < 1 << 31 for side in shape)
    ):
        raise RequestError(f"inputs: {name}: shape must be a list of 1 to {MAX_DIMENSIONS} sizes.")
    parameters, data = entry.get("parameters") or {}, entry.get("data")
    if not isinstance(parameters, dict):
        raise RequestError(f"inputs: {name}: parameters must be an object.")
    size = parameters.get("binary_data_size")
    if (size is None) == (data is None):
        raise RequestError(f"inputs: {name}: give data or binary_data_size.")
    content: memoryview | list[Any]
    if size is not None:
        if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= len(rest):
            raise RequestError(f"inputs: {name}: binary_data_size must be no more than the bytes that are there.")
        content, rest = rest[:size], rest[size:]
    elif isinstance(data, list):
        content = data
    else:
        raise RequestError(f"inputs: {name}: data must be a list.")
    return InputTensor(name=name, datatype=str(datatype), shape=tuple(shape), content=content), rest


def _parse_outputs(given: object, known: Sequence[str], *, binary: bool) -> tuple[OutputRequest, ...]:
    if given is None:
        return ()
    if not isinstance(given, list) or len(given) > len(known):
        raise RequestError(f"outputs: must be a list of at most {len(known)} names.")
    requested: dict[str, OutputRequest] = {}
    for entry in given:
        name = entry.get("name") if isinstance(entry, dict) else None
        if not isinstance(entry, dict) or not isinstance(name, str) or name not in known or name in requested:
            raise RequestError(f"outputs: each once, of {', '.join(known)}.")
        parameters = entry.get("parameters") or {}
        if not isinstance(parameters, dict):
            raise RequestError(f"outputs: {name}: parameters must be an object.")
        count = parameters.get("classification", 0)
        if not isinstance(count, int) or isinstance(count, bool) or count < 0 or (count and name != "scores"):
            raise RequestError("outputs: classification is a number of classes, and of scores only.")
        requested[name] = OutputRequest(name=name, binary=bool(parameters.get("binary_data", binary)), classification=count)
    return tuple(requested.values())


def _flat(data: list[Any]) -> list[Any]:
    """A nested list of at most `MAX_DIMENSIONS` levels, row by row; of lists and other things mixed no more than one level."""
    for _ in range(MAX_DIMENSIONS):
        if not data or not all(isinstance(one, list) for one in data):
            break
        data = list(chain.from_iterable(data))
    return data


def _elements(tensor: OutputTensor) -> list[bytes]:
    return [piece for element in tensor.parts for piece in (LENGTH.pack(len(element)), bytes(element))]


def _text(element: Any, *, encoded: bool) -> str:
    return base64.b64encode(element).decode("ascii") if encoded else bytes(element).decode("utf-8")

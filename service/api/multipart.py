"""The form that browsers, Postman and `curl -F` send: file parts and text fields, in memory. Knows no options and no images.

python-multipart finds the parts and calls a collector for each piece of one. Where it and RFC 7578 leave a choice:

    a part with a file name      is a file, whatever its Content-Type says
    filename*=                   RFC 7578 forbids it; it is no file name
    Content-Transfer-Encoding    deprecated by RFC 7578; the bytes are taken as they are
    the same header twice        the last one counts
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Final

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers

from service.errors import ImageMissing, MultipartInvalid, RequestError, TooManyImages

FILE_FIELDS = ("image", "file")
MAX_FIELDS = 128
MAX_FIELD_BYTES = 64 * 1024
MAX_HEADERS = 8  # of one part
MAX_HEADER_BYTES = 4096 + 128  # of one line
# Python's codecs hold more than character sets, and some of them raise more than UnicodeDecodeError.
CODECS: Final = {"": "latin-1", "us-ascii": "latin-1", "utf-8": "utf-8", "utf8": "utf-8"}


@dataclass(frozen=True, slots=True)
class Form:
    """Files in the order sent, with their field's name, and text fields."""

    files: tuple[tuple[str, bytes], ...]
    fields: tuple[tuple[str, str], ...]


async def read_form(headers: Headers, stream: AsyncGenerator[bytes, None], *, max_images: int) -> Form:
    """Reads a `multipart/form-data` body to its end.

    Args:
        headers: the request's; Content-Type holds the boundary, of at most 256 bytes.
        stream: the body's chunks, already limited.
        max_images: most file parts.

    Raises:
        MultipartInvalid: the body is not what its Content-Type promises, or its text fields are too many or too long.
        TooManyImages: more file parts than allowed; the rest is not read.
        ImageMissing: the image was sent as a text field.
    """
    content_type = headers.get("content-type", "")
    collector = _Collector(_codec(content_type), max_images)
    _, parameters = parse_options_header(content_type)
    if b"boundary" not in parameters:
        raise collector.refusal()
    try:
        parser = MultipartParser(
            parameters[b"boundary"],
            {
                "on_part_begin": collector.begin_part,
                "on_header_field": collector.add_header_name,
                "on_header_value": collector.add_header_value,
                "on_header_end": collector.end_header,
                "on_headers_finished": collector.end_headers,
                "on_part_data": collector.add_data,
                "on_part_end": collector.end_part,
                "on_end": collector.end,
            },
            max_header_count=MAX_HEADERS,
            max_header_size=MAX_HEADER_BYTES,
        )
        async for chunk in stream:
            parser.write(chunk)
    except FormParserError:  # the library's only error; the stream and the collector raise the service's own
        raise collector.refusal() from None
    return collector.form()


@dataclass(slots=True)
class _Part:
    """A part while it is read. Its name is "" until its headers have ended."""

    name: str = ""
    is_file: bool = False
    data: bytearray = field(default_factory=bytearray)  # not a list: a part may come as millions of chunks of one byte


class _Collector:
    """Makes a form of what the parser calls.

    It holds no reference to the parser, for that would be a cycle, and images would stay in memory until the garbage collector
    comes.
    """

    def __init__(self, codec: str, max_images: int) -> None:
        self._codec = codec
        self._max_images = max_images
        self._files: list[tuple[str, bytes]] = []
        self._fields: list[tuple[str, str]] = []
        self._file_count = 0
        self._field_count = 0
        self._part = _Part()
        self._disposition = b""
        self._header_name = bytearray()
        self._header_value = bytearray()
        self._ended = False

    def begin_part(self) -> None:
        self._part = _Part()
        self._disposition = b""

    def add_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def add_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def end_header(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = bytes(self._header_value)
        self._header_name.clear()
        self._header_value.clear()

    def end_headers(self) -> None:
        _, parameters = parse_options_header(self._disposition)
        if b"name" not in parameters:
            raise self.refusal()
        self._part.name = _decode(parameters[b"name"], self._codec)
        if b"filename" in parameters:
            self._part.is_file = True
            self._file_count += 1
            if self._file_count > self._max_images:
                raise TooManyImages(f"At most {self._max_images} images in one request.")
        else:
            self._field_count += 1
            if self._field_count > MAX_FIELDS:
                raise self.refusal()

    def add_data(self, data: bytes, start: int, end: int) -> None:
        part = self._part
        if not part.is_file and len(part.data) + end - start > MAX_FIELD_BYTES:
            raise self.refusal()
        part.data += data[start:end]

    def end_part(self) -> None:
        part = self._part
        if part.is_file:
            self._files.append((part.name, bytes(part.data)))
        else:
            self._fields.append((part.name, _decode(part.data, self._codec)))

    def end(self) -> None:
        self._ended = True

    def form(self) -> Form:
        """What was collected.

        Raises:
            MultipartInvalid: the last boundary did not come.
            ImageMissing: the image was sent as a text field.
        """
        if not self._ended:
            raise MultipartInvalid("The body ends before its last boundary.")
        if any(name in FILE_FIELDS and value for name, value in self._fields):
            raise _image_as_text()
        return Form(tuple(self._files), tuple((name, value) for name, value in self._fields if name not in FILE_FIELDS))

    def refusal(self) -> RequestError:
        """Why nothing more is read. Whoever sends an image as text is told so, for it is the likeliest mistake."""
        if self._part.name in FILE_FIELDS and not self._part.is_file:
            return _image_as_text()
        return MultipartInvalid(
            "The body is not valid multipart/form-data. Let the client set the Content-Type with its boundary, give every part "
            f"a name, and send at most {MAX_FIELDS} text fields of at most {MAX_FIELD_BYTES} bytes."
        )


def _codec(content_type: str) -> str:
    """Of names and text fields; every charset in the header must be one that is known here."""
    codec = "utf-8"
    for parameter in content_type.split(";")[1:]:
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "charset":
            charset = value.strip().strip('"').lower()
            if charset not in CODECS:
                raise MultipartInvalid("Send the text fields in UTF-8.")
            codec = CODECS[charset]
    return codec


def _decode(data: bytes | bytearray, codec: str) -> str:
    try:
        return data.decode(codec)
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _image_as_text() -> ImageMissing:
    return ImageMissing("The image came as a text field. Send it as a file part: curl -F image=@cat.jpg, with the @.")

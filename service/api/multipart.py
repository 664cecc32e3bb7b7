"""The form that browsers, Postman and `curl -F` send: file parts and text fields, in memory. Knows no options and no images."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from service.errors import ImageMissing, MultipartInvalid, TooManyImages

FILE_FIELDS = ("image", "file")
MAX_FIELDS = 128
MAX_FIELD_BYTES = 64 * 1024
CHARSETS = ("", "utf-8", "utf8", "us-ascii")


@dataclass(frozen=True, slots=True)
class Form:
    """Files in the order sent, with their field's name, and text fields."""

    files: tuple[tuple[str, bytes], ...]
    fields: tuple[tuple[str, str], ...]


class _Parser(MultiPartParser):
    """Starlette's parser, which never touches the disk and notices a body that stops before its last boundary."""

    spool_max_size = sys.maxsize  # the body is limited already, and rolling over to a file would block the event loop

    def __init__(self, headers: Headers, stream: AsyncGenerator[bytes, None], *, max_files: int) -> None:
        super().__init__(headers, stream, max_files=max_files, max_fields=MAX_FIELDS, max_part_size=MAX_FIELD_BYTES)
        self.ended = False

    def on_end(self) -> None:
        self.ended = True

    def close(self) -> None:
        """Frees every file part, also those that the body never finished."""
        for file in self._files_to_close_on_error:
            file.close()

    @property
    def too_many_files(self) -> bool:
        return self._current_files > self.max_files

    @property
    def stopped_in_image_text(self) -> bool:
        return self._current_part.file is None and self._current_part.field_name in FILE_FIELDS


async def read_form(headers: Headers, stream: AsyncGenerator[bytes, None], *, max_images: int) -> Form:
    """Reads a `multipart/form-data` body to its end.

    Args:
        headers: the request's; Content-Type holds the boundary.
        stream: the body's chunks, already limited.
        max_images: most file parts.

    Raises:
        MultipartInvalid: the body is not what its Content-Type promises.
        TooManyImages: more file parts than allowed; the rest is not read.
        ImageMissing: the image was sent as a text field.
    """
    _check_charset(headers)
    parser = _Parser(headers, stream, max_files=max_images)
    try:
        data = await parser.parse()
    except MultiPartException:
        if parser.too_many_files:
            raise TooManyImages(f"At most {max_images} images in one request.") from None
        if parser.stopped_in_image_text:
            raise _image_as_text() from None
        raise MultipartInvalid(
            "The body is not valid multipart/form-data. Let the client set the Content-Type with its boundary, give every part "
            f"a name, and send at most {MAX_FIELDS} text fields of at most {MAX_FIELD_BYTES} bytes."
        ) from None
    try:
        if not parser.ended:
            raise MultipartInvalid("The body ends before its last boundary.")
        return await _collect(data)
    finally:
        parser.close()


async def _collect(data: FormData) -> Form:
    files: list[tuple[str, bytes]] = []
    fields: list[tuple[str, str]] = []
    for name, value in data.multi_items():
        if isinstance(value, UploadFile):
            files.append((name, await value.read()))
        elif name not in FILE_FIELDS:
            fields.append((name, value))
        elif value:
            raise _image_as_text()
    return Form(tuple(files), tuple(fields))


def _check_charset(headers: Headers) -> None:
    # Python's codecs hold more than character sets, and some of them raise more than UnicodeDecodeError.
    for parameter in headers.get("content-type", "").split(";")[1:]:
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "charset" and value.strip().strip('"').lower() not in CHARSETS:
            raise MultipartInvalid("Send the text fields in UTF-8.")


def _image_as_text() -> ImageMissing:
    return ImageMissing("The image came as a text field. Send it as a file part: curl -F image=@cat.jpg, with the @.")

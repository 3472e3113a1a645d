"""Pictures out of a body, in three equal ways: multipart, raw, base64 in JSON.

Each way ends in the same `list[bytes]`, untouched; what they are is told by their first bytes later, never by
a file name or a declared type. Everything here works on a body that is complete and within the limit.
"""

import base64
import binascii
from collections.abc import Sequence
from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from service.problems import PositionedError, RequestError, together

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

RAW_TYPES = frozenset(f"image/{kind}" for kind in ("jpeg", "png", "webp", "bmp", "gif", "tiff"))
_PART = "image"
_MAX_HEADERS = 16  # a part needs two; python-multipart bounds their size


def from_multipart(content_type: str, body: bytes, max_pictures: int) -> list[bytes]:
    """Return the parts named `image`, in order.

    Raises:
        RequestError: a broken body, a part of another name, no part, too many.
    """
    boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
    if not boundary:
        raise RequestError("malformed_multipart", "expected a boundary in Content-Type, got none")
    form = _Form(max_pictures)
    try:
        parser = MultipartParser(boundary, form.callbacks(), max_header_count=_MAX_HEADERS)
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise RequestError("malformed_multipart", "expected parts between boundaries; send it again") from error
    if not form.ended:
        raise RequestError("malformed_multipart", "expected a closing boundary, got the end of the body")
    if not form.pictures:
        raise RequestError("request_invalid", f"expected one or more parts named {_PART}, got none")
    return [bytes(picture) for picture in form.pictures]


def from_base64(texts: Sequence[str], max_pictures: int) -> list[bytes]:
    """Decode base64 texts or data: URIs, in order.

    Raises:
        RequestError: too many, or some are not base64, each with its position.
    """
    _check_count(len(texts), max_pictures)
    errors: list[PositionedError] = []
    pictures: list[bytes] = []
    for position, text in enumerate(texts):
        try:
            pictures.append(_decode_base64(text))
        except ValueError as error:  # binascii.Error is one
            errors.append({"position": position, "code": "malformed_base64", "detail": str(error)})
    if errors:
        raise together(errors, "pictures", len(texts))
    return pictures


def _decode_base64(text: str) -> bytes:
    if text[:5].lower() == "data:":
        head, comma, text = text.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise ValueError("expected data:<type>;base64,<data>, got a data: URI of another kind")
    try:
        return base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise ValueError("expected base64 (RFC 4648 §4, padded), got something else") from None


def _check_count(count: int, max_pictures: int) -> None:
    if count > max_pictures:
        raise RequestError(
            "too_many_images", f"expected at most {max_pictures} pictures, got more; send several requests"
        )


class _Form:
    """Collects what the multipart parser reports: pictures, and whether the form was closed."""

    def __init__(self, max_pictures: int) -> None:
        self.pictures: list[bytearray] = []
        self.ended = False
        self._max_pictures = max_pictures
        self._name = b""
        self._header_name = bytearray()
        self._header_value = bytearray()

    def callbacks(self) -> "MultipartCallbacks":
        """Return what MultipartParser wants to be given."""
        return {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._header_name.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._header_value.extend(data[start:end]),
            "on_header_end": self._header,
            "on_headers_finished": self._headers_finished,
            "on_part_data": lambda data, start, end: self.pictures[-1].extend(data[start:end]),
            "on_end": self._end,
        }

    def _begin(self) -> None:
        self._name = b""

    def _header(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._name = parse_options_header(bytes(self._header_value))[1].get(b"name", b"")
        self._header_name.clear()
        self._header_value.clear()

    def _headers_finished(self) -> None:
        if self._name != _PART.encode():
            raise RequestError(
                "request_invalid", f"expected parts named {_PART} only, got another; options are query parameters"
            )
        _check_count(len(self.pictures) + 1, self._max_pictures)
        self.pictures.append(bytearray())

    def _end(self) -> None:
        self.ended = True

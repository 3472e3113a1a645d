"""Errors to answers: one table, and the shape every refusal has (RFC 9457).

    LookalikeError.code, or a code of the service itself  →  status and title

The status belongs to the code, so a client may match either. Sentences never repeat what the client sent
beyond a name and a number, and a bug shows its request id only: the traceback goes to the log.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple, NotRequired, TypedDict

import orjson
from starlette.responses import Response

from index.errors import LookalikeError

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 1  # what a refusal for lack of room or readiness advises, in seconds


class Kind(NamedTuple):
    """How one code is answered."""

    status: int
    title: str


PROBLEMS: dict[str, Kind] = {
    "malformed_json": Kind(400, "The body is not JSON"),
    "malformed_multipart": Kind(400, "The multipart body is broken"),
    "malformed_base64": Kind(400, "A picture is not base64"),
    "malformed_npy": Kind(400, "The body is not a .npy file"),
    "bad_request": Kind(400, "The request is malformed"),
    "key_missing": Kind(401, "A key is needed"),
    "key_wrong": Kind(401, "The key is not known"),
    "key_insufficient": Kind(403, "The key does not allow this"),
    "not_found": Kind(404, "There is nothing here"),
    "item_not_found": Kind(404, "No such item"),
    "thumbnail_not_found": Kind(404, "No such picture"),
    "method_not_allowed": Kind(405, "This path has other methods"),
    "not_acceptable": Kind(406, "No such representation"),
    "request_timeout": Kind(408, "The body came too slowly"),
    "bank_has_no_labels": Kind(409, "The bank has no labels"),
    "body_too_large": Kind(413, "The body is too large"),
    "too_many_images": Kind(413, "Too many pictures"),
    "image_too_large": Kind(413, "The picture is too large"),
    "unsupported_media_type": Kind(415, "The body's type is not accepted"),
    "unsupported_encoding": Kind(415, "The body's encoding is not accepted"),
    "image_unknown_format": Kind(415, "Not a picture of an accepted format"),
    "host_not_allowed": Kind(421, "The Host is not ours"),
    "request_invalid": Kind(422, "The request does not fit the interface"),
    "image_invalid": Kind(422, "A picture cannot be used"),
    "image_extreme_shape": Kind(422, "The picture is too small or too elongated"),
    "image_decode_failed": Kind(422, "The picture is truncated or corrupt"),
    "vector_invalid": Kind(422, "A vector cannot be used"),
    "filter_invalid": Kind(422, "The filter cannot be understood"),
    "parameter_invalid": Kind(422, "A parameter is outside its range"),
    "invalid_input": Kind(422, "The input cannot be used"),
    "head_too_large": Kind(431, "The path or the headers are too large"),
    "overloaded": Kind(429, "Too much to do at the moment"),
    "internal_error": Kind(500, "A fault of the service"),
    "not_ready": Kind(503, "Not ready"),
    "deadline_exceeded": Kind(504, "The deadline passed"),
    "storage_full": Kind(507, "The disk is full"),
}
HEADERS: dict[str, dict[str, str]] = {
    "key_missing": {"WWW-Authenticate": "Bearer"},
    "key_wrong": {"WWW-Authenticate": 'Bearer error="invalid_token"'},
    "overloaded": {"Retry-After": str(RETRY_AFTER_S)},
    "not_ready": {"Retry-After": str(RETRY_AFTER_S)},
}


class PositionedError(TypedDict):
    """What is wrong with one of several pictures, vectors or ids."""

    position: int
    code: str
    detail: str


class ProblemDocument(TypedDict):
    """The body of every refusal."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str
    errors: NotRequired[list[PositionedError]]


class RequestError(Exception):
    """The service refuses a request, by a code of the table and a sentence."""

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        errors: Iterable[PositionedError] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.errors = list(errors)
        self.headers = dict(headers or {})


def code_of(error: LookalikeError) -> str | None:
    """Return the table's code for an error of the index: its own, or its nearest ancestor's there."""
    for kind in type(error).__mro__:
        if (code := getattr(kind, "code", None)) in PROBLEMS:
            return str(code)
    return None


def as_request_error(error: LookalikeError) -> RequestError:
    """Translate an error of the index; one that no input can cause (a damaged bank, say) is raised again."""
    code = code_of(error)
    if code is None:
        raise error
    return RequestError(code, str(error))


def together(errors: list[PositionedError], what: str, total: int) -> RequestError:
    """Return one refusal for several faulty parts: their own code where they agree, else `image_invalid`."""
    codes = {error["code"] for error in errors}
    code = codes.pop() if len(codes) == 1 else "image_invalid"
    first = errors[0]
    if total == 1:
        return RequestError(code, first["detail"])
    where = f"{len(errors)} of {total} {what} cannot be used; the first, at position {first['position']}"
    detail = f"{where}: {first['detail']}"
    return RequestError(code, detail, errors=errors)


def response(error: RequestError, request_id: str) -> Response:
    """Return the problem document of a refusal."""
    kind = PROBLEMS[error.code]
    document = ProblemDocument(
        type=f"urn:lookalike:problem:{error.code}",
        title=kind.title,
        status=kind.status,
        detail=error.detail,
        code=error.code,
        request_id=request_id,
    )
    if error.errors:
        document["errors"] = error.errors
    headers = HEADERS.get(error.code, {}) | error.headers
    return Response(orjson.dumps(document), kind.status, headers=headers, media_type=MEDIA_TYPE)

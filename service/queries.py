"""A request to a question: its pictures, vectors or ids, and its options.

    multipart, raw picture, .npy    options are query parameters
    JSON                            options are fields beside images, vectors or ids

The body is read once, on the event loop; whatever parses it runs in the engine's pool.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.datastructures import QueryParams
from starlette.requests import Request

from index.knn import Vectors
from service import pictures, vectors
from service.engine import Engine
from service.negotiation import JSON
from service.problems import RequestError
from service.settings import Settings

MULTIPART = "multipart/form-data"
_LISTS = frozenset({"include"})  # options that may come more than once, or comma-separated

Options = TypeVar("Options", bound=BaseModel)


@dataclass(frozen=True)
class Asked(Generic[Options]):
    """What one request asks; exactly one of pictures, vectors and ids is there.

    Attributes:
        options: validated; the request model itself when the body was JSON.
        pictures: encoded, as they came.
        vectors: rows of unit length, float32 (B, D).
        ids: of items of the bank.
    """

    options: Options
    pictures: Sequence[bytes] | None = None
    vectors: Vectors | None = None
    ids: Sequence[str] | None = None

    def __len__(self) -> int:
        """How many queries."""
        return len(self.pictures or self.ids or (() if self.vectors is None else self.vectors))


async def read(
    request: Request, engine: Engine, options: type[Options], body_model: type[Options], *, dim: int | None = None
) -> Asked[Options]:
    """Read one request.

    Args:
        request: its body is awaited here.
        engine: whose pool parses.
        options: the model of the options as query parameters.
        body_model: the model of the JSON body, a subclass of `options`.
        dim: the dimension of query vectors; None where only pictures are asked for.

    Raises:
        RequestError, LookalikeError: anything in it does not fit.
    """
    content_type = request.headers.get("content-type", "")
    media = content_type.partition(";")[0].strip().lower()
    accepted = {JSON, MULTIPART, *pictures.RAW_TYPES} | ({vectors.NPY} if dim is not None else set())
    if media not in accepted:
        raise RequestError(
            "unsupported_media_type", f"expected Content-Type to be one of {', '.join(sorted(accepted))}"
        )
    parameters = request.query_params
    body = await request.body()
    settings = engine.settings
    if media == JSON:
        if parameters:
            raise RequestError(
                "request_invalid", "expected the options as fields of the JSON body, got query parameters"
            )
        return await engine.run(_from_json, body, body_model, settings, dim)
    asked = from_parameters(parameters, options)
    if media == MULTIPART:
        found = await engine.run(pictures.from_multipart, content_type, body, settings.max_pictures)
        return Asked(asked, pictures=found)
    if media == vectors.NPY and dim is not None:
        rows = await engine.run(vectors.from_npy, body, dim)
        _check_count(len(rows), settings.max_queries)
        return Asked(asked, vectors=rows)
    return Asked(asked, pictures=[body])


def _from_json(body: bytes, model: type[Options], settings: Settings, dim: int | None) -> Asked[Options]:
    try:
        asked = model.model_validate_json(body, strict=True)
    except ValidationError as error:
        raise _refusal(error) from None
    images, rows, ids = (getattr(asked, name, None) for name in ("images", "vectors", "ids"))
    if sum(part is not None for part in (images, rows, ids)) != 1:
        raise RequestError("request_invalid", "expected exactly one of images, vectors and ids")
    if images is not None:
        return Asked(asked, pictures=pictures.from_base64(images, settings.max_pictures))
    _check_count(len(rows or ids or ()), settings.max_queries)
    if rows is not None and dim is not None:
        return Asked(asked, vectors=vectors.from_lists(rows, dim))
    return Asked(asked, ids=ids)


def from_parameters(parameters: QueryParams, model: type[Options]) -> Options:
    """Validate query parameters; `filter` is JSON, as in a body."""
    fields: dict[str, Any] = {}
    for name in parameters:
        values = parameters.getlist(name)
        if name in _LISTS:
            fields[name] = [part for value in values for part in value.split(",") if part]
        elif len(values) > 1:
            raise RequestError("request_invalid", f"expected {name[:64]} once, got it {len(values)} times")
        else:
            fields[name] = values[0]
    if "filter" in fields:
        try:
            fields["filter"] = from_json(fields["filter"])
        except ValueError as error:
            raise RequestError("malformed_json", "expected filter to be a JSON object") from error
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise _refusal(error) from None


def _check_count(count: int, most: int) -> None:
    if count > most:
        raise RequestError("request_invalid", f"expected at most {most} queries in one request, got {count}")


def _refusal(error: ValidationError) -> RequestError:
    """Return one sentence for what pydantic found; it names fields and rules, never values."""
    details = error.errors(include_url=False, include_input=False, include_context=False)
    first = details[0]
    if first["type"] == "json_invalid":
        return RequestError("malformed_json", f"expected a JSON object in UTF-8: {first['msg']}")
    where = ".".join(str(part)[:64] for part in first["loc"]) or "the body"
    if first["type"] == "extra_forbidden":
        detail = f"{where}: there is no such field; the interface is described at /docs"
    else:
        detail = f"{where}: {first['msg']}"
    more = f" (and {len(details) - 1} more)" if len(details) > 1 else ""
    return RequestError("request_invalid", detail + more)

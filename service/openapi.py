"""The OpenAPI document: what FastAPI cannot derive, because one route takes a picture in three ways.

The document does not depend on settings or versions, so the committed `docs/openapi.json` is the served one,
byte for byte.
"""

import json
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from service import pictures, problems, schemas, vectors
from service.negotiation import JSON

API_VERSION = "1"
_REF = "#/components/schemas/{model}"
_BODY_REFUSALS = (
    "malformed_json", "malformed_multipart", "malformed_base64", "not_acceptable", "request_timeout",
    "body_too_large", "too_many_images", "image_too_large", "unsupported_media_type", "unsupported_encoding",
    "image_unknown_format", "request_invalid", "image_extreme_shape", "image_decode_failed", "deadline_exceeded",
)  # fmt: skip
_QUERY_REFUSALS = ("malformed_npy", "vector_invalid", "filter_invalid", "parameter_invalid", "item_not_found")
_COMMON_REFUSALS = ("key_missing", "key_wrong", "key_insufficient", "host_not_allowed", "internal_error")
_BUSY_REFUSALS = ("overloaded", "not_ready")
_PICTURE = {"schema": {"type": "string", "format": "binary"}}
_REQUEST_MODELS = (schemas.EmbedRequest, schemas.SearchRequest, schemas.ClassifyRequest)
_ABOUT = """\
Visual search: pictures in, neighbours and a label out. Pictures come as `multipart/form-data` (parts named
`image`), as a raw body, or as base64 in JSON, and give the identical vector. Options are query parameters for
the first two, JSON fields for the third. Limits are told by `GET /info`. Refusals are
`application/problem+json` with a stable `code`. Where keys are configured, send `Authorization: Bearer <key>`.
"""


def question(
    body: type[BaseModel], options: type[BaseModel], answer: type[BaseModel], refusals: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the route arguments that describe a POST with pictures, and with vectors or ids beside them."""
    embeds = answer is schemas.EmbedAnswer
    content: dict[str, Any] = {
        JSON: {"schema": {"$ref": _REF.format(model=body.__name__)}, "examples": _examples(embeds=embeds)},
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["image"],
                "properties": {"image": {"type": "array", "items": {"type": "string", "format": "binary"}}},
            }
        },
        **dict.fromkeys(sorted(pictures.RAW_TYPES), _PICTURE),
    }
    answers = {}
    if embeds:
        answers = dict.fromkeys((vectors.NPY, vectors.RAW), _PICTURE)
    else:
        content[vectors.NPY] = _PICTURE
    codes = (*_BODY_REFUSALS, *(() if embeds else _QUERY_REFUSALS), *refusals, *_BUSY_REFUSALS)
    return {
        "openapi_extra": {
            "parameters": _parameters(options),
            "requestBody": {"required": True, "content": content},
        },
        "responses": {200: _good(answer) | {"content": answers}} | _refusals(codes),
    }


def lookup(
    answer: type[BaseModel] | None,
    refusals: Sequence[str] = (),
    *,
    parameters: type[BaseModel] | None = None,
    media_type: str = JSON,
    busy: bool = True,
) -> dict[str, Any]:
    """Return the route arguments that describe a GET."""
    codes = (*refusals, *((*_BUSY_REFUSALS, "deadline_exceeded") if busy else ()))
    good = _good(answer) if answer else {"description": "A picture.", "content": {media_type: _PICTURE}}
    described: dict[str, Any] = {"responses": {200: good} | _refusals(codes)}
    if parameters is not None:
        described["openapi_extra"] = {"parameters": _parameters(parameters)}
    return described


def _good(answer: type[BaseModel]) -> dict[str, Any]:
    return {"model": answer, "description": answer.__doc__}


def document(app: FastAPI) -> bytes:
    """Return the document of an application as it is served and committed."""
    described = get_openapi(
        title="Lookalike", version=API_VERSION, summary="Visual search", description=_ABOUT, routes=app.routes
    )
    models = [(model, "validation") for model in (*_REQUEST_MODELS, schemas.Problem)]
    _, definitions = models_json_schema(models, ref_template=_REF)  # type: ignore[arg-type]  # a tuple's Literal widens
    components = described.setdefault("components", {})
    named = components.get("schemas", {}) | definitions["$defs"]
    components["schemas"] = {name: named[name] for name in sorted(named) if "ValidationError" not in name}
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    described["security"] = [{}, {"key": []}]
    for operations in described["paths"].values():
        for operation in operations.values():
            _drop_defaults(operation)
    return (json.dumps(described, indent=2, ensure_ascii=False) + "\n").encode()


def _drop_defaults(operation: dict[str, Any]) -> None:
    """Remove what FastAPI adds and this service never answers: its own 422, and JSON where a picture is."""
    if "ValidationError" in str(operation["responses"].get("422")):
        del operation["responses"]["422"]
    content = operation["responses"]["200"]["content"]
    if content.get(JSON) in ({}, {"schema": {}}):
        del content[JSON]


def _refusals(codes: Sequence[str]) -> dict[int | str, dict[str, Any]]:
    by_status: dict[int, list[str]] = {}
    for code in (*codes, *_COMMON_REFUSALS):
        by_status.setdefault(problems.PROBLEMS[code].status, []).append(code)
    schema = {"schema": {"$ref": _REF.format(model="Problem")}}
    return {
        status: {"description": " · ".join(named), "content": {problems.MEDIA_TYPE: schema}}
        for status, named in sorted(by_status.items())
    }


def _parameters(options: type[BaseModel]) -> list[dict[str, Any]]:
    """Return the options as query parameters."""
    described = []
    for name, schema in options.model_json_schema(ref_template=_REF).get("properties", {}).items():
        text = schema.pop("description", "")
        parameter = {"name": name, "in": "query", "required": False, "description": text}
        if name == "filter":
            parameter["content"] = {JSON: {"schema": {"type": "object"}}}
        else:
            parameter["schema"] = schema
        described.append(parameter)
    return described


def _examples(*, embeds: bool) -> dict[str, Any]:
    """Return JSON bodies that work; the picture is one red pixel by two."""
    pixel = "Qk0+AAAAAAAAADYAAAAoAAAAAgAAAAIAAAABABgAAAAAAAgAAAATCwAAEwsAAAAAAAAAAAAA"
    picture = pixel + "AAD/AAD/AAAAAP8AAP8AAA=="
    if embeds:
        return {"picture": {"value": {"images": [picture]}}}
    return {
        "picture": {"value": {"images": [picture], "k": 5}},
        "filtered": {"value": {"images": [picture], "k": 5, "filter": {"label": ["cat", "dog"]}}},
    }

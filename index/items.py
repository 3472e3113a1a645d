"""What the bank knows about a picture, and what it accepts."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from index.errors import ParameterError
from index.filters import storable

MAX_ID = 512  # characters
MAX_URI = 4096
MAX_METADATA = 16 * 1024  # bytes of JSON
MAX_DEPTH = 32  # of nested metadata; SQLite's parser and Python's both have a floor somewhere below
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Item:
    """One picture of the bank, without its vector.

    Attributes:
        id: unique in the bank; any text of 1 to 512 characters without NUL.
        uri: where the picture lies; the bank never opens it.
        label: class name; None when unlabelled.
        metadata: a JSON object of at most 16 KiB.
        sha256: of the picture's bytes, 64 hexadecimal digits.
    """

    id: str
    uri: str | None = None
    label: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    sha256: str | None = None


def metadata_text(item: Item) -> str:
    """Return the JSON text that the catalogue keeps."""
    return json.dumps(dict(item.metadata), ensure_ascii=False, separators=(",", ":"))


def check_items(items: Sequence[Item]) -> None:
    """Refuse what the catalogue could not give back unchanged.

    Raises:
        ParameterError: a malformed id, label, uri, metadata or checksum, or one id twice.
    """
    seen: set[str] = set()
    for item in items:
        _check_text(item.id, "an id", MAX_ID)
        name = f"of item {item.id[:80]!r}"
        if item.id in seen:
            raise ParameterError(f"expected every id once, got {item.id[:80]!r} twice")
        seen.add(item.id)
        if item.label is not None:
            _check_text(item.label, f"the label {name}", MAX_ID)
        if item.uri is not None:
            _check_text(item.uri, f"the uri {name}", MAX_URI)
        if item.sha256 is not None and not _SHA256.fullmatch(item.sha256):
            raise ParameterError(f"expected 64 hexadecimal digits as the sha256 {name}")
        if not isinstance(item.metadata, Mapping):
            raise ParameterError(f"expected a JSON object as the metadata {name}")
        _check_json(item.metadata, f"the metadata {name}", MAX_DEPTH)
        size = len(metadata_text(item).encode())
        if size > MAX_METADATA:
            raise ParameterError(f"expected at most {MAX_METADATA} bytes in the metadata {name}, got {size}")


def _check_text(text: object, what: str, longest: int) -> None:
    if not isinstance(text, str) or not 1 <= len(text) <= longest:
        got = f"{len(text)}" if isinstance(text, str) else type(text).__name__
        raise ParameterError(f"expected 1 to {longest} characters as {what}, got {got}")
    if not storable(text):
        raise ParameterError(f"expected text without NUL and lone surrogates as {what!a}, got {text[:80]!a}")


def _check_json(value: object, what: str, depth: int) -> None:  # noqa: C901, PLR0912 - one case a JSON type
    """Refuse what JSON or SQLite would change: other types, NaN, wide integers, NUL, deep nesting."""
    if not depth:
        raise ParameterError(f"expected {what} to be nested at most {MAX_DEPTH} deep")
    if isinstance(value, Mapping):
        for name, inner in value.items():
            if not isinstance(name, str) or not storable(name):
                raise ParameterError(
                    f"expected text without NUL as the field names of {what}, got {ascii(name)[:80]}"
                )
            _check_json(inner, what, depth - 1)
    elif isinstance(value, list):
        for inner in value:
            _check_json(inner, what, depth - 1)
    elif isinstance(value, str):
        if not storable(value):
            raise ParameterError(f"expected {what} to hold text without NUL and lone surrogates")
    elif isinstance(value, int) and not isinstance(value, bool):
        if not -(2**63) <= value < 2**63:
            raise ParameterError(f"expected {what} to hold integers of at most 64 bits")
    elif isinstance(value, float):
        if not isfinite(value):
            raise ParameterError(f"expected {what} to hold finite numbers, got {value}")
    elif value is not None and not isinstance(value, bool):
        raise ParameterError(f"expected {what} to hold JSON values, got {type(value).__name__}")

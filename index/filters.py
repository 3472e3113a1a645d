"""Filters: which items may be found. Parsed once from JSON, then compiled to SQL with bound parameters.

    {"label": "cat"}                                 one class
    {"label": ["cat", "dog"]}                        any of several
    {"metadata.camera": "x100"}                      a metadata field equals; a list means any of
    {"metadata.year": {"gte": 2020, "lt": 2024}}     a range: gt, gte, lt, lte

Keys are ANDed. What follows "metadata." is the name of one top-level field, taken as it is, dots and quotes
included. Comparisons know their types: 1 equals 1.0, but neither "1" nor true; text is ordered by code point.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, Final

from index.errors import FilterError

Scalar = str | int | float | bool

MAX_CONDITIONS = 32
MAX_VALUES = 256  # over all conditions; both limits bound the work of one query
MAX_TEXT = 4096  # characters of a name or of a value
_RANGES: Final = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}
_FIELD = "metadata."


@dataclass(frozen=True)
class Condition:
    """One metadata field that must hold.

    Attributes:
        name: the field.
        any_of: it equals one of these; or
        bounds: it lies within all of these (operator of SQL, limit).
    """

    name: str
    any_of: tuple[Scalar, ...] = ()
    bounds: tuple[tuple[str, Scalar], ...] = ()


@dataclass(frozen=True)
class Filter:
    """What an item must be to be found.

    Attributes:
        labels: its label is one of these; None when any will do.
        conditions: all of these hold for its metadata.
    """

    labels: tuple[str, ...] | None = None
    conditions: tuple[Condition, ...] = ()

    def sql(self) -> tuple[str, list[Scalar]]:
        """Return the metadata conditions as a WHERE clause over `items`, and its parameters.

        Names and values only ever travel as parameters: no text of a request becomes SQL.
        """
        clauses: list[str] = []
        parameters: list[Scalar] = []
        for condition in self.conditions:
            if condition.any_of:
                tests = [_test("=", value) for value in condition.any_of]
                joined = " OR ".join(sql for sql, _ in tests)
            else:
                tests = [_test(operator, limit) for operator, limit in condition.bounds]
                joined = " AND ".join(sql for sql, _ in tests)
            clauses.append(
                f"EXISTS (SELECT 1 FROM json_each(items.metadata) AS field WHERE field.key = ? AND ({joined}))"  # noqa: S608 - only operators from a fixed table
            )
            parameters += [condition.name, *(parameter for _, parameter in tests)]
        return " AND ".join(clauses) or "1", parameters


def parse_filter(json: Any) -> Filter:  # noqa: ANN401 - the whole point is that it may be anything
    """Read the filter of a request.

    Raises:
        FilterError: not an object, an unknown key or operator, a value of the wrong type, or too much of it.
    """
    if not isinstance(json, dict):
        raise FilterError(f"expected a filter object, got {_kind(json)}")
    if len(json) > MAX_CONDITIONS:
        raise FilterError(f"expected at most {MAX_CONDITIONS} conditions, got {len(json)}")
    labels: tuple[str, ...] | None = None
    conditions: list[Condition] = []
    values = 0
    for key, wanted in json.items():
        if not isinstance(key, str):
            raise FilterError(f"expected names as filter keys, got {_kind(key)}")
        if key == "label":
            labels = tuple(_text(value, "label") for value in _several(wanted, "label"))
            values += len(labels)
        elif key.startswith(_FIELD) and len(key) > len(_FIELD):
            condition = _condition(_text(key.removeprefix(_FIELD), "a field name"), wanted)
            values += len(condition.any_of) + len(condition.bounds)
            conditions.append(condition)
        else:
            raise FilterError(f'expected the filter keys "label" or "metadata.NAME", got {key[:100]!r}')
    if values > MAX_VALUES:
        raise FilterError(f"expected at most {MAX_VALUES} values in a filter, got {values}")
    return Filter(labels, tuple(conditions))


def _condition(name: str, wanted: Any) -> Condition:  # noqa: ANN401 - JSON
    if not isinstance(wanted, dict):
        return Condition(name, any_of=tuple(_scalar(value, name) for value in _several(wanted, name)))
    if not wanted or not all(operator in _RANGES for operator in wanted):
        raise FilterError(f"expected a range of gt, gte, lt, lte for {name[:100]!r}, got {list(wanted)[:5]!r}")
    bounds = tuple((_RANGES[operator], _scalar(limit, name)) for operator, limit in wanted.items())
    if any(isinstance(limit, bool) for _, limit in bounds) or len({isinstance(v, str) for _, v in bounds}) > 1:
        raise FilterError(f"expected the limits of {name[:100]!r} to be all numbers or all text")
    return Condition(name, bounds=bounds)


def _several(wanted: Any, name: str) -> Sequence[Any]:  # noqa: ANN401 - JSON
    if not isinstance(wanted, list):
        return (wanted,)
    if not wanted:
        raise FilterError(f"expected at least one value for {name[:100]!r}, got an empty list")
    return wanted


def _scalar(value: Any, name: str) -> Scalar:  # noqa: ANN401 - JSON
    if isinstance(value, str):
        return _text(value, name)
    if isinstance(value, bool):
        return value
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise FilterError(f"expected a number of at most 64 bits for {name[:100]!r}")
    if isinstance(value, int | float) and isfinite(value):
        return value
    raise FilterError(f"expected text, a finite number, true or false for {name[:100]!r}, got {_kind(value)}")


def _text(value: Any, name: str) -> str:  # noqa: ANN401 - JSON
    if not isinstance(value, str):
        raise FilterError(f"expected text for {name[:100]!r}, got {_kind(value)}")
    if len(value) > MAX_TEXT:
        raise FilterError(f"expected at most {MAX_TEXT} characters for {name[:100]!r}, got {len(value)}")
    if not storable(value):
        raise FilterError(f"expected text without NUL and lone surrogates for {name[:100]!a}")
    return value


def storable(text: str) -> bool:
    """Tell whether SQLite and UTF-8 can hold the text: no NUL (it would end it), no lone surrogate."""
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


def _test(operator: str, value: Scalar) -> tuple[str, Scalar]:
    """Return one comparison of `field` and its parameter; SQLite alone would let true equal 1."""
    if isinstance(value, bool):
        return "field.type = ?", "true" if value else "false"
    if isinstance(value, str):
        return f"(field.type = 'text' AND field.atom {operator} ?)", value
    return f"(field.type IN ('integer', 'real') AND field.atom {operator} ?)", value


def _kind(value: object) -> str:
    names: dict[type, str] = {dict: "an object", list: "a list", str: "text", bool: "true or false"}
    return "null" if value is None else names.get(type(value), type(value).__name__)

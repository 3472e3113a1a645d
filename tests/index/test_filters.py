"""Filters against a brute-force reading of the same JSON."""

import json
import sqlite3

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from index.errors import FilterError
from index.filters import MAX_CONDITIONS, MAX_VALUES, Filter, parse_filter

TEXT = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0"), max_size=6)
NAMES = st.sampled_from(
    ["year", "a.b", 'quo"te', "back\\slash", "", "$", "x'; DROP TABLE items; --", "ümläut", "$.year"]
)
NUMBERS = st.one_of(
    st.integers(-3, 3),
    st.sampled_from([0.5, 1.0, -0.0, 2**53, 2**53 + 1, 2**63 - 1, -(2**63), 0.1 + 0.2, 1e300]),
    st.floats(allow_nan=False, allow_infinity=False),
)
SCALARS = st.one_of(NUMBERS, st.booleans(), st.sampled_from(["1", "true", "", "a", "B"]), TEXT)
METADATA = st.dictionaries(NAMES, st.one_of(SCALARS, st.none(), st.lists(SCALARS, max_size=2)), max_size=4)
RANGES = st.one_of(
    st.dictionaries(st.sampled_from(["gt", "gte", "lt", "lte"]), NUMBERS, min_size=1),
    st.dictionaries(st.sampled_from(["gt", "gte", "lt", "lte"]), TEXT, min_size=1),
)
WANTED = st.one_of(SCALARS, st.lists(SCALARS, min_size=1, max_size=3), RANGES)


def kind(value):
    return (
        "bool" if isinstance(value, bool) else "number" if isinstance(value, int | float) else type(value).__name__
    )


def holds(value, wanted):
    if isinstance(wanted, dict):
        tests = {
            "gt": lambda a, b: a > b,
            "gte": lambda a, b: a >= b,
            "lt": lambda a, b: a < b,
            "lte": lambda a, b: a <= b,
        }
        return all(kind(value) == kind(limit) and tests[name](value, limit) for name, limit in wanted.items())
    options = wanted if isinstance(wanted, list) else [wanted]
    return any(kind(value) == kind(option) and value == option for option in options)


def selected(rows, wanted):
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE items (key INTEGER PRIMARY KEY, metadata TEXT NOT NULL)")
    connection.executemany("INSERT INTO items VALUES (?, ?)", enumerate(json.dumps(row) for row in rows))
    where, parameters = parse_filter(wanted).sql()
    found = [key for (key,) in connection.execute(f"SELECT key FROM items WHERE {where} ORDER BY key", parameters)]
    connection.close()
    return found


@given(rows=st.lists(METADATA, max_size=5), wanted=st.dictionaries(NAMES.filter(bool), WANTED, max_size=3))
@example(rows=[{"year": True}, {"year": 1}, {"year": "1"}, {"year": 1.0}], wanted={"year": 1})
@example(rows=[{"year": "2020-01-01"}, {"year": 2020}], wanted={"year": {"gte": "2019"}})
def test_a_filter_selects_what_reading_it_row_by_row_selects(rows, wanted):
    expected = [
        number
        for number, row in enumerate(rows)
        if all(name in row and holds(row[name], value) for name, value in wanted.items())
    ]
    assert selected(rows, {f"metadata.{name}": value for name, value in wanted.items()}) == expected


def test_no_text_of_a_request_becomes_sql():
    evil = 'x" OR 1=1; --'
    where, parameters = parse_filter({f"metadata.{evil}": evil}).sql()
    assert evil not in where
    assert parameters == [evil, evil]


def test_labels_are_one_or_several_names():
    assert parse_filter({"label": "cat"}) == Filter(labels=("cat",))
    assert parse_filter({"label": ["cat", "dog"]}) == Filter(labels=("cat", "dog"))
    assert parse_filter({}) == Filter()


@pytest.mark.parametrize(
    "wanted",
    [
        None,
        [],
        "label",
        {"colour": "red"},
        {"metadata": 1},
        {"metadata.": 1},
        {"label": 3},
        {"label": []},
        {"label": {"gte": "a"}},
        {"metadata.a": None},
        {"metadata.a": []},
        {"metadata.a": [[1]]},
        {"metadata.a": {}},
        {"metadata.a": {"ge": 1}},
        {"metadata.a": {"gte": [1]}},
        {"metadata.a": {"gte": True}},
        {"metadata.a": {"gte": 1, "lt": "b"}},
        {"metadata.a": float("nan")},
        {"metadata.a": float("inf")},
        {"metadata.a": 2**63},
        {"metadata.a": "nul\0"},
        {"metadata.a": "\ud800"},
        {"metadata.\ud800": "a"},
        {"metadata.a": "x" * 5000},
        {"metadata." + "x" * 5000: 1},
        {f"metadata.{n}": n for n in range(MAX_CONDITIONS + 1)},
        {"metadata.a": list(range(MAX_VALUES + 1))},
        {3: 4},
    ],
)
def test_what_is_no_filter_is_refused_in_one_sentence(wanted):
    with pytest.raises(FilterError, match=r"^expected .+") as caught:
        parse_filter(wanted)
    assert len(str(caught.value)) < 300
    assert "\n" not in str(caught.value)


def test_the_limits_themselves_are_allowed():
    assert len(parse_filter({f"metadata.{n}": n for n in range(MAX_CONDITIONS)}).conditions) == MAX_CONDITIONS
    assert len(parse_filter({"metadata.a": list(range(MAX_VALUES))}).conditions[0].any_of) == MAX_VALUES

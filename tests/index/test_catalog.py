"""The catalogue alone: what goes in comes out, whole or not at all."""

import sqlite3
from contextlib import closing

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from index.catalog import CATALOG, Catalog
from index.errors import BankDamagedError, BankFormatError, ItemNotFoundError, ParameterError, StorageFullError
from index.filters import parse_filter
from index.items import Item, check_items
from index.manifest import EncoderIdentity, Manifest

ENCODER = EncoderIdentity("test", "0" * 64, 2)
TEXT = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0"), min_size=1, max_size=20)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
ITEMS = st.lists(
    st.builds(
        Item,
        id=TEXT,
        uri=st.none() | TEXT,
        label=st.none() | st.sampled_from(["cat", "dog", "ümläut"]),
        metadata=st.dictionaries(TEXT, JSON, max_size=3),
        sha256=st.none() | st.just("a" * 64),
    ),
    max_size=6,
    unique_by=lambda item: item.id,
)


@pytest.fixture
def catalog(tmp_path):
    with closing(Catalog.create(tmp_path, Manifest(ENCODER, "auto", "float32").to_json())) as catalog:
        yield catalog


def insert(catalog, items):
    with catalog.change() as change:
        return change.insert(items, np.ones((len(items), 2), np.float32), catalog.load().class_names).keys


def remove(catalog, ids):
    with catalog.change() as change:
        return change.remove(ids)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@given(items=ITEMS)
def test_items_of_every_kind_of_text_come_back_equal(catalog, items):
    check_items(items)
    keys = insert(catalog, items)
    ids = [item.id for item in items]
    assert catalog.items(keys) == items
    assert catalog.get(ids) == items
    assert catalog.keys_of(ids).tolist() == keys.tolist()
    assert catalog.page(None, 1000, None) == sorted(items, key=lambda item: item.id.encode())
    assert catalog.load().keys.tolist() == keys.tolist()
    remove(catalog, ids)
    assert catalog.items(keys) == [None] * len(items)
    assert not len(catalog.load().keys)


@pytest.mark.parametrize(
    "item",
    [
        Item(""),
        Item("x" * 513),
        Item("nul\0"),
        Item("\ud800"),
        Item("a", label=""),
        Item("a", label="nul\0"),
        Item("a", uri="\udfff"),
        Item("a", sha256="abc"),
        Item("a", metadata={"n": float("nan")}),
        Item("a", metadata={"n": 2**63}),
        Item("a", metadata={"n": "nul\0"}),
        Item("a", metadata={"\ud800": 1}),
        Item("a", metadata={"n": (1, 2)}),
        Item("a", metadata={"n": np.float32(1)}),
        Item("a", metadata={1: 2}),
        Item("a", metadata={"n": "x" * 16 * 1024}),
        Item("a", metadata=["n"]),
        Item("a", metadata={"n": [[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]}),
        Item(3),
    ],
    ids=[f"item{number}" for number in range(19)],
)
def test_what_could_not_come_back_unchanged_is_refused(item):
    with pytest.raises(ParameterError, match=r"^expected .+"):
        check_items([item])


def test_one_id_twice_in_one_call_is_refused():
    with pytest.raises(ParameterError, match="'a' twice"):
        check_items([Item("a"), Item("b"), Item("a")])


def test_keys_are_never_given_again(catalog):
    first = insert(catalog, [Item("a"), Item("b")])
    remove(catalog, ["a", "b"])
    second = insert(catalog, [Item("a"), Item("b")])
    assert min(second) > max(first)
    assert catalog.load().deleted.tolist() == first.tolist()


def test_classes_are_numbered_in_the_order_of_first_use_for_ever(catalog):
    insert(catalog, [Item("a", label="zebra"), Item("b"), Item("c", label="ant"), Item("d", label="zebra")])
    assert catalog.load().class_names == ("zebra", "ant")
    assert catalog.load().labels.tolist() == [0, -1, 1, 0]
    remove(catalog, ["a", "d"])
    insert(catalog, [Item("e", label="bee"), Item("f", label="zebra")])
    assert catalog.load().class_names == ("zebra", "ant", "bee")
    assert catalog.label_counts() == {"zebra": 1, "ant": 1, "bee": 1}


def test_pages_follow_each_other_without_gap_or_overlap(catalog):
    insert(catalog, [Item(f"{number:03}", label="even" if number % 2 == 0 else None) for number in range(25)])
    pages, after = [], None
    while page := catalog.page("even", 4, after):
        pages += page
        after = page[-1].id
    assert [item.id for item in pages] == [f"{number:03}" for number in range(0, 25, 2)]
    assert catalog.page("nobody", 4, None) == []
    with pytest.raises(ParameterError):
        catalog.page(None, 0, None)


def test_an_unknown_id_changes_nothing(catalog):
    insert(catalog, [Item("a"), Item("b")])
    before = catalog.generation()
    with pytest.raises(ItemNotFoundError, match="'nobody'"):
        remove(catalog, ["a", "nobody"])
    with pytest.raises(ItemNotFoundError):
        catalog.get(["a", "\ud800"])
    assert catalog.generation() == before
    assert catalog.known(["a", "b", "nobody", "nul\0", "\ud800"]) == {"a", "b"}


def test_labels_and_metadata_select_together(catalog):
    keys = insert(catalog, [Item(f"{n}", label="ab"[n % 2], metadata={"n": n}) for n in range(10)])
    found = catalog.matching(parse_filter({"metadata.n": {"gte": 4}}), [1])
    assert found.tolist() == keys[[5, 7, 9]].tolist()
    assert catalog.matching(parse_filter({"metadata.n": {"gte": 4}}), []).tolist() == []


def test_a_full_disk_undoes_the_change_and_reading_goes_on(catalog):
    insert(catalog, [Item("a")])
    catalog._database._writer.execute("PRAGMA max_page_count = 1")  # SQLite's own limit: the real error path
    with pytest.raises(StorageFullError, match="full disk"):
        insert(catalog, [Item(f"{n}", metadata={"text": "x" * 5000}) for n in range(100)])
    assert [item.id for item in catalog.page(None, 10, None)] == ["a"]
    catalog._database._writer.execute("PRAGMA max_page_count = 100000")
    insert(catalog, [Item("b")])
    assert catalog.known(["a", "b"]) == {"a", "b"}


@pytest.mark.parametrize(
    "vandalism",
    [
        "UPDATE items SET id = 'c' WHERE id = 'a'",
        "UPDATE items SET uri = NULL",
        "UPDATE items SET label = 1 WHERE label = 0",
        "UPDATE items SET label = 7",
        "UPDATE items SET metadata = replace(metadata, '1', '2')",
        "UPDATE items SET sha256 = NULL",
        "UPDATE items SET key = key + 1000",
    ],
)
def test_a_changed_row_is_noticed_when_it_is_read(catalog, tmp_path, vandalism):
    insert(catalog, [Item("a", "u", "x", {"n": 1}, "0" * 64), Item("b", "u", "y", {"n": 1}, "0" * 64)])
    with closing(sqlite3.connect(tmp_path / CATALOG, isolation_level=None)) as vandal:
        vandal.execute(vandalism)
    with pytest.raises(BankDamagedError, match=r"catalog\.sqlite.*checksum"):
        catalog.page(None, 10, None)


@pytest.mark.parametrize(
    "vandalism",
    [
        "UPDATE journal SET vector = zeroblob(8)",
        "UPDATE journal SET key = key + 1",
        "UPDATE journal SET op = 'delete'",
        "UPDATE journal SET vector = zeroblob(4)",
        "UPDATE state SET value = 'x' WHERE key = 'generation'",
        "UPDATE state SET value = replace(value, 'float32', 'float16') WHERE key = 'manifest'",
        "DELETE FROM state WHERE key = 'manifest'",
        "UPDATE classes SET code = 5",
    ],
)
def test_a_changed_journal_is_noticed_when_it_is_loaded(catalog, tmp_path, vandalism):
    insert(catalog, [Item("a", label="x")])
    with closing(sqlite3.connect(tmp_path / CATALOG, isolation_level=None)) as vandal:
        vandal.execute(vandalism)
    with pytest.raises(BankDamagedError, match=r"catalog\.sqlite"):
        catalog.load()


def test_a_catalogue_of_a_newer_version_is_refused(catalog, tmp_path):
    catalog.close()
    with closing(sqlite3.connect(tmp_path / CATALOG, isolation_level=None)) as future:
        future.execute("UPDATE state SET value = '2' WHERE key = 'format_version'")
    with pytest.raises(BankFormatError, match="got 2; use the newer Lookalike"):
        Catalog.open(tmp_path, read_only=True)


@pytest.mark.parametrize("content", [b"", b"not a database at all" * 300, b"SQLite format 3\0" + bytes(4080)])
def test_a_file_that_is_no_catalogue_is_refused(tmp_path, content):
    (tmp_path / CATALOG).write_bytes(content)
    with pytest.raises(BankDamagedError, match=r"catalog\.sqlite"):
        Catalog.open(tmp_path, read_only=False)

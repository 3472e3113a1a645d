"""The memory bank against a dict and exhaustive search."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from index.compaction import rounded
from index.errors import (
    BankBusyError,
    BankDamagedError,
    BankError,
    BankFormatError,
    BankNotFoundError,
    BankReadOnlyError,
    EncoderMismatchError,
    ItemNotFoundError,
    ParameterError,
    StorageFullError,
    VectorError,
)
from index.filters import parse_filter
from index.knn import normalise, top_k
from index.memory_bank import EncoderIdentity, Item, MemoryBank

DIM = 12
ENCODER = EncoderIdentity("test", "a" * 64, DIM)
KINDS = [(index, store) for index in ("flat", "ivf") for store in ("float32", "float16")]


def vectors_of(seed, count):
    return normalise(np.random.default_rng(seed).standard_normal((count, DIM)))


def items_of(first, last):
    return [
        Item(f"i{n:05}", f"{n}.png", [None, "cat", "dog"][n % 3], {"n": n, "odd": n % 2 == 1}, f"{n:064x}")
        for n in range(first, last)
    ]


@pytest.fixture
def bank(tmp_path):
    with MemoryBank.create(tmp_path / "bank", encoder=ENCODER) as bank:
        yield bank


def ids_of(bank, hits):
    return [[None if item is None else item.id for item in bank.items(keys)] for keys in hits.keys]


def assert_answers_as(bank, truth, queries, k, *, wanted=bool, **options):
    """Compare an exact search with NumPy over `truth`: id → (item, stored vector)."""
    allowed = [(id_, vector) for id_, (item, vector) in truth.items() if wanted(item)]
    hits = bank.search(queries, k, exact=True, **options)
    assert hits.keys.shape == (len(queries), min(k, len(allowed)))
    if allowed:
        found = top_k(queries, np.array([vector for _, vector in allowed]), k)
        np.testing.assert_allclose(hits.similarities, found.similarities, atol=2e-6)
        similarity = {id_: queries @ vector for id_, vector in allowed}
        for row, (ids, values) in enumerate(zip(ids_of(bank, hits), hits.similarities, strict=True)):
            assert len(set(ids)) == len(ids)
            np.testing.assert_allclose([similarity[id_][row] for id_ in ids], values, atol=2e-6)
            names = [None if code < 0 else bank.class_names[code] for code in hits.labels[row]]
            assert names == [truth[id_][0].label for id_ in ids]
    return hits


@pytest.fixture(scope="module", params=KINDS, ids="-".join)
def template(request, tmp_path_factory):
    """A closed bank with two segments, deletions and replacements in both, and additions on top; what it holds."""
    index, store = request.param
    vectors = vectors_of(1, 3000)
    truth = {}

    def remember(items, vectors):
        truth.update(
            zip((item.id for item in items), zip(items, rounded(vectors, store), strict=True), strict=True)
        )

    with MemoryBank.create(tmp_path_factory.mktemp("template") / "bank", encoder=ENCODER, store=store) as bank:
        bank.add(items_of(0, 1500), vectors[:1500])
        remember(items_of(0, 1500), vectors[:1500])
        bank.compact(index)
        bank.add(items_of(1500, 2500), vectors[1500:2500])
        remember(items_of(1500, 2500), vectors[1500:2500])
        bank.delete([f"i{n:05}" for n in range(0, 1700, 5)])
        bank.compact(index, merge=False)
        bank.add(items_of(2500, 2800), vectors[2500:2800])
        remember(items_of(2500, 2800), vectors[2500:2800])
        for n in [*range(0, 1700, 5), 1701, 2600]:
            truth.pop(f"i{n:05}")
        bank.delete(["i01701", "i02600"])
        changed = items_of(1, 2) + items_of(2001, 2002) + items_of(2700, 2701)
        bank.upsert(changed, vectors[2900:2903])
        remember(changed, vectors[2900:2903])
        assert len(bank.manifest.segments) == 2
        assert bank.pending
    return bank.path, truth


@pytest.fixture
def mixed(template, tmp_path):
    shutil.copytree(template[0], tmp_path / "bank")
    with MemoryBank.open(tmp_path / "bank") as bank:
        yield bank, template[1]


def test_a_mixed_bank_answers_as_comparing_everything_does(mixed):
    bank, truth = mixed
    queries = vectors_of(2, 25)
    assert bank.count == len(truth)
    for k in (1, 10):
        assert_answers_as(bank, truth, queries, k)
    assert_answers_as(bank, truth, queries[:2], 5000)
    assert bank.verify() == []


def test_filters_select_before_the_nearest_are_taken(mixed):
    bank, truth = mixed
    queries = vectors_of(3, 8)
    for json_filter, wanted in (
        ({"label": "cat"}, lambda item: item.label == "cat"),
        ({"label": ["cat", "dog", "nobody"]}, lambda item: item.label is not None),
        ({"label": "nobody"}, lambda _: False),
        ({"metadata.odd": True}, lambda item: item.metadata["odd"]),
        ({"metadata.n": {"gte": 2400, "lt": 2600}}, lambda item: 2400 <= item.metadata["n"] < 2600),
        ({"metadata.n": [7, 2001, 2701]}, lambda item: item.metadata["n"] in {7, 2001, 2701}),
        ({"label": "dog", "metadata.n": {"lt": 50}}, lambda item: item.label == "dog" and item.metadata["n"] < 50),
    ):
        assert_answers_as(bank, truth, queries, 15, wanted=wanted, filter=parse_filter(json_filter))
        hits = bank.search(queries, 15, effort=1, filter=parse_filter(json_filter))
        assert hits.keys.shape[1] == min(15, sum(wanted(item) for item, _ in truth.values()))
        assert (hits.keys > 0).all()


def test_the_search_with_the_tuned_effort_finds_nearly_all(mixed):
    bank, _ = mixed
    queries = vectors_of(4, 200)
    exact, tuned = bank.search(queries, 10, exact=True), bank.search(queries, 10)
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(exact.keys, tuned.keys, strict=True)])
    assert recall >= 0.97
    assert bank.manifest.tuning["recall@10"] >= 0.99


def test_a_reopened_bank_answers_to_the_bit_as_before(mixed):
    bank, _ = mixed
    queries = vectors_of(5, 20)
    before, generation, names = bank.search(queries, 10), bank.generation, bank.class_names
    bank.close()
    for read_only in (True, False):
        with MemoryBank.open(bank.path, encoder=ENCODER, read_only=read_only) as again:
            after = again.search(queries, 10)
            assert (after.keys == before.keys).all()
            assert (after.similarities == before.similarities).all()
            assert (again.generation, again.class_names) == (generation, names)
            assert again.verify() == []


def test_a_compaction_changes_no_answer(mixed):
    bank, truth = mixed
    queries = vectors_of(6, 20)
    before = bank.search(queries, 10, exact=True)
    for index in ("flat", "ivf", "auto"):
        bank.compact(index)
        after = bank.search(queries, 10, exact=True)
        assert (after.keys == before.keys).all()
        assert (after.similarities == before.similarities).all()
        assert bank.pending == 0
        assert len(list((bank.path / "segments").iterdir())) == 1
        assert bank.manifest.segments[0].count == bank.count == len(truth)
        assert bank.verify() == []


def test_vectors_come_back_as_they_are_stored(mixed):
    bank, truth = mixed
    ids = list(truth)[::-7]
    assert (bank.vectors(ids) == np.array([truth[id_][1] for id_ in ids])).all()
    with pytest.raises(ItemNotFoundError, match="i01701"):
        bank.vectors(["i00001", "i01701"])


def test_an_excluded_item_is_not_its_own_neighbour(mixed):
    bank, truth = mixed
    ids = ["i00001", None, "unknown", "i02750"]
    queries = bank.vectors(["i00001", "i00001", "i00001", "i02750"])
    found = ids_of(bank, bank.search(queries, 3, exact=True, exclude=ids))
    assert found[1][0] == found[2][0] == "i00001"
    assert found[0] == ids_of(bank, bank.search(queries[:1], 4, exact=True))[0][1:]
    assert "i02750" not in found[3]
    everything = bank.search(queries, 10_000, exclude=ids)
    assert (everything.keys < 0).sum(axis=1).tolist() == [1, 0, 0, 1]
    assert everything.similarities[0, -1] == -np.inf
    assert everything.keys.shape == (4, len(truth))


def test_an_empty_bank_answers_with_nothing(bank):
    assert bank.search(vectors_of(1, 3), 5).keys.shape == (3, 0)
    assert bank.search(np.empty((0, DIM)), 5).keys.shape == (0, 0)
    assert bank.search(vectors_of(1, 3), 5, exclude=["a", None, None], filter=parse_filter({})).keys.shape == (3, 0)
    bank.compact()
    assert (bank.count, bank.class_names, bank.verify()) == (0, (), [])
    bank.add(items_of(0, 2), vectors_of(1, 2))
    assert bank.search(np.empty((0, DIM)), 5).keys.shape == (0, 2)
    bank.delete(["i00000", "i00001"])
    bank.compact()
    assert bank.manifest.segments == ()
    assert bank.search(vectors_of(1, 3), 5).keys.shape == (3, 0)


@pytest.mark.parametrize(
    ("vectors", "match"),
    [
        (np.ones((2, DIM + 1)), "shape"),
        (np.ones(DIM), "shape"),
        (np.ones((3, DIM)), "2 items"),
        (np.vstack([np.ones(DIM), np.full(DIM, np.nan)]), "vector 1"),
        (np.vstack([np.ones(DIM), np.full(DIM, 1e39)]), "vector 1"),
        (np.vstack([np.ones(DIM), np.zeros(DIM)]), "position 1"),
    ],
)
def test_vectors_that_are_no_directions_are_refused_and_nothing_is_added(bank, vectors, match):
    with pytest.raises(VectorError, match=match):
        bank.add(items_of(0, 2), vectors)
    assert (bank.count, bank.generation) == (0, 0)


def test_parameters_out_of_range_are_refused(bank):
    bank.add(items_of(0, 3), vectors_of(1, 3))
    for options in ({"k": 0}, {"k": 1, "effort": 0}, {"k": 1, "exclude": ["a", "b"]}):
        with pytest.raises(ParameterError):
            bank.search(vectors_of(1, 1), **options)
    with pytest.raises(ParameterError, match="first 'i00002'"):
        bank.add(items_of(2, 5), vectors_of(1, 3))
    with pytest.raises(ParameterError, match="twice"):
        bank.upsert(items_of(2, 3) * 2, vectors_of(1, 2))
    with pytest.raises(ParameterError, match="hnsw"):
        bank.compact("hnsw")
    with pytest.raises(ItemNotFoundError):
        bank.delete(["i00000", "nobody"])
    assert (bank.count, bank.generation) == (3, 1)
    assert bank.delete(["i00000", "i00000"]) == 1
    assert bank.delete([]) == 0


def test_store_auto_goes_to_float16_when_the_bank_is_large(bank, monkeypatch):
    monkeypatch.setattr("index.memory_bank.FLOAT16_ABOVE", 50)
    bank.add(items_of(0, 50), vectors_of(1, 50))
    bank.compact()
    assert bank.manifest.precision == "float32"
    bank.add(items_of(50, 60), vectors_of(2, 10))
    bank.compact()
    assert [segment.precision for segment in bank.manifest.segments] == ["float16"]
    bank.add(items_of(60, 70), vectors_of(3, 10))
    assert (bank.vectors(["i00060"]) == rounded(vectors_of(3, 1), "float16")).all()


# --- opening ---------------------------------------------------------------------------------------------------


def test_what_is_no_bank_is_not_found(tmp_path):
    for path in (tmp_path / "nothing", tmp_path):
        for read_only in (True, False):
            with pytest.raises(BankNotFoundError, match="python -m index build"):
                MemoryBank.open(path, read_only=read_only)
    assert list(tmp_path.iterdir()) == []


def test_a_bank_is_made_only_where_nothing_is(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("full", "file"):
        with pytest.raises(ParameterError, match="new or empty folder"):
            MemoryBank.create(tmp_path / name, encoder=ENCODER)
    MemoryBank.create(tmp_path / "new" / "deeper", encoder=ENCODER).close()
    with pytest.raises(ParameterError, match="new or empty folder"):
        MemoryBank.create(tmp_path / "new" / "deeper", encoder=ENCODER)
    with pytest.raises(ParameterError, match="float8"):
        MemoryBank.create(tmp_path / "other", encoder=ENCODER, store="float8")
    assert (tmp_path / "full" / "thesis.txt").read_text() == "mine"


def test_the_vectors_of_another_encoder_are_refused(bank):
    bank.close()
    with pytest.raises(EncoderMismatchError, match=f"{'a' * 64}.*{'b' * 64}.*python -m index build"):
        MemoryBank.open(bank.path, encoder=EncoderIdentity("other", "b" * 64, DIM))
    MemoryBank.open(bank.path, encoder=ENCODER).close()  # the lock was let go


def test_the_second_writer_is_told_who_the_first_is(bank):
    with pytest.raises(BankBusyError, match=f"process {os.getpid()} "):
        MemoryBank.open(bank.path)
    with MemoryBank.open(bank.path, read_only=True) as reader:
        bank.add(items_of(0, 1), vectors_of(1, 1))
        assert reader.count == 0
        for change in (
            lambda: reader.add(items_of(1, 2), vectors_of(1, 1)),
            lambda: reader.delete(["i00000"]),
            reader.compact,
        ):
            with pytest.raises(BankReadOnlyError, match="opened read-only"):
                change()
    bank.close()
    MemoryBank.open(bank.path).close()


def test_a_closed_bank_says_so(bank):
    bank.close()
    bank.close()
    for use in (lambda: bank.search(vectors_of(1, 1), 1), lambda: bank.count, lambda: bank.get([]), bank.compact):
        with pytest.raises(BankError, match="closed"):
            use()


def as_nobody(home, code):
    """Run code as a user who may write nothing in `home` (root may write anywhere); return what it printed."""
    for path in [home, *home.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    prologue = f"""
import mmap, os, tempfile
import numpy as np
from index.memory_bank import EncoderIdentity, Item, MemoryBank
from index.errors import BankReadOnlyError
with tempfile.TemporaryDirectory() as scratch:  # imports what is imported late: the checkout may be unreadable soon
    with MemoryBank.create(scratch, encoder=EncoderIdentity("x", "c" * 64, 8)) as bank:
        bank.add([Item("a"), Item("b")], np.eye(2, 8)); bank.compact()
    with MemoryBank.open(scratch, read_only=True) as bank:
        bank.verify(); bank.search(np.eye(2, 8, dtype=np.float32), 1)
if os.geteuid() == 0: os.setuid(65534)
path = {str(home / "bank")!r}
"""
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", prologue + code]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    for path in [home, *home.rglob("*")]:
        path.chmod(0o755)
    shutil.rmtree(home)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


@pytest.fixture
def open_folder():
    """A folder that other users can reach, which pytest's own cannot."""
    return Path(tempfile.mkdtemp())


def test_a_reader_needs_no_writable_folder(open_folder):
    with MemoryBank.create(open_folder / "bank", encoder=ENCODER) as bank:
        bank.add(items_of(0, 50), vectors_of(1, 50))
        bank.compact()
        bank.add(items_of(50, 60), vectors_of(2, 10))
    code = """
with MemoryBank.open(path, read_only=True) as bank:
    assert bank.count == 60 and bank.verify() == []
try: MemoryBank.open(path)
except BankReadOnlyError as error: print(error)
"""
    assert as_nobody(open_folder, code).startswith("expected a folder that can be written, got")


@pytest.mark.parametrize("index_of_the_log", [True, False])
def test_a_reader_never_overlooks_a_log_that_it_cannot_replay(bank, open_folder, index_of_the_log):
    bank.add(items_of(0, 50), vectors_of(1, 50))
    shutil.copytree(bank.path, open_folder / "bank")  # as a crash leaves it
    if not index_of_the_log:
        (open_folder / "bank" / "catalog.sqlite-shm").unlink()
    code = """
try:
    with MemoryBank.open(path, read_only=True) as bank: print(bank.count)
except BankReadOnlyError as error: print(error)
"""
    printed = as_nobody(open_folder, code)
    assert printed == "50\n" or printed.startswith("expected a bank that was closed in order, got")


def test_a_reader_survives_that_the_writer_compacts(bank):
    bank.add(items_of(0, 300), vectors_of(1, 300))
    bank.compact()
    with MemoryBank.open(bank.path, read_only=True) as reader:
        before = reader.search(vectors_of(2, 5), 5)
        for _ in range(3):
            bank.compact("ivf")
        after = reader.search(vectors_of(2, 5), 5)
        assert (after.keys == before.keys).all()
        assert None not in reader.items(after.keys.ravel())


# --- damage ----------------------------------------------------------------------------------------------------


def test_every_flipped_byte_of_the_manifest_is_an_error_or_no_change(bank):
    bank.add(items_of(0, 40), vectors_of(1, 40))
    bank.compact()
    bank.close()
    path = bank.path / "manifest.json"
    intact, refused = path.read_bytes(), []
    for place in range(len(intact)):
        flipped = bytearray(intact)
        flipped[place] ^= 1 << (place % 7)
        path.write_bytes(flipped)
        try:
            MemoryBank.open(bank.path, read_only=True, verify=False).close()
            same = json.loads(flipped) == json.loads(intact)  # a blank became another blank
            assert same
        except (BankDamagedError, BankFormatError) as error:
            refused.append(str(error))
    assert len(refused) > 0.7 * len(intact)
    assert all("manifest.json" in sentence for sentence in refused)
    for content in (b"", b"{}", b"[]", b"null", intact[:-20], b"[" * 100_000, b"\xff\xfe"):
        path.write_bytes(content)
        with pytest.raises(BankDamagedError, match=r"manifest\.json.*python -m index verify"):
            MemoryBank.open(bank.path)
    path.write_bytes(intact)
    MemoryBank.open(bank.path).close()


def test_a_manifest_of_a_newer_version_is_refused(bank):
    bank.close()
    path = bank.path / "manifest.json"
    path.write_text(path.read_text().replace('"format_version": 1', '"format_version": 2'))
    with pytest.raises(BankFormatError, match="got 2; use the newer Lookalike"):
        MemoryBank.open(bank.path)


def test_a_manifest_cannot_lead_out_of_the_bank(bank):
    bank.add(items_of(0, 4), vectors_of(1, 4))
    bank.compact()
    bank.close()
    evil = bank.manifest.to_json().replace(bank.manifest.segments[0].name, "../../etc")
    body = json.loads(evil)
    body.pop("checksum")
    from index import manifest

    body["checksum"] = manifest._checksum(body)
    with closing(sqlite3.connect(bank.path / "catalog.sqlite", isolation_level=None)) as vandal:
        vandal.execute("UPDATE state SET value = ? WHERE key = 'manifest'", (json.dumps(body),))
    with pytest.raises(BankDamagedError, match="names other files"):
        MemoryBank.open(bank.path)


def test_a_flipped_catalogue_gives_an_error_or_true_items_but_never_a_crash(bank):
    items, vectors = items_of(0, 60), vectors_of(1, 60)
    bank.add(items[:40], vectors[:40])
    bank.compact()
    bank.add(items[40:], vectors[40:])
    bank.close()
    path = bank.path / "catalog.sqlite"
    intact, truth, errors = path.read_bytes(), {item.id: item for item in items}, []
    rng = np.random.default_rng(0)
    for place in [*range(0, 100, 3), *rng.integers(0, len(intact), 200).tolist()]:
        flipped = bytearray(intact)
        flipped[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        try:
            with MemoryBank.open(bank.path, read_only=True) as damaged_bank:
                hits = damaged_bank.search(vectors[::6], 60, exact=True)
                for keys in hits.keys:
                    assert all(item is None or truth[item.id] == item for item in damaged_bank.items(keys))
                errors += damaged_bank.verify()
        except BankError as error:
            errors.append(str(error))
        for log in bank.path.glob("catalog.sqlite-*"):
            log.unlink()
    assert len(errors) > 50
    assert not [sentence for sentence in errors if "\n" in sentence]
    path.write_bytes(intact)
    with MemoryBank.open(bank.path) as again:
        assert again.verify() == []


def test_a_lost_catalogue_or_segment_is_named(bank):
    bank.add(items_of(0, 40), vectors_of(1, 40))
    bank.compact()
    bank.close()
    keys = bank.path / "segments" / bank.manifest.segments[0].name / "keys.npy"
    keys.rename(bank.path / "elsewhere")
    with pytest.raises(BankDamagedError, match=r"keys\.npy.*missing"):
        MemoryBank.open(bank.path)
    (bank.path / "catalog.sqlite").unlink()
    with pytest.raises(BankDamagedError, match=r"catalog\.sqlite.*missing"):
        MemoryBank.open(bank.path)


def test_a_vanished_item_is_noticed_when_the_bank_opens(bank):
    bank.add(items_of(0, 40), vectors_of(1, 40))
    bank.compact()
    bank.close()
    with closing(sqlite3.connect(bank.path / "catalog.sqlite", isolation_level=None)) as vandal:
        vandal.execute("DELETE FROM items WHERE id = 'i00003'")
    for read_only in (True, False):
        with pytest.raises(BankDamagedError, match=r"catalog\.sqlite.*39 items for 40 vectors"):
            MemoryBank.open(bank.path, read_only=read_only)


def test_verify_finds_what_disagrees(bank):
    bank.add(items_of(0, 40), vectors_of(1, 40))
    bank.compact()
    bank.add(items_of(40, 42), vectors_of(2, 2))
    path = bank.path / "segments" / bank.manifest.segments[0].name / "labels.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with closing(sqlite3.connect(bank.path / "catalog.sqlite", isolation_level=None)) as vandal:
        vandal.execute("DELETE FROM items WHERE id IN ('i00003', 'i00041')")
    (bank.path / "manifest.json").unlink()
    found = bank.verify()
    assert [
        word for word in ("labels.npy", "2 vectors belong to no item", "manifest.json") if word in " ".join(found)
    ] == [
        "labels.npy",
        "2 vectors belong to no item",
        "manifest.json",
    ]


def test_a_compaction_gives_the_room_of_the_journal_back(bank):
    bank.add([Item(f"{n}") for n in range(5000)], vectors_of(1, 5000))
    bank.delete([f"{n}" for n in range(100, 5000)])
    before = sum(path.stat().st_size for path in bank.path.rglob("*") if path.is_file())
    bank.compact()
    after = sum(path.stat().st_size for path in bank.path.rglob("*") if path.is_file())
    assert after < before / 3
    assert bank.verify() == []


def test_a_full_disk_during_a_compaction_leaves_the_bank_as_it_was(bank, monkeypatch):
    bank.add(items_of(0, 100), vectors_of(1, 100))
    before = bank.search(vectors_of(2, 4), 5)

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("index.segments.os.fsync", full)
        with pytest.raises(StorageFullError, match="full disk"):
            bank.compact()
    after = bank.search(vectors_of(2, 4), 5)
    assert (after.keys == before.keys).all()
    assert bank.verify() == []
    bank.compact()
    assert (bank.pending, bank.count) == (0, 100)


# --- at the same time ------------------------------------------------------------------------------------------


def test_searches_go_on_through_changes_and_compactions(tmp_path):
    vectors = vectors_of(1, 1200)
    stay = vectors[:200]  # never changed: must be found by every search, at every moment
    failures, searches, done = [], [0, 0], threading.Event()
    with MemoryBank.create(tmp_path / "bank", encoder=ENCODER) as bank:
        bank.add(items_of(0, 200), stay)

        def search(number):
            rng = np.random.default_rng(number)
            try:
                while not done.is_set():
                    chosen = rng.integers(0, 200, 4)
                    hits = bank.search(stay[chosen], 3, exact=bool(number))
                    ids = [bank.items(keys[:1])[0] for keys in hits.keys]
                    assert [item and item.id for item in ids] == [f"i{n:05}" for n in chosen]
                    np.testing.assert_allclose(bank.vectors([f"i{chosen[0]:05}"]), stay[chosen[:1]], atol=1e-6)
                    searches[number] += 1
            except Exception as error:
                failures.append(error)
                raise

        threads = [threading.Thread(target=search, args=(number,)) for number in (0, 1)]
        for thread in threads:
            thread.start()
        for start in range(200, 1200, 100):
            bank.add(items_of(start, start + 100), vectors[start : start + 100])
            bank.compact("ivf" if start % 200 else "flat", merge=start % 300 != 0)
            bank.delete([f"i{n:05}" for n in range(start, start + 100, 3)])
        done.set()
        for thread in threads:
            thread.join()
        assert not failures
        assert min(searches) > 5
        assert bank.verify() == []


def test_changes_during_a_compaction_are_neither_blocked_nor_lost(tmp_path, monkeypatch):
    vectors = vectors_of(1, 400)
    truth = {item.id: (item, vector) for item, vector in zip(items_of(0, 400), vectors, strict=True)}
    with MemoryBank.create(tmp_path / "bank", encoder=ENCODER, store="float32") as bank:
        bank.add(items_of(0, 100), vectors[:100])
        bank.compact()
        bank.add(items_of(100, 200), vectors[100:200])
        from index.compaction import compact

        def slow_compact(*arguments, **options):
            entry = compact(*arguments, **options)  # the segment is written, the commit is yet to come
            bank.add(items_of(200, 300), vectors[200:300])
            bank.delete([f"i{n:05}" for n in (5, 150, 250)])  # in the old segment, in the journal, just added
            bank.upsert(items_of(6, 7) + items_of(151, 152), vectors[300:302])
            return entry

        monkeypatch.setattr("index.memory_bank.compact", slow_compact)
        bank.compact("ivf")
        for n in (*range(300, 400), 5, 150, 250):
            truth.pop(f"i{n:05}")
        for n, vector in ((6, vectors[300]), (151, vectors[301])):
            truth[f"i{n:05}"] = (items_of(n, n + 1)[0], vector)
        queries = vectors_of(2, 10)
        assert_answers_as(bank, truth, queries, 300)
        assert bank.verify() == []
        bank.close()
    with MemoryBank.open(tmp_path / "bank") as bank:
        assert_answers_as(bank, truth, queries, 300)
        assert bank.verify() == []


# --- any history -----------------------------------------------------------------------------------------------


class AnyHistory(RuleBasedStateMachine):
    """A bank and a dict go through the same changes."""

    numbers = st.integers(0, 30)

    @initialize(store=st.sampled_from(["float32", "float16"]))
    def start(self, store):
        self.folder = tempfile.TemporaryDirectory()
        self.store = store
        self.truth = {}
        self.bank = MemoryBank.create(Path(self.folder.name) / "bank", encoder=ENCODER, store=store)

    @rule(numbers=st.lists(numbers, max_size=6, unique=True), seed=st.integers(0, 5), upsert=st.booleans())
    def put(self, numbers, seed, upsert):
        items = [items_of(n, n + 1)[0] for n in numbers]
        vectors = vectors_of(seed, len(items))
        if not upsert and any(item.id in self.truth for item in items):
            with pytest.raises(ParameterError, match="new ids"):
                self.bank.add(items, vectors)
            return
        (self.bank.upsert if upsert else self.bank.add)(items, vectors)
        self.truth |= {
            item.id: (item, vector) for item, vector in zip(items, rounded(vectors, self.store), strict=True)
        }

    @rule(numbers=st.lists(numbers, max_size=4, unique=True))
    def delete(self, numbers):
        ids = [f"i{n:05}" for n in numbers]
        if not set(ids) <= self.truth.keys():
            with pytest.raises(ItemNotFoundError):
                self.bank.delete(ids)
            return
        assert self.bank.delete(ids) == len(ids)
        for id_ in ids:
            del self.truth[id_]

    @rule(index=st.sampled_from(["flat", "ivf", "auto"]), merge=st.booleans())
    def compact(self, index, merge):
        self.bank.compact(index, merge=merge)

    @rule()
    def reopen(self):
        generation = self.bank.generation
        self.bank.close()
        self.bank = MemoryBank.open(self.bank.path, encoder=ENCODER)
        assert self.bank.generation == generation

    @precondition(lambda self: self.truth)
    @rule(k=st.integers(1, 40), limit=st.integers(0, 31))
    def search_filtered(self, k, limit):
        wanted = parse_filter({"metadata.n": {"lt": limit}, "label": ["cat", "dog"]})
        accept = lambda item: item.metadata["n"] < limit and item.label is not None  # noqa: E731
        assert_answers_as(self.bank, self.truth, vectors_of(9, 2), k, wanted=accept, filter=wanted)

    @invariant()
    def both_hold_the_same(self):
        if not hasattr(self, "bank"):
            return
        assert self.bank.count == len(self.truth)
        assert_answers_as(self.bank, self.truth, vectors_of(8, 3), 7)
        page = self.bank.page(limit=100)
        assert page == [item for _, (item, _) in sorted(self.truth.items())]

    def teardown(self):
        if hasattr(self, "bank"):
            assert self.bank.verify() == []
            self.bank.close()
            self.folder.cleanup()


AnyHistory.TestCase.settings = settings(
    max_examples=40, stateful_step_count=20, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
test_any_history_leaves_what_a_dict_would_hold = AnyHistory.TestCase

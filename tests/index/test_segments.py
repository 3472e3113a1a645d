"""Segments against exhaustive NumPy search: every index, every precision, values as well as ids."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.compaction import compact, rounded
from index.errors import BankDamagedError
from index.knn import normalise, top_k
from index.manifest import SEGMENT_FILES
from index.segments import Segment
from index.view import Layer, Pending, View

DIM = 16
KINDS = [(index, precision) for index in ("flat", "ivf") for precision in ("float32", "float16")]


def vectors_of(seed, count, dim=DIM):
    return normalise(np.random.default_rng(seed).standard_normal((count, dim)))


def layer_of(vectors, keys=None, labels=None):
    keys = np.arange(100, 100 + len(vectors)) if keys is None else keys
    labels = np.arange(len(vectors), dtype=np.int32) % 5 if labels is None else labels
    return Layer(Pending(np.asarray(keys, np.int64), labels, vectors))


def written(folder, vectors, index, precision, **parts):
    entry = compact(folder / "g1", [layer_of(vectors, **parts)], vectors.shape[1], index=index, precision=precision)
    return Segment.open(folder, entry, vectors.shape[1])


def view_of(*segments):
    return View(0, (), tuple(Layer(segment) for segment in segments), layer_of(vectors_of(0, 0)), DIM)


@pytest.mark.parametrize(("index", "precision"), KINDS)
@pytest.mark.parametrize("count", [1, 7, 500, 3000])
def test_exact_search_finds_what_comparing_all_finds(tmp_path, index, precision, count):
    vectors = vectors_of(1, count)
    segment = written(tmp_path, vectors, index, precision)
    queries = vectors_of(2, 20)
    hits = view_of(segment).search(queries, 10, exact=True)
    truth = top_k(queries, rounded(vectors, precision), 10)
    assert (hits.keys == truth.rows + 100).all()
    np.testing.assert_allclose(hits.similarities, truth.similarities, atol=1e-6)
    assert (hits.labels == truth.rows % 5).all()


@pytest.mark.parametrize(("index", "precision"), KINDS)
def test_every_stored_vector_can_be_read_back_by_its_row(tmp_path, index, precision):
    vectors = vectors_of(3, 1000)
    segment = written(tmp_path, vectors, index, precision)
    assert sorted(segment.keys) == list(range(100, 1100))
    assert (segment.vectors(np.arange(1000)) == rounded(vectors, precision)[segment.keys - 100]).all()
    assert (segment.labels == (segment.keys - 100) % 5).all()
    keys = np.array([100, 99, 1099, 1100, 500])
    rows = segment.rows_of(keys)
    assert rows[[1, 3]].tolist() == [-1, -1]
    assert (segment.keys[rows[[0, 2, 4]]] == keys[[0, 2, 4]]).all()


@pytest.mark.parametrize(("index", "precision"), KINDS)
def test_the_vectors_lie_on_disk_once(tmp_path, index, precision):
    count = 4000
    written(tmp_path, vectors_of(4, count, 128), index, precision)
    size = sum(path.stat().st_size for path in (tmp_path / "g1").iterdir())
    width = 128 * (2 if precision == "float16" else 4)
    lists = 0 if index == "flat" else 4000 // 39
    assert size <= count * (width + 8 + 8 + 4) + lists * (512 + 16) + 2000


@pytest.mark.parametrize(("index", "precision"), KINDS)
@pytest.mark.parametrize("allowed", [0, 1, 30, 1500, 2990, 3000])
@pytest.mark.parametrize("exact", [True, False])
def test_as_many_come_as_are_wanted_and_allowed(tmp_path, index, precision, allowed, exact):
    vectors = vectors_of(5, 3000)
    segment = written(tmp_path, vectors, index, precision)
    chosen = np.zeros(3000, bool)
    chosen[np.random.default_rng(6).permutation(3000)[:allowed]] = True
    queries = vectors_of(7, 6)
    hits = view_of(segment).search(queries, 40, exact=exact, effort=1, selection=lambda keys, _: chosen[keys - 100])
    assert hits.keys.shape == (6, min(40, allowed))
    assert (hits.keys >= 100).all()
    assert chosen[hits.keys - 100].all()
    assert all(len(set(row)) == len(row) for row in hits.keys.tolist())
    if exact and allowed:
        rows = np.flatnonzero(chosen)
        truth = top_k(queries, rounded(vectors, precision)[rows], 40)
        assert (hits.keys == rows[truth.rows] + 100).all()
        np.testing.assert_allclose(hits.similarities, truth.similarities, atol=1e-6)


@pytest.mark.parametrize(("index", "precision"), KINDS)
def test_one_query_alone_gets_what_it_gets_among_many(tmp_path, index, precision):
    view = view_of(written(tmp_path, vectors_of(8, 2000), index, precision))
    queries = vectors_of(9, 40)
    many = view.search(queries, 10, exact=True)
    for number in range(40):
        one = view.search(queries[number : number + 1], 10, exact=True)
        assert (one.keys[0] == many.keys[number]).all()
        assert (one.similarities[0] == many.similarities[number]).all()  # to the bit


@pytest.mark.parametrize(("index", "precision"), KINDS)
def test_equal_neighbours_come_in_the_order_of_their_keys(tmp_path, index, precision):
    vectors = np.repeat(vectors_of(10, 40), 30, axis=0)  # forty pictures, each thirty times
    keys = np.random.default_rng(11).permutation(1200)
    order = np.argsort(keys)
    segment = written(tmp_path, vectors[order], index, precision, keys=keys[order])
    for k in (1, 29, 30, 31, 45):
        hits = view_of(segment).search(vectors[:30:7], k, exact=True)
        same = sorted(keys[:30])
        assert (hits.keys[:, :30] == same[: min(k, 30)]).all()


def test_the_measured_effort_reaches_the_promised_recall(tmp_path):
    vectors = vectors_of(12, 20_000)
    segment = written(tmp_path, vectors, "ivf", "float16")
    assert 1 <= segment.entry.effort < segment.entry.lists
    assert 0.99 <= segment.entry.recall_at_10 <= 1
    queries = vectors_of(13, 300)
    truth, found = (view_of(segment).search(queries, 10, exact=exact) for exact in (True, False))
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(truth.keys, found.keys, strict=True)])
    assert recall >= 0.98


@pytest.mark.parametrize("dead", [1, 64, 65, 2000])
def test_dead_rows_of_a_flat_index_are_never_found(tmp_path, dead):
    vectors = vectors_of(14, 4000)
    layer = Layer(written(tmp_path, vectors, "flat", "float32")).without(np.arange(100, 100 + dead))
    view = View(0, (), (layer,), layer_of(vectors_of(0, 0)), DIM)
    queries = vectors[:10]  # themselves dead, at least the first
    hits = view.search(queries, 20)
    truth = top_k(queries, vectors[dead:], 20)
    assert (hits.keys == truth.rows + 100 + dead).all()
    assert layer.count == 4000 - dead


@pytest.mark.parametrize(("index", "precision"), [("flat", "float32"), ("ivf", "float16")])
@pytest.mark.parametrize("name", SEGMENT_FILES)
def test_every_flipped_region_of_a_segment_is_noticed_before_faiss_reads_it(tmp_path, index, precision, name):
    entry = compact(tmp_path / "g1", [layer_of(vectors_of(15, 300))], DIM, index=index, precision=precision)
    path = tmp_path / "g1" / name
    intact = path.read_bytes()
    places = {*range(min(len(intact), 200)), *np.linspace(0, len(intact) - 1, 50).astype(int).tolist()}
    for place in places:
        flipped = bytearray(intact)
        flipped[place] ^= 1 << (place % 8)
        path.write_bytes(flipped)
        with pytest.raises(BankDamagedError, match=name):
            Segment.open(tmp_path, entry, DIM)
    for content in (b"", intact[:-1], intact + b"\0", intact[: len(intact) // 2]):
        path.write_bytes(content)
        with pytest.raises(BankDamagedError, match=name):
            Segment.open(tmp_path, entry, DIM)
    path.unlink()
    with pytest.raises(BankDamagedError, match="missing"):
        Segment.open(tmp_path, entry, DIM)
    path.write_bytes(intact)
    assert len(Segment.open(tmp_path, entry, DIM)) == 300


def test_without_verification_a_truncated_file_is_still_an_error_and_no_crash(tmp_path):
    entry = compact(tmp_path / "g1", [layer_of(vectors_of(16, 300))], DIM, index="flat", precision="float32")
    for name in SEGMENT_FILES:
        path = tmp_path / "g1" / name
        intact = path.read_bytes()
        path.write_bytes(intact[: len(intact) // 2])
        with pytest.raises(BankDamagedError):
            Segment.open(tmp_path, entry, DIM, verify=False)
        path.write_bytes(intact)


@settings(max_examples=25, deadline=None)
@given(parts=st.lists(st.integers(1, 9), min_size=1, max_size=12))
def test_additions_grow_without_touching_what_was_published(parts):
    vectors = vectors_of(17, sum(parts))
    pending, views, start = (
        Pending(np.empty(0, np.int64), np.empty(0, np.int32), np.empty((0, DIM), np.float32)),
        [],
        0,
    )
    for size in parts:
        some = slice(start, start + size)
        pending = pending.appended(np.arange(some.start, some.stop), np.zeros(size, np.int32), vectors[some])
        start += size
        views.append(pending)
    for size, view in zip(np.cumsum(parts), views, strict=True):
        assert view.keys.tolist() == list(range(size))
        assert (view.vectors(np.arange(size)) == vectors[:size]).all()


@pytest.mark.parametrize("copies", [1, 300])
def test_a_bank_of_one_picture_only_can_be_inverted(tmp_path, copies):
    vectors = np.repeat(vectors_of(18, 1), copies, axis=0)
    hits = view_of(written(tmp_path, vectors, "ivf", "float16")).search(vectors[:1], 5)
    assert hits.keys[0].tolist() == list(range(100, 100 + min(copies, 5)))

"""The kNN protocol against a slow, obvious vote written out in Python."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.errors import ParameterError, VectorError
from index.knn import KnnProtocol, accuracy, leave_one_out, normalise, recall_at_k, top_k, vote


def unit(rng: np.random.Generator, n: int, dim: int) -> np.ndarray:
    return normalise(rng.standard_normal((n, dim)))


def slow_neighbours(query, items, k, barred=-1):
    order = sorted(
        (row for row in range(len(items)) if row != barred), key=lambda row: (-float(query @ items[row]), row)
    )
    return order[:k]


def slow_vote(labels, similarities, classes, temperature):
    """Sum exp(similarity / τ) by class; ties to the nearer best neighbour, then to the lower class."""
    sums = {}
    for label, similarity in zip(labels, similarities, strict=True):
        if label >= 0:
            sums.setdefault(label, []).append(math.exp(similarity / temperature))
    if not sums:
        return -1, [0.0] * classes
    first = {label: list(labels).index(label) for label in sums}
    totals = {label: math.fsum(weights) for label, weights in sums.items()}
    winner = min(totals, key=lambda label: (-round(totals[label], 9), first[label], label))
    whole = math.fsum(totals.values())
    return winner, [totals.get(label, 0.0) / whole for label in range(classes)]


@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 40), st.integers(1, 50))
@settings(max_examples=60, deadline=None)
def test_top_k_is_the_sorted_list(seed, queries, items, k):
    rng = np.random.default_rng(seed)
    bank, asked = unit(rng, items, 6), unit(rng, queries, 6)
    bank[rng.integers(0, items, items // 2)] = bank[0]  # exact ties
    found = top_k(asked, bank, k, chunk=5)
    assert found.rows.shape == (queries, min(k, items))
    for query, rows, similarities in zip(asked, found.rows, found.similarities, strict=True):
        scores = (query[None] @ bank.T)[0]
        assert len(set(rows.tolist())) == len(rows)
        np.testing.assert_allclose(similarities, np.sort(scores)[::-1][: len(rows)], atol=1e-6)
        assert (np.diff(similarities) <= 0).all()
        for left, right, a, b in zip(rows, rows[1:], similarities, similarities[1:], strict=False):
            assert a > b or left < right  # equal similarities come in row order


def test_an_excluded_row_is_never_found_and_k_shrinks_to_what_is_left():
    bank = unit(np.random.default_rng(0), 9, 5)
    found = top_k(bank, bank, 100, exclude=np.arange(9))
    assert found.rows.shape == (9, 8)
    for row, (rows, query) in enumerate(zip(found.rows, bank, strict=True)):
        assert rows.tolist() == slow_neighbours(query, bank, 8, barred=row)
    partly = top_k(bank[:2], bank, 1, exclude=np.array([-1, 1]))
    assert partly.rows[0, 0] == 0
    assert partly.rows[1, 0] != 1


def test_one_item_without_itself_has_no_neighbours():
    bank = unit(np.random.default_rng(0), 1, 5)
    assert top_k(bank, bank, 3, exclude=np.arange(1)).rows.shape == (1, 0)


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 15), st.sampled_from([0.01, 0.07, 1.0]))
@settings(max_examples=80, deadline=None)
def test_the_vote_is_the_written_out_sum(seed, classes, k, temperature):
    rng = np.random.default_rng(seed)
    labels = rng.integers(-1, classes, (4, k))
    similarities = np.sort(rng.uniform(-1, 1, (4, k)).astype(np.float32))[:, ::-1]
    votes = vote(labels, similarities, classes, temperature)
    for row in range(4):
        winner, scores = slow_vote(labels[row].tolist(), similarities[row].tolist(), classes, temperature)
        np.testing.assert_allclose(votes.scores[row], scores, atol=1e-6)
        assert votes.winners[row] == winner
        by_class = [votes.weights[row][labels[row] == label].sum() for label in range(classes)]
        np.testing.assert_allclose(by_class, scores, atol=1e-6)


def test_a_tie_goes_to_the_nearer_neighbour_then_to_the_lower_class():
    even = np.array([[0.9, 0.9]], np.float32)
    assert vote(np.array([[2, 1]]), even, 3, 0.07).winners[0] == 2  # equal weight, 2 comes first
    apart = np.array([[0.9, 0.5, 0.5, 0.9 - 1e-12]], np.float32)
    assert vote(np.array([[1, 0, 1, 0]]), apart, 2, 0.07).winners[0] == 1


def test_unlabelled_neighbours_do_not_vote():
    votes = vote(np.array([[-1, 1], [-1, -1]]), np.array([[0.9, 0.1], [0.9, 0.1]], np.float32), 2, 0.07)
    assert votes.winners.tolist() == [1, -1]
    assert votes.scores.tolist() == [[0.0, 1.0], [0.0, 0.0]]
    assert votes.weights.tolist() == [[0.0, 1.0], [0.0, 0.0]]


def test_a_tiny_temperature_does_not_overflow():
    votes = vote(np.array([[0, 1]]), np.array([[1.0, 0.99]], np.float32), 2, 1e-4)
    np.testing.assert_allclose(votes.scores, [[1.0, 0.0]], atol=1e-12)


def test_leave_one_out_is_accuracy_without_oneself():
    rng = np.random.default_rng(3)
    items, labels = unit(rng, 40, 4), rng.integers(0, 3, 40)
    protocol = KnnProtocol(5, 0.1)
    right = 0
    for row in range(40):
        rows = slow_neighbours(items[row], items, 5, barred=row)
        winner, _ = slow_vote(labels[rows].tolist(), [float(items[row] @ items[r]) for r in rows], 3, 0.1)
        right += winner == labels[row]
    assert leave_one_out(protocol, items, labels, 3) == right / 40
    assert accuracy(KnnProtocol(1), items, labels, items, labels, 3) == 1.0


def test_items_without_a_label_are_neither_asked_nor_counted():
    items = unit(np.random.default_rng(4), 6, 4)
    labels = np.array([0, 0, 0, -1, -1, -1])
    assert leave_one_out(KnnProtocol(5), items, labels, 1) == 1.0


def test_recall_counts_shared_ids_in_any_order():
    assert recall_at_k(np.array([[3, 1, 2]]), np.array([[1, 2, 9]])) == pytest.approx(2 / 3)


def test_normalise_keeps_directions_of_any_length_and_refuses_the_rest():
    rows = np.array([[3e-30, 4e-30], [3e30, 4e30], [-0.0, -2.0]])
    np.testing.assert_allclose(normalise(rows), [[0.6, 0.8], [0.6, 0.8], [0, -1]], atol=1e-6)
    for bad in ([[0.0, 0.0]], [[np.nan, 1.0]], [[np.inf, 1.0]], [[1e39, 1.0]]):
        with pytest.raises(VectorError):
            normalise(np.array(bad))
    with pytest.raises(VectorError, match="position 1"):
        normalise(np.array([[1.0, 0.0], [0.0, 0.0]]))
    with pytest.raises(VectorError, match=r"\(B, 3\)"):
        normalise(np.ones((2, 2)), 3)


def test_a_protocol_prints_itself_and_refuses_nonsense():
    assert str(KnnProtocol(200, 0.07)) == "kNN-200 τ=0.07"
    for k, temperature in ((0, 0.1), (1, 0.0), (1, float("nan"))):
        with pytest.raises(ParameterError):
            KnnProtocol(k, temperature)

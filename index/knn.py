"""The one kNN protocol: training's accuracy, the encoder's record and the service's answer are this code.

Weighted nearest-neighbour vote of Wu et al. 2018 (Unsupervised Feature Learning via Non-Parametric
Instance Discrimination, §3.4): a neighbour votes for its class with exp(similarity / temperature).
NumPy only, so that training and evaluation need no FAISS.

Shapes: B queries, D dimension, N items, k neighbours, C classes.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.errors import ParameterError, VectorError

Vectors = NDArray[np.float32]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class KnnProtocol:
    """How many neighbours vote, and how sharply. An accuracy is never printed without it."""

    k: int = 200
    temperature: float = 0.07

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ParameterError(f"expected k of at least 1, got {self.k}")
        if not self.temperature > 0:
            raise ParameterError(f"expected a temperature above 0, got {self.temperature}")

    def __str__(self) -> str:
        return f"kNN-{self.k} τ={self.temperature:g}"


@dataclass(frozen=True)
class Neighbors:
    """The k nearest items of each query, nearest first.

    Attributes:
        rows: int64 (B, k), rows of the item matrix.
        similarities: float32 (B, k), cosine, descending.
    """

    rows: Integers
    similarities: Vectors


@dataclass(frozen=True)
class Votes:
    """The outcome of a vote.

    Attributes:
        scores: float64 (B, C), each class's share; a row sums to 1, or is all zero when nobody may vote.
        winners: int64 (B,), class index, -1 when nobody may vote.
        weights: float64 (B, k), each neighbour's share of its query's vote; 0 for an unlabelled neighbour.
    """

    scores: NDArray[np.float64]
    winners: Integers
    weights: NDArray[np.float64]


def normalise(vectors: NDArray[Any], dim: int | None = None) -> Vectors:
    """Return rows of unit length, float32 (B, D).

    Raises:
        VectorError: wrong shape or dimension, a value that is not finite as float32, or a zero row.
    """
    with np.errstate(over="ignore"):
        rows = np.asarray(vectors, dtype=np.float32)
    if rows.ndim != 2 or (dim is not None and rows.shape[1] != dim):
        raise VectorError(f"expected vectors of shape (B, {dim or 'D'}), got {rows.shape}")
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        raise VectorError(f"expected finite 32-bit values, got NaN or infinity in vector {int(finite.argmin())}")
    # In float64, so that neither tiny nor huge rows lose their length on the way.
    norms = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    if not norms.all():
        raise VectorError(f"expected a direction, got the zero vector at position {int(norms.argmin())}")
    return np.asarray(rows / norms, dtype=np.float32)


def top_k(
    queries: Vectors, items: Vectors, k: int, *, exclude: Integers | None = None, chunk: int = 1024
) -> Neighbors:
    """Find the k most similar items of each query by exhaustive search.

    Args:
        queries: float32 (B, D), unit rows.
        items: float32 (N, D), unit rows.
        k: clipped to the number of candidates (N, or N - 1 with `exclude`).
        exclude: int64 (B,), one row per query that must not be found (itself), -1 for none.
        chunk: queries a pass; bounds the memory to chunk × N similarities.

    Returns:
        Neighbours sorted by similarity, equal similarities by row.
    """
    if k < 1:
        raise ParameterError(f"expected k of at least 1, got {k}")
    k = min(k, len(items) - (exclude is not None and len(items) > 0))
    rows = np.empty((len(queries), k), np.int64)
    similarities = np.empty((len(queries), k), np.float32)
    for start in range(0, len(queries) if k else 0, chunk):
        part = slice(start, start + chunk)
        scores = queries[part] @ items.T
        if exclude is not None:
            barred = exclude[part]
            scores[np.flatnonzero(barred >= 0), barred[barred >= 0]] = -np.inf
        rows[part] = _best(scores, k)
        similarities[part] = np.take_along_axis(scores, rows[part], axis=1)
    return Neighbors(rows, similarities)


def _best(scores: Vectors, k: int) -> Integers:
    """Return the columns of the k largest scores a row, descending, equal ones by column: int64 (B, k)."""
    threshold = -np.partition(-scores, k - 1, axis=1)[:, k - 1 : k]
    best = np.empty((len(scores), k), np.int64)
    for row, (values, least) in enumerate(zip(scores, threshold[:, 0], strict=True)):
        candidates = np.flatnonzero(values >= least)  # ascending, so a stable sort keeps the lower column first
        best[row] = candidates[np.argsort(-values[candidates], kind="stable")[:k]]
    return best


def vote(labels: NDArray[Any], similarities: Vectors, classes: int, temperature: float) -> Votes:
    """Let the neighbours vote for their classes.

    Args:
        labels: integer (B, k), class index of each neighbour, -1 for an unlabelled one (it does not vote).
        similarities: float32 (B, k), descending along a row.
        classes: C.
        temperature: the smaller, the more the nearest decide.

    Returns:
        Shares and winners. Equal scores go to the class whose best neighbour is nearer, then to the lower index.
    """
    queries, k = labels.shape
    voting = labels >= 0
    # Relative to the best voter: the shares are the same, and exp cannot overflow at a small temperature.
    best = np.max(similarities, axis=1, keepdims=True, initial=-np.inf, where=voting)
    distance = np.where(voting, similarities, -np.inf) - np.where(np.isfinite(best), best, 0.0)
    weights = np.exp(distance.astype(np.float64) / temperature)
    weights /= np.maximum(weights.sum(axis=1, keepdims=True), np.finfo(np.float64).tiny)
    scores = np.zeros((queries, classes + 1))  # column C takes what may not vote, and is dropped
    np.add.at(scores, (np.arange(queries)[:, None], np.where(voting, labels, classes)), weights)
    scores = scores[:, :classes]
    nearest = np.full((queries, classes + 1), k)  # position of each class's best neighbour
    np.minimum.at(nearest, (np.arange(queries)[:, None], np.where(voting, labels, classes)), np.arange(k)[None])
    if not classes:
        return Votes(scores, np.full(queries, -1, np.int64), weights)
    # Shares that differ by rounding only are equal: their order must not depend on the order of a sum.
    leading = scores >= scores.max(axis=1, keepdims=True) * (1 - 1e-12)
    winners = np.where(leading, nearest[:, :classes], k + 1).argmin(axis=1)
    return Votes(scores, np.where(voting.any(axis=1), winners, -1), weights)


def accuracy(
    protocol: KnnProtocol,
    queries: Vectors,
    query_labels: NDArray[Any],
    items: Vectors,
    item_labels: NDArray[Any],
    classes: int,
) -> float:
    """Return the share (0 to 1) of queries whose vote over `items` gives their own label."""
    neighbors = top_k(queries, items, protocol.k)
    votes = vote(item_labels[neighbors.rows], neighbors.similarities, classes, protocol.temperature)
    return float(np.mean(votes.winners == query_labels))


def leave_one_out(protocol: KnnProtocol, items: Vectors, labels: NDArray[Any], classes: int) -> float:
    """Return the share (0 to 1) of labelled items whose vote by all the other items gives their own label."""
    labelled = np.flatnonzero(labels >= 0)
    neighbors = top_k(items[labelled], items, protocol.k, exclude=labelled)
    votes = vote(labels[neighbors.rows], neighbors.similarities, classes, protocol.temperature)
    return float(np.mean(votes.winners == labels[labelled]))


def recall_at_k(found: Integers, truth: Integers) -> float:
    """Return the share (0 to 1) of the true neighbours (B, k) that were found (B, k), whatever their order."""
    hits = [len(np.intersect1d(mine, true)) for mine, true in zip(found, truth, strict=True)]
    return float(np.sum(hits)) / truth.size if truth.size else 1.0

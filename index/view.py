"""The searchable state of a bank at one generation: immutable, so that any number of threads may search it.

A view is segments plus the journal's additions, each with the rows that are still alive. A change makes a new
view that shares all but what changed; whoever searches the old one finishes undisturbed.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from index.knn import Integers, Vectors, top_k
from index.segments import Labels, Mask, Segment

# FAISS's similarities depend in the last bits on the batch and on the index, so a few more candidates than asked
# for are fetched, compared by one canonical sum, and only then cut. Equal ones go by key, as far as they are
# fetched; when more are equal than FETCH_MORE (a bank full of one picture), which of them come is not promised.
FETCH_MORE = 2048
_SLACK = 8
_EQUAL = 2e-6  # twice the rounding of a float32 sum of D = 128 products of unit vectors

_T = TypeVar("_T", bound=np.generic)
Selection = Callable[[Integers, Labels], Mask]


@dataclass(frozen=True)
class Hits:
    """The nearest items of each query, nearest first, equal ones by key.

    Attributes:
        keys: int64 (B, k); -1 where a query has fewer than k (only when something was excluded for it).
        similarities: float32 (B, k), cosine; -inf at key -1.
        labels: int32 (B, k), class codes; -1 = none.
    """

    keys: Integers
    similarities: Vectors
    labels: Labels


class Rows(Protocol):
    """Vectors with their keys and labels, on disk (Segment) or in memory (Pending)."""

    keys: Integers
    labels: Labels

    def __len__(self) -> int: ...
    def rows_of(self, keys: Integers) -> Integers:
        """Return the row of each key, -1 where it is not here: int64 (B,)."""

    def vectors(self, rows: Integers) -> Vectors:
        """Return the vectors of some rows, float32 (B, D)."""

    def search(self, queries: Vectors, k: int, needed: int, *, effort: int | None, mask: Mask | None) -> Integers:
        """Return candidates for the nearest rows, see Segment.search."""


class Pending:
    """The journal's additions in memory: appended to, never changed, searched exhaustively."""

    def __init__(self, keys: Integers, labels: Labels, vectors: Vectors, length: int | None = None) -> None:
        length = len(keys) if length is None else length
        self._room = (keys, labels, vectors)  # may be longer: room for later additions, not yet anybody's
        self.keys, self.labels, self._vectors = keys[:length], labels[:length], vectors[:length]

    def __len__(self) -> int:
        return len(self.keys)

    def appended(self, keys: Integers, labels: Labels, vectors: Vectors) -> "Pending":
        """Return the additions with some more; must be called on the latest of a line only."""
        before, after = len(self), len(self) + len(keys)
        room = self._room
        if after > len(room[0]):  # doubling: a long build copies each vector a constant number of times
            room = (
                _grown(room[0], before, 2 * after),
                _grown(room[1], before, 2 * after),
                _grown(room[2], before, 2 * after),
            )
        room[0][before:after], room[1][before:after], room[2][before:after] = keys, labels, vectors
        return Pending(*room, length=after)

    def rows_of(self, keys: Integers) -> Integers:
        """Return the row of each key, -1 where it is not here; keys ascend, they are given in order."""
        if not len(self):
            return np.full(len(keys), -1, np.int64)
        rows = np.minimum(np.searchsorted(self.keys, keys), len(self) - 1)
        return np.where(self.keys[rows] == keys, rows, -1)

    def vectors(self, rows: Integers) -> Vectors:
        """Return some vectors, float32 (B, D)."""
        return np.asarray(self._vectors[rows])

    def search(self, queries: Vectors, k: int, needed: int, *, effort: int | None, mask: Mask | None) -> Integers:  # noqa: ARG002 - one interface with Segment
        """Find the k nearest rows, int64 (B, k), exactly."""
        if mask is None:
            return top_k(queries, self._vectors, k).rows
        rows = np.flatnonzero(mask)
        return np.asarray(rows[top_k(queries, self._vectors[rows], k).rows])


@dataclass(frozen=True)
class Layer:
    """Rows and which of them are alive; `alive` is None while all are."""

    rows: Rows
    alive: Mask | None = None

    @property
    def count(self) -> int:
        """Number of living rows."""
        return len(self.rows) if self.alive is None else int(np.count_nonzero(self.alive))

    def without(self, keys: Integers) -> "Layer":
        """Return the layer with some keys dead; keys that it does not hold are ignored."""
        rows = self.rows.rows_of(keys)
        rows = rows[rows >= 0]
        if not len(rows):
            return self
        alive = np.ones(len(self.rows), bool) if self.alive is None else self.alive.copy()
        alive[rows] = False
        return replace(self, alive=alive)

    def living(self) -> Integers:
        """Return the living rows, int64, ascending."""
        return np.arange(len(self.rows)) if self.alive is None else np.flatnonzero(self.alive)


@dataclass(frozen=True)
class View:
    """Everything a search reads.

    Attributes:
        generation: of the bank.
        class_names: position = class code.
        segments: oldest first.
        pending: the journal's additions.
        dim: D.
    """

    generation: int
    class_names: tuple[str, ...]
    segments: tuple[Layer, ...]
    pending: Layer
    dim: int

    @property
    def layers(self) -> tuple[Layer, ...]:
        """All rows."""
        return (*self.segments, self.pending)

    @property
    def count(self) -> int:
        """Number of items."""
        return sum(layer.count for layer in self.layers)

    def without(self, keys: Integers) -> "View":
        """Return the view with some keys dead."""
        segments = tuple(layer.without(keys) for layer in self.segments)
        return replace(self, segments=segments, pending=self.pending.without(keys))

    def with_added(self, keys: Integers, labels: Labels, vectors: Vectors) -> "View":
        """Return the view with more additions; must be called on the latest view only."""
        pending, alive = self.pending.rows, self.pending.alive
        assert isinstance(pending, Pending)  # noqa: S101 - for the type checker
        alive = None if alive is None else np.concatenate([alive, np.ones(len(keys), bool)])
        return replace(self, pending=Layer(pending.appended(keys, labels, vectors), alive))

    def vectors(self, keys: Integers) -> Vectors:
        """Return the stored vectors of living keys, float32 (B, D); NaN where a key is not alive."""
        found = np.full((len(keys), self.dim), np.nan, np.float32)
        for layer in self.layers:
            rows = layer.rows.rows_of(keys)
            here = rows >= 0
            if layer.alive is not None:
                here &= layer.alive[rows]
            found[here] = layer.rows.vectors(rows[here])
        return found

    def search(
        self,
        queries: Vectors,
        k: int,
        *,
        exact: bool = False,
        effort: int | None = None,
        selection: Selection | None = None,
        excluded: Integers | None = None,
    ) -> Hits:
        """Find the nearest items.

        Args:
            queries: float32 (B, D), unit rows.
            k: at least 1; clipped to the number of items that may be found.
            exact: compare with every vector that may be found.
            effort: inverted lists to visit; None = as tuned.
            selection: from keys and labels to a mask of what may be found; None = everything.
            excluded: int64 (B,), a key that each query must not find; -1 = none.
        """
        searchable = [(layer.rows, _mask(layer, selection)) for layer in self.layers]
        counts = [len(rows) if mask is None else int(np.count_nonzero(mask)) for rows, mask in searchable]
        k = min(k, sum(counts))
        needed = k + (excluded is not None)
        more = _SLACK
        while True:
            found = [_none(len(queries))]
            complete = np.full((len(queries), 1), -np.inf, np.float32)  # nothing above this was left unfetched
            for (rows, mask), count in zip(searchable, counts, strict=True):
                if count and k:
                    lists = None if exact else _effort(rows, effort)
                    candidates = rows.search(queries, needed + more, needed, effort=lists, mask=mask)
                    hits = _scored(rows, queries, candidates)
                    if needed + more < count:  # a row with fewer has seen all there was: its least is -inf
                        complete = np.maximum(complete, hits.similarities.min(axis=1, keepdims=True))
                    found.append(hits)
            best = _merged(found, k, excluded)
            # Equal neighbours may lie beyond what was fetched: fetch on until the k-th is clearly above the rest.
            unsure = (best.similarities[:, -1:] <= complete + _EQUAL) & np.isfinite(complete)
            if not k or not unsure.any() or more >= FETCH_MORE:
                return replace(
                    best, similarities=np.where(best.keys < 0, -np.inf, np.clip(best.similarities, -1, 1))
                )
            more *= 4


def _grown(part: NDArray[_T], used: int, length: int) -> NDArray[_T]:
    new = np.empty((length, *part.shape[1:]), part.dtype)
    new[:used] = part[:used]
    return new


def _mask(layer: Layer, selection: Selection | None) -> Mask | None:
    if selection is None:
        return layer.alive
    wanted = selection(layer.rows.keys, layer.rows.labels)
    return wanted if layer.alive is None else wanted & layer.alive


def _effort(rows: Rows, effort: int | None) -> int:
    """Return the lists to visit: the caller's number, or what the compaction measured."""
    if effort is None and isinstance(rows, Segment):
        effort = rows.entry.effort
    return max(1, effort or 1)


def _none(queries: int) -> Hits:
    return Hits(
        np.empty((queries, 0), np.int64), np.empty((queries, 0), np.float32), np.empty((queries, 0), np.int32)
    )


def _scored(rows: Rows, queries: Vectors, candidates: Integers) -> Hits:
    """Compute the similarities of candidate rows (B, m) by one sum that depends on the two vectors only."""
    missing = candidates < 0
    vectors = rows.vectors(np.maximum(candidates, 0).ravel()).reshape(*candidates.shape, queries.shape[1])
    similarities = np.einsum("bd,bmd->bm", queries, vectors)
    similarities[missing] = -np.inf
    keys, labels = rows.keys[candidates], rows.labels[candidates]
    return Hits(np.where(missing, -1, keys), similarities, np.where(missing, np.int32(-1), labels))


def _merged(found: list[Hits], k: int, excluded: Integers | None) -> Hits:
    keys = np.concatenate([hits.keys for hits in found], axis=1)
    similarities = np.concatenate([hits.similarities for hits in found], axis=1)
    labels = np.concatenate([hits.labels for hits in found], axis=1)
    if excluded is not None:
        barred = (keys == excluded[:, None]) & (keys >= 0)
        similarities[barred], keys[barred], labels[barred] = -np.inf, -1, -1
    order = np.lexsort((keys, -similarities))[:, :k]
    return Hits(*(np.take_along_axis(part, order, axis=1) for part in (keys, similarities, labels)))

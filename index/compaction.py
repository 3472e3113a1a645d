"""Compaction: living rows in, one new segment out, with its index chosen and its effort measured.

Runs beside searches and changes: it reads an immutable view and writes a folder that nobody knows yet.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import faiss as _faiss
import numpy as np

from index.knn import Integers, Vectors
from index.manifest import IndexKind, Precision, SegmentEntry
from index.segments import Labels, Segment, write_segment
from index.view import Hits, Layer, Pending, View

faiss: Any = _faiss  # its stubs lack what its Python layer adds
IndexChoice = Literal["auto", "flat", "ivf"]
FLAT_UP_TO = 20_000  # rows; below, comparing with all takes a fraction of a millisecond and is exact
TARGET_RECALL = 0.99  # recall@10 that the default effort must reach
_PROBES = 200  # vectors of the bank that are asked for their neighbours
_CHUNK = 65_536  # rows a step; bounds the memory of sorted copies


def compact(
    home: Path, layers: Sequence[Layer], dim: int, *, index: IndexChoice, precision: Precision
) -> SegmentEntry | None:
    """Write the living rows of some layers as one new segment.

    Args:
        home: the new segment's folder; must not exist, its parent must.
        layers: what to merge.
        dim: D.
        index: "flat", "ivf", or "auto" (flat up to FLAT_UP_TO rows).
        precision: of the stored vectors.

    Returns:
        The segment's entry for the manifest; None, and no folder, when nothing is alive.
    """
    keys, labels, vectors = _gather(layers, dim)
    if not len(keys):
        return None
    vectors = rounded(vectors, precision)
    kind: IndexKind = ("ivf" if len(keys) > FLAT_UP_TO else "flat") if index == "auto" else index
    order = np.argsort(keys, kind="stable")
    if kind == "flat":
        lists, structure = 0, _flat(vectors[order], precision)
    else:
        # 4 √N lists balance finding the lists with scanning them; k-means wants some 39 vectors a list.
        lists = max(1, min(round(4 * math.sqrt(len(keys))), len(keys) // 39))
        structure, order = _inverted(vectors, order, lists, precision)
    keys, labels = keys[order], labels[order]
    entry = SegmentEntry(home.name, len(keys), kind, precision, lists, effort=lists, recall_at_10=1.0, files={})
    effort, recall = (0, 1.0) if kind == "flat" else _tuned(Segment(entry, structure, keys, labels), dim)
    files = write_segment(home, structure, keys, labels)
    return SegmentEntry(home.name, len(keys), kind, precision, lists, effort, recall, files)


def adopted(current: View, segment: Segment | None, *, merge: bool) -> View:
    """Return the view in which the compaction's segment has replaced what it was made from.

    Args:
        current: the bank's view now; it may have changed since the compaction began.
        segment: the new one; None when nothing was alive.
        merge: it replaces all older segments too.
    """
    kept = () if merge else current.segments
    if segment is None:
        return replace(current, segments=kept, pending=Layer(_rest(current.pending, np.zeros(0, np.int64))))
    alive = np.concatenate([layer.rows.keys[layer.living()] for layer in current.layers])
    dead = segment.keys[~np.isin(segment.keys, alive)]
    layer = Layer(segment).without(dead) if len(dead) else Layer(segment)
    return replace(current, segments=(*kept, layer), pending=Layer(_rest(current.pending, segment.keys)))


def _rest(pending: Layer, moved: Integers) -> Pending:
    """Return the living additions that are not among the moved keys."""
    rows = pending.living()
    rows = rows[~np.isin(pending.rows.keys[rows], moved)]
    return Pending(pending.rows.keys[rows], pending.rows.labels[rows], pending.rows.vectors(rows))


def rounded(vectors: Vectors, precision: Precision) -> Vectors:
    """Return the vectors as the store will give them back, float32 (B, D)."""
    # FAISS's own conversion truncates where NumPy rounds to nearest: what it gets must already be exact.
    return vectors.astype(np.float16).astype(np.float32) if precision == "float16" else vectors


def _gather(layers: Sequence[Layer], dim: int) -> tuple[Integers, Labels, Vectors]:
    living = [(layer.rows, layer.living()) for layer in layers]
    count = sum(len(rows) for _, rows in living)
    keys, labels = np.empty(count, np.int64), np.empty(count, np.int32)
    vectors = np.empty((count, dim), np.float32)
    start = 0
    for source, rows in living:
        for first in range(0, len(rows), _CHUNK):
            part = rows[first : first + _CHUNK]
            into = slice(start, start + len(part))
            keys[into], labels[into], vectors[into] = source.keys[part], source.labels[part], source.vectors(part)
            start += len(part)
    return keys, labels, vectors


def _flat(vectors: Vectors, precision: Precision) -> Any:  # noqa: ANN401 - FAISS has no types
    dim = vectors.shape[1]
    if precision == "float32":
        structure = faiss.IndexFlatIP(dim)
    else:
        structure = faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    structure.add(vectors)
    return structure


def _inverted(vectors: Vectors, order: Integers, lists: int, precision: Precision) -> tuple[Any, Integers]:
    """Build an inverted file whose rows are numbered list after list, by key within a list."""
    dim = vectors.shape[1]
    centroids = faiss.IndexFlatIP(dim)
    if precision == "float32":
        structure = faiss.IndexIVFFlat(centroids, dim, lists, faiss.METRIC_INNER_PRODUCT)
    else:
        structure = faiss.IndexIVFScalarQuantizer(
            centroids, dim, lists, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT, False
        )
    structure.cp.min_points_per_centroid = 1  # a small bank is not worth a warning on stderr
    sample = np.random.default_rng(0).permutation(len(vectors))[: 64 * lists]
    structure.train(vectors[np.sort(sample)])
    home = np.empty(len(vectors), np.int64)
    for first in range(0, len(vectors), _CHUNK):
        part = slice(first, first + _CHUNK)
        home[part] = centroids.search(vectors[part], 1)[1][:, 0]
    order = order[np.argsort(home[order], kind="stable")]
    for first in range(0, len(order), _CHUNK):
        rows = order[first : first + _CHUNK]
        some, numbers, homes = vectors[rows], np.arange(first, first + len(rows)), home[rows]
        pointers = (faiss.swig_ptr(array) for array in (some, numbers, homes))
        structure.add_core(len(rows), *pointers)
    return structure, order


def _tuned(segment: Segment, dim: int) -> tuple[int, float]:
    """Return the least effort that reaches TARGET_RECALL, and the recall@10 that it has.

    The queries are vectors of the bank, which are not their own neighbours. A neighbour counts as found by its
    similarity, so that among equals any will do.
    """
    layer = Layer(segment)
    nothing = Layer(Pending(np.empty(0, np.int64), np.empty(0, np.int32), np.empty((0, dim), np.float32)))
    view = View(0, (), (layer,), nothing, dim)
    rows = np.sort(np.random.default_rng(1).permutation(len(segment))[:_PROBES])
    queries, own = segment.vectors(rows), segment.keys[rows]
    truth = view.search(queries, 10, exact=True, excluded=own)

    def recall(effort: int) -> float:
        found = view.search(queries, 10, effort=effort, excluded=own)
        return _recall(found, truth)

    too_little, enough = 0, 1
    while enough < segment.entry.lists and recall(enough) < TARGET_RECALL:
        too_little, enough = enough, min(2 * enough, segment.entry.lists)
    while enough - too_little > 1:
        middle = (too_little + enough) // 2
        too_little, enough = (too_little, middle) if recall(middle) >= TARGET_RECALL else (middle, enough)
    return enough, recall(enough)


def _recall(found: Hits, truth: Hits) -> float:
    least = np.where(np.isfinite(truth.similarities), truth.similarities, np.inf).min(axis=1, keepdims=True)
    wanted = np.count_nonzero(truth.keys >= 0)
    return float(np.count_nonzero(found.similarities >= least - 1e-6) / wanted) if wanted else 1.0

"""Segments: immutable vectors on disk, memory-mapped and searched by FAISS.

    segments/NAME/index.faiss   the vectors, once: a flat index, or an inverted file whose lists hold them
    segments/NAME/keys.npy      int64 (N,), the item of each row
    segments/NAME/labels.npy    int32 (N,), its class code, -1 = none

Rows are numbered in the order in which the vectors lie in the file: list after list. So the place of a row is
arithmetic, any row can be read back without a second copy or a table, and a flat index is one list.

Nothing here is ever changed by a search: effort and selection travel in FAISS `SearchParameters`.
"""

import ctypes
import hashlib
import os
from collections.abc import Callable
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any

import faiss as _faiss
import numpy as np
from numpy.typing import NDArray

from index.files import sha256_file, sync_folder
from index.knn import Integers, Vectors
from index.manifest import SEGMENT_FILES, SegmentEntry, damaged

faiss: Any = _faiss  # its stubs lack what its Python layer adds
Mask = NDArray[np.bool_]
Labels = NDArray[np.int32]
# Few enough allowed rows to compare each with the queries: cheaper than visiting lists, and exact.
GATHER_BELOW = 1024
# Few enough dead rows in a flat index to find and drop: FAISS multiplies matrices only without a selector.
SKIP_BELOW = 64


class Segment:
    """A memory-mapped segment. Safe to search from many threads at once."""

    def __init__(self, entry: SegmentEntry, index: Any, keys: Integers, labels: Labels) -> None:  # noqa: ANN401 - FAISS has no types
        self.entry, self.keys, self.labels = entry, keys, labels
        self._index = index
        self._starts, self._window, self._addresses = _layout(index, entry)

    @classmethod
    def open(cls, folder: Path, entry: SegmentEntry, dim: int, *, verify: bool = True) -> "Segment":
        """Map a segment into memory.

        Args:
            folder: that holds the segment's own folder.
            entry: from the manifest.
            dim: D.
            verify: compare the checksums before FAISS parses a byte (reads every byte once).

        Raises:
            BankDamagedError: a file is missing or is not what the manifest says.
        """
        home = folder / entry.name
        for name in SEGMENT_FILES:
            path = home / name
            if not path.is_file():
                raise damaged(path, "it is missing")
            if verify and sha256_file(path) != entry.files[name]:
                raise damaged(path, "the checksum does not match")
        try:
            index = faiss.read_index(str(home / "index.faiss"), faiss.IO_FLAG_MMAP_IFC)
            keys = np.load(home / "keys.npy", mmap_mode="r", allow_pickle=False)
            labels = np.load(home / "labels.npy", mmap_mode="r", allow_pickle=False)
        except (RuntimeError, ValueError, OSError) as error:  # only without verification
            raise damaged(home, str(error).splitlines()[0]) from error
        shape = (index.ntotal, index.d, keys.shape, labels.shape, keys.dtype.str, labels.dtype.str)
        if shape != (entry.count, dim, (entry.count,), (entry.count,), "<i8", "<i4"):
            raise damaged(home, f"expected {entry.count} vectors of {dim} components, got {shape}")
        return cls(entry, index, keys, labels)

    def __len__(self) -> int:
        return self.entry.count

    @cached_property
    def _by_key(self) -> Integers:
        return np.argsort(self.keys, kind="stable")

    def rows_of(self, keys: Integers) -> Integers:
        """Return the row of each key, -1 where this segment does not hold it: int64 (B,)."""
        if not len(self):
            return np.full(len(keys), -1, np.int64)
        places = np.searchsorted(self.keys, keys, sorter=self._by_key)
        rows = self._by_key[np.minimum(places, len(self) - 1)]
        return np.where(self.keys[rows] == keys, rows, -1)

    def vectors(self, rows: Integers) -> Vectors:
        """Read the stored vectors of some rows: float32 (B, D)."""
        lists = np.searchsorted(self._starts, rows, side="right") - 1
        width = self._window.dtype.itemsize
        codes = self._window[self._addresses[lists] + (rows - self._starts[lists]) * width]
        # The explicit copy makes the bytes contiguous and aligned before they are read as numbers.
        flat = np.frombuffer(codes.tobytes(), self.entry.precision)
        return flat.astype(np.float32).reshape(len(rows), self._index.d)

    def search(self, queries: Vectors, k: int, needed: int, *, effort: int | None, mask: Mask | None) -> Integers:
        """Find candidates for the nearest rows.

        Args:
            queries: float32 (B, D), unit rows.
            k: how many candidates to return, at most.
            needed: how many there must be, if so many rows are allowed: effort rises until there are.
            effort: lists to visit; None = all of them (exact).
            mask: bool (N,), which rows may be found; None = every row.

        Returns:
            int64 (B, k), rows in no promised order, -1 where there are fewer.
        """
        allowed = len(self) if mask is None else int(np.count_nonzero(mask))
        k = min(k, allowed)
        if mask is not None and allowed <= GATHER_BELOW:
            rows = np.flatnonzero(mask)
            best = np.argsort(-(queries @ self.vectors(rows).T), axis=1, kind="stable")
            return rows[best[:, :k]]
        if not self.entry.lists:
            return self._search_flat(queries, k, mask, len(self) - allowed)
        return self._search_lists(queries, k, min(needed, allowed), effort, mask, allowed)

    def _search_flat(self, queries: Vectors, k: int, mask: Mask | None, dead: int) -> Integers:
        if mask is None or dead <= SKIP_BELOW:
            rows: Integers = self._index.search(queries, k + dead)[1]
            if mask is None:
                return rows
            living_first = np.argsort(~mask[rows], axis=1, kind="stable")
            return np.take_along_axis(rows, living_first[:, :k], axis=1)
        found: Integers = self._index.search(queries, k, params=faiss.SearchParameters(sel=selector(mask)))[1]
        return found

    def _search_lists(
        self, queries: Vectors, k: int, needed: int, effort: int | None, mask: Mask | None, allowed: int
    ) -> Integers:
        options = {} if mask is None else {"sel": selector(mask)}
        lists = self.entry.lists
        # A rarer selection needs proportionally more lists to see as many candidates.
        probes = lists if effort is None else min(lists, -(-effort * len(self) // allowed))
        rows = np.full((len(queries), k), -1, np.int64)
        short = np.arange(len(queries))
        while len(short):
            parameters = faiss.SearchParametersIVF(nprobe=probes, **options)
            rows[short] = self._index.search(queries[short], k, params=parameters)[1]
            if probes == lists:
                break
            short = short[np.count_nonzero(rows[short] >= 0, axis=1) < needed]
            probes = min(lists, probes * 4)
        return rows


def set_threads(threads: int) -> None:
    """Set how many OpenMP threads a FAISS call of the calling thread uses: the setting belongs to each thread."""
    faiss.omp_set_num_threads(threads)


def set_batching(dim: int) -> None:
    """Let FAISS's flat search multiply matrices from eight queries on, in the whole process.

    FAISS 1.14.2 raised the threshold to 1000 queries at D = 128 (PR 5022, tuned on banks that fit the cache); on a
    bank that does not, a batch of 64 is four times slower for it. Below eight, one scan a query is faster.
    """
    faiss.cvar.distance_compute_blas_threshold = 8 * dim


def selector(mask: Mask) -> Any:  # noqa: ANN401 - FAISS has no types
    """Return the FAISS selector of the rows that may be found."""
    return faiss.IDSelectorBitmap(np.packbits(mask, bitorder="little"))


def write_segment(home: Path, index: Any, keys: Integers, labels: Labels) -> dict[str, str]:  # noqa: ANN401
    """Write a segment's files durably into the new folder `home`; return the SHA-256 of each.

    FAISS's own file writer reports a failing close on stderr only, so it writes through a Python file here.
    """
    home.mkdir()
    digests = {
        "index.faiss": _write(
            home / "index.faiss", lambda put: faiss.write_index(index, faiss.PyCallbackIOWriter(put))
        ),
        "keys.npy": _write(home / "keys.npy", lambda put: put(_npy(keys.astype("<i8")))),
        "labels.npy": _write(home / "labels.npy", lambda put: put(_npy(labels.astype("<i4")))),
    }
    sync_folder(home)
    sync_folder(home.parent)
    return digests


def _write(path: Path, produce: Callable[[Callable[[bytes], int]], object]) -> str:
    """Write what `produce` puts into a file, durably, and return its SHA-256 without reading it again."""
    digest = hashlib.sha256()
    with path.open("xb") as file:

        def put(part: bytes) -> int:
            digest.update(part)
            return file.write(part)

        produce(put)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _npy(array: NDArray[Any]) -> bytes:
    buffer = BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _layout(index: Any, entry: SegmentEntry) -> tuple[Integers, NDArray[np.void], Integers]:  # noqa: ANN401
    """Return where the codes lie: first row of each list, a window on all bytes, byte offset of each list."""
    if entry.lists:
        inverted = index.invlists
        if index.nlist != entry.lists:
            raise damaged(f"segment {entry.name}", f"expected {entry.lists} lists, got {index.nlist}")
        sizes = np.array([inverted.list_size(number) for number in range(index.nlist)], np.int64)
        # An empty list has no address.
        addresses = [int(inverted.get_codes(number)) if size else 0 for number, size in enumerate(sizes.tolist())]
        pointers = np.array(addresses, np.int64)
    else:
        sizes, pointers = np.array([index.ntotal], np.int64), np.array([int(index.codes.data())], np.int64)
    starts = np.concatenate([[0], np.cumsum(sizes)])
    width, filled = int(index.code_size), sizes > 0
    if not filled.any():
        return starts, np.empty(0, f"V{width}"), pointers
    first, last = int(pointers[filled].min()), int((pointers + sizes * width)[filled].max())
    # SAFETY: the memory belongs to `index`, which the Segment keeps alive; the window never leaves the Segment.
    region = (ctypes.c_uint8 * (last - first)).from_address(first)
    # Element i is the code that starts at byte i, so that one fancy index gathers codes from anywhere.
    window = np.ndarray((last - first - width + 1,), f"V{width}", memoryview(region), strides=(1,))
    return starts, window, pointers - first

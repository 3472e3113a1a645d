"""The memory bank: pictures' vectors and what is known of them, in one directory that survives anything.

    bank/manifest.json      what the segments are, whose vectors, how they are searched
    bank/catalog.sqlite     items, classes, and the journal of changes not yet in a segment
    bank/segments/NAME/     immutable vectors
    bank/writer.lock        held by the one process that writes

A change is one transaction: when the method returns, it is on disk, and the next search sees it. A compaction
writes a new segment that nobody knows, and commits by one transaction too; `manifest.json` follows by rename.
Searches use one immutable view, replaced by a single assignment, so they never wait for a change.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any, Self

from numpy.typing import NDArray

from index.changes import Inserted
from index.compaction import IndexChoice, adopted, compact, rounded
from index.cores import available_cores
from index.errors import BankReadOnlyError, ParameterError, VectorError
from index.files import write_atomically
from index.filters import Filter
from index.integrity import problems
from index.items import Item, check_items
from index.knn import normalise
from index.manifest import FLOAT16_ABOVE, EncoderIdentity, Manifest, Store
from index.open_bank import OpenBank
from index.opening import Opened, create_folder, load, open_folder
from index.segments import Segment, set_threads
from index.storage import MANIFEST, SEGMENTS, disk_errors, sweep
from index.view import Hits, View

__all__ = ["EncoderIdentity", "Filter", "Hits", "Item", "Manifest", "MemoryBank"]


class MemoryBank(OpenBank):
    """An open bank. Any number of threads may search it; changes are made one at a time.

    What can be asked of it is in `OpenBank`.
    """

    def __init__(self, path: Path, opened: Opened, *, verify: bool, threads: int) -> None:
        super().__init__(path, opened, verify=verify, threads=threads)
        self._changing, self._compacting = Lock(), Lock()

    # --- open and close ----------------------------------------------------------------------------------------

    @classmethod
    def create(cls, path: str | Path, *, encoder: EncoderIdentity, store: Store = "auto", threads: int = 1) -> Self:
        """Make an empty bank in a new or empty folder, and open it for writing.

        Args:
            path: the folder.
            encoder: whose vectors will come.
            store: precision of the stored vectors; "auto" is float32 up to 100,000 items and float16 above.
            threads: FAISS threads of one search. One is right for a service, whose own threads search in parallel.

        Raises:
            ParameterError: there is something in the folder.
        """
        return cls(Path(path), create_folder(Path(path), encoder, store), verify=True, threads=threads)

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        encoder: EncoderIdentity | None = None,
        read_only: bool = False,
        verify: bool = True,
        threads: int = 1,
    ) -> Self:
        """Open a bank; what a crash left is put right by the way.

        Args:
            path: the folder.
            encoder: refuse the bank unless this encoder made it.
            read_only: take no lock and write nothing. Later changes of a writer are not seen.
            verify: compare every checksum first (reads every byte once).
            threads: FAISS threads of one search, see `create`.

        Raises:
            BankNotFoundError: no bank there.
            BankDamagedError: a file is missing, truncated or changed.
            BankFormatError: written by a newer version.
            BankBusyError: somebody else writes.
            BankReadOnlyError: opened for writing where nothing can be written.
            EncoderMismatchError: made by another encoder.
        """
        folder = Path(path)
        bank = cls(folder, open_folder(folder, read_only=read_only), verify=verify, threads=threads)
        if encoder is not None:
            try:
                bank.encoder.check_same(encoder, folder)
            except BaseException:
                bank.close()
                raise
        return bank

    def close(self) -> None:
        """Let the next writer in. Searches that are under way finish; later calls raise BankError."""
        with self._compacting, self._changing:
            if self._view is not None:
                self._view = None
                self._opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def verify(self) -> list[str]:
        """Check everything; return what is wrong, one sentence each, so an empty list means sound."""
        with self._changing:
            return problems(self.path, self._catalog, self._current(), self.manifest)

    # --- change ------------------------------------------------------------------------------------------------

    def add(self, items: Sequence[Item], vectors: NDArray[Any]) -> None:
        """Add items, all or none.

        Args:
            items: with ids that are new.
            vectors: float (B, D), normalised here.

        Raises:
            ParameterError: an id exists, or an item is malformed.
            VectorError: wrong shape, not finite, or zero.
            StorageFullError, BankReadOnlyError: nothing was added.
        """
        self._insert(items, vectors, replacing=False)

    def upsert(self, items: Sequence[Item], vectors: NDArray[Any]) -> None:
        """Add items, all or none; an item with the same id is replaced. Raises as `add`."""
        self._insert(items, vectors, replacing=True)

    def _insert(self, items: Sequence[Item], vectors: NDArray[Any], *, replacing: bool) -> None:
        check_items(items)
        units = normalise(vectors, self.encoder.dim)
        if len(units) != len(items):
            raise VectorError(f"expected a vector for each of {len(items)} items, got {len(units)}")
        if not items:
            return
        with self._writing() as view:
            units = rounded(units, self.manifest.precision)
            with self._catalog.change() as change:
                existing = change.existing([item.id for item in items])
                if existing and not replacing:
                    raise ParameterError(
                        f"expected new ids, got {len(existing)} that are in the bank, first {existing[0][:80]!r}; "
                        "replace items with upsert"
                    )
                gone = change.remove(existing)
                new: Inserted = change.insert(items, units, view.class_names)
                generation = change.generation()
            rest = replace(view.without(gone), generation=generation, class_names=new.class_names)
            self._view = rest.with_added(new.keys, new.labels, units)

    def delete(self, ids: Sequence[str]) -> int:
        """Delete items, all or none; return their number.

        Raises:
            ItemNotFoundError: for the first unknown id; nothing is deleted.
        """
        ids = list(dict.fromkeys(ids))
        if not ids:
            return 0
        with self._writing() as view:
            with self._catalog.change() as change:
                gone, generation = change.remove(ids), change.generation()
            self._view = replace(view.without(gone), generation=generation)
        return len(ids)

    def compact(self, index: IndexChoice = "auto", *, merge: bool = True) -> None:
        """Turn the journal into a segment; searches and changes go on meanwhile.

        Args:
            index: "flat", "ivf", or by size.
            merge: merge all segments into the new one; otherwise it stands beside them.

        Raises:
            StorageFullError, BankReadOnlyError: nothing is lost, and searches go on; repeat it later.
        """
        if index not in {"auto", "flat", "ivf"}:
            raise ParameterError(f"expected the index auto, flat or ivf, got {index!r}")
        with self._compacting:
            with self._writing() as before:
                sequence = self._catalog.sequence()
                # What a failed compaction left goes first: its name may be needed again.
                sweep(self.path, {entry.name for entry in self.manifest.segments})
            manifest, layers = self.manifest, before.layers if merge else (before.pending,)
            grown = merge and manifest.store == "auto" and before.count > FLOAT16_ABOVE
            precision = "float16" if grown else manifest.precision
            home = self.path / SEGMENTS / f"g{before.generation + 1:010d}"
            set_threads(available_cores())
            with disk_errors(self.path):
                entry = compact(home, layers, before.dim, index=index, precision=precision)
            entries = () if entry is None else (entry,)
            if not merge:
                entries = (*manifest.segments, *entries)
            segment = None if entry is None else Segment.open(home.parent, entry, before.dim, verify=False)
            with self._writing() as current, disk_errors(self.path):
                view = adopted(current, segment, merge=merge)
                with self._catalog.change() as change:
                    view = replace(view, generation=change.generation())
                    manifest = replace(
                        manifest,
                        precision=precision,
                        generation=view.generation,
                        segments=entries,
                        class_names=view.class_names,
                    )
                    change.compacted(manifest.to_json(), sequence, everything=merge)
                self.manifest, self._view = manifest, view
                write_atomically(self.path / MANIFEST, manifest.to_json().encode())
                sweep(self.path, {entry.name for entry in entries})
                self._catalog.shrink()

    @contextmanager
    def _writing(self) -> Iterator[View]:
        """Be the one that changes the bank, from its latest view."""
        with self._changing:
            view = self._current()
            if self._opened.lock is None:
                raise BankReadOnlyError(f"expected a bank opened for writing, got {self.path} opened read-only")
            if self._catalog.generation() != view.generation:
                # An interrupt (Ctrl-C) fell between a commit and the new view.
                self.manifest, view = load(self.path, self._opened, verify=False)
                self._view = view
            yield view

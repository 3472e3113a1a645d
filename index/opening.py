"""From a directory to a searchable state: making a bank's folder, opening it, and undoing what a crash left."""

from dataclasses import dataclass
from pathlib import Path

from index.catalog import CATALOG, Catalog
from index.errors import BankDamagedError, BankNotFoundError, ParameterError
from index.files import sync_folder, write_atomically
from index.manifest import EncoderIdentity, Manifest, Store, damaged
from index.segments import Segment
from index.storage import LOCK, MANIFEST, SEGMENTS, WriterLock, disk_errors, sweep
from index.view import Layer, Pending, View

_OURS = {LOCK, SEGMENTS, CATALOG, f"{CATALOG}-wal", f"{CATALOG}-shm"}  # what an interrupted creation may leave
_PATIENCE = 5  # times that a reader starts again because a writer's compaction overtook it


@dataclass(frozen=True)
class Opened:
    """What a bank holds on to: its catalogue, and the writer's lock unless it only reads."""

    catalog: Catalog
    lock: WriterLock | None

    def close(self) -> None:
        """Close the catalogue, then let the next writer in."""
        self.catalog.close()
        if self.lock is not None:
            self.lock.release()


def create_folder(folder: Path, encoder: EncoderIdentity, store: Store) -> Opened:
    """Make an empty bank; see MemoryBank.create."""
    if store not in {"auto", "float32", "float16"}:
        raise ParameterError(f"expected the store auto, float32 or float16, got {store!r}")
    if folder.exists() and not (folder.is_dir() and {entry.name for entry in folder.iterdir()} <= _OURS):
        raise ParameterError(f"expected a new or empty folder for the bank, got {folder}; choose another")
    with disk_errors(folder):
        (folder / SEGMENTS).mkdir(parents=True, exist_ok=True)
    lock = WriterLock(folder)
    try:
        _check_absent(folder)
        manifest = Manifest(encoder, store, "float16" if store == "float16" else "float32")
        with disk_errors(folder):
            sync_folder(folder.absolute().parent)
            catalog = Catalog.create(folder, manifest.to_json())
            sync_folder(folder)
    except BaseException:
        lock.release()
        raise
    return Opened(catalog, lock)


def open_folder(folder: Path, *, read_only: bool) -> Opened:
    """Open an existing bank; see MemoryBank.open."""
    catalog, manifest = folder / CATALOG, folder / MANIFEST
    if not catalog.is_file():
        if manifest.is_file():
            raise damaged(catalog, "it is missing")
        raise BankNotFoundError(f"expected a memory bank, got {folder}; make one with: python -m index build")
    lock = None if read_only else WriterLock(folder)
    try:
        if not manifest.is_file():
            _check_created(folder)
        return Opened(Catalog.open(folder, read_only=read_only), lock)
    except BaseException:
        if lock is not None:
            lock.release()
        raise


def _check_absent(folder: Path) -> None:
    if Catalog.present(folder):
        raise ParameterError(f"expected a new or empty folder for the bank, got the bank {folder}; open that")


def _check_created(folder: Path) -> None:
    if not Catalog.present(folder):
        raise BankNotFoundError(
            f"expected a memory bank, got {folder}, whose creation was interrupted; "
            "make it again with: python -m index build"
        )


def load(folder: Path, opened: Opened, *, verify: bool) -> tuple[Manifest, View]:
    """Read the committed state; with the writer's lock, also finish what a crash interrupted.

    Args:
        folder: of the bank.
        opened: its catalogue and lock.
        verify: compare the segments' checksums, and let SQLite check the catalogue's structure.

    Raises:
        BankDamagedError: a file is not what was written.
    """
    if verify and (found := opened.catalog.problems(quick=True)):
        raise damaged(folder / CATALOG, found[0])
    for patience in reversed(range(_PATIENCE)):
        ledger = opened.catalog.load()
        manifest = ledger.manifest
        try:
            stale = _is_stale(folder / MANIFEST, manifest)
            segments = [
                Segment.open(folder / SEGMENTS, entry, manifest.encoder.dim, verify=verify)
                for entry in manifest.segments
            ]
            break
        except (BankDamagedError, FileNotFoundError):
            # A writer's compaction may have replaced the files between the two reads.
            if not patience or opened.catalog.load().manifest == manifest:
                raise
    if opened.lock is not None:
        with disk_errors(folder):
            if stale:
                write_atomically(folder / MANIFEST, manifest.to_json().encode())
            sweep(folder, {entry.name for entry in manifest.segments})
    view = View(
        generation=ledger.generation,
        class_names=ledger.class_names,
        segments=tuple(Layer(segment) for segment in segments),
        pending=Layer(Pending(ledger.keys, ledger.labels, ledger.vectors)),
        dim=manifest.encoder.dim,
    )
    if len(ledger.deleted):
        view = view.without(ledger.deleted)
    if view.count != ledger.items:
        raise damaged(folder / CATALOG, f"{ledger.items} items for {view.count} vectors")
    return manifest, view


def _is_stale(path: Path, committed: Manifest) -> bool:
    """Tell whether `manifest.json` is that of before the last commit, which a crash kept from following."""
    if not path.is_file():
        return True
    written = Manifest.from_json(path.read_bytes(), path)
    if written == committed:
        return False
    if written.generation >= committed.generation:
        raise damaged(path, f"generation {written.generation}, and the catalogue's is {committed.generation}")
    return True

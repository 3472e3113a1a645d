"""SQLite connections: one that writes, a pool that reads, and SQLite's failures in our words."""

import sqlite3
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from index.errors import BankBusyError, BankDamagedError, BankReadOnlyError, LookalikeError, StorageFullError
from index.manifest import damaged

Run = Callable[..., sqlite3.Cursor]
_WAIT = 30.0  # seconds for a lock that another process holds only for the length of a commit
_APPLICATION = 0x4C4F4F4B  # "LOOK": file(1) and a curious hex dump can tell what this is


class Database:
    """One SQLite file in write-ahead mode. Readers never wait for the writer, nor the writer for them."""

    def __init__(self, path: Path, *, read_only: bool, create: bool = False) -> None:
        self.path = path
        self._immutable = False
        self._idle: deque[sqlite3.Connection] = deque()
        self._closed = False
        with self._in_our_words():
            if read_only:
                self._immutable = self._must_be_immutable()
                self._writer = None
            else:
                self._writer = self._connect("rwc" if create else "rw")
                try:
                    if create:
                        # Before the first page is written, or it has no effect; see shrink.
                        self._writer.execute("PRAGMA auto_vacuum = INCREMENTAL")
                        self._writer.execute(f"PRAGMA application_id = {_APPLICATION}")
                    self._writer.execute("PRAGMA journal_mode = WAL")
                    # A commit is an fsync of the log: what was acknowledged survives a power cut.
                    self._writer.execute("PRAGMA synchronous = FULL")
                except BaseException:
                    self._writer.close()
                    raise

    def close(self) -> None:
        """Close every connection; the last one that closes folds the log into the file."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()
        if self._writer is not None:
            self._writer.close()

    @contextmanager
    def reading(self) -> Iterator[Run]:
        """Lend a connection of its own to the calling thread."""
        with self._in_our_words():
            try:
                connection = self._idle.pop()
            except IndexError:
                connection = self._connect("ro")
            try:
                yield connection.execute
            finally:
                if connection.in_transaction:
                    connection.rollback()
                if self._closed:
                    connection.close()
                else:
                    self._idle.append(connection)

    @contextmanager
    def transaction(self) -> Iterator[Run]:
        """Run the block as one change: on disk when it ends, undone when it raises. One at a time."""
        if self._writer is None:
            raise BankReadOnlyError(f"expected a bank opened for writing, got {self.path.parent} opened read-only")
        with self._in_our_words():
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield self._writer.execute
                self._writer.execute("COMMIT")
            except BaseException:
                if self._writer.in_transaction:  # a full disk may have ended it already
                    self._writer.execute("ROLLBACK")
                raise

    def shrink(self) -> None:
        """Give free pages back to the disk, and empty the log into the file; a reader may keep the log for now."""
        if self._writer is not None:
            with self._in_our_words():
                self._writer.executescript("PRAGMA incremental_vacuum")  # execute would free one page only
                self._writer.execute("PRAGMA busy_timeout = 0")  # a reader of the log is not worth waiting for
                self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
                self._writer.execute(f"PRAGMA busy_timeout = {_WAIT * 1000:.0f}")

    def _connect(self, mode: str) -> sqlite3.Connection:
        suffix = "&immutable=1" if self._immutable else ""
        connection = sqlite3.connect(
            f"file:{quote(str(self.path.absolute()))}?mode={mode}{suffix}",
            uri=True,
            timeout=_WAIT,
            isolation_level=None,  # transactions begin and end where we say
            check_same_thread=False,  # the pool lends a connection to one thread at a time
        )
        connection.execute("PRAGMA temp_store = MEMORY")
        return connection

    def _must_be_immutable(self) -> bool:
        """Tell whether the file lies where not even the log's index can be made: a read-only volume.

        Only then, and only without a log, it is safe to read the file without any lock.
        """
        connection = self._connect("ro")
        try:
            connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        except sqlite3.OperationalError as error:
            log = self.path.with_name(self.path.name + "-wal")
            name = getattr(error, "sqlite_errorname", "")
            if not name.startswith(("SQLITE_CANTOPEN", "SQLITE_READONLY")) or not self.path.is_file():
                raise
            if log.exists() and log.stat().st_size:
                raise BankReadOnlyError(
                    f"expected a bank that was closed in order, got {self.path.parent} with changes in its log "
                    "on a read-only volume; open it once where it can be written"
                ) from error
            return True
        finally:
            connection.close()
        return False

    @contextmanager
    def _in_our_words(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.ProgrammingError:
            raise  # a bug of ours
        except sqlite3.DatabaseError as error:
            raise _translated(error, self.path) from error


def _translated(error: sqlite3.DatabaseError, path: Path) -> LookalikeError:
    name = getattr(error, "sqlite_errorname", "")
    if name.startswith("SQLITE_FULL"):
        return StorageFullError(
            f"expected room for the change in {path.parent}, got a full disk; free some and repeat"
        )
    if name.startswith("SQLITE_READONLY"):
        return BankReadOnlyError(f"expected a folder that can be written, got {path.parent}: {error}")
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return BankBusyError(f"expected {path} to be free within {_WAIT:.0f} s, got: {error}")
    if name.startswith("SQLITE_CANTOPEN") and not path.exists():
        return BankDamagedError(f"expected {path}, got no such file; restore it from a copy")
    return damaged(path, str(error))

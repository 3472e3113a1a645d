"""The catalogue: what every item is, which changes are not yet in a segment, and the one commit point.

SQLite with a write-ahead log and synchronous=FULL: a change is on disk when `transaction` returns. Vectors of
added items wait in the journal until a compaction moves them into a segment; deleted keys wait there until no
segment holds them. A key is given once and never again, also to the successor of a replaced item, so that
whatever an older view of the bank finds can still be looked up, or is known to be gone.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np

from index.changes import Change, item_crc
from index.database import Database, Run
from index.errors import BankFormatError, ItemNotFoundError, ParameterError
from index.filters import Filter, storable
from index.items import Item
from index.journal import Ledger, read_ledger
from index.knn import Integers
from index.manifest import FORMAT_VERSION, damaged

CATALOG = "catalog.sqlite"

_SCHEMA = """
CREATE TABLE state (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE classes (code INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, crc INTEGER NOT NULL);
CREATE TABLE items (
    key INTEGER PRIMARY KEY AUTOINCREMENT,      -- never reused
    id TEXT NOT NULL UNIQUE,
    uri TEXT,
    label INTEGER REFERENCES classes (code),
    metadata TEXT NOT NULL,                     -- a JSON object
    sha256 TEXT,                                -- of the picture's bytes
    crc INTEGER NOT NULL                        -- CRC-32 of all the above and the class name
);
CREATE INDEX items_by_label ON items (label, id);
CREATE TABLE journal (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    op TEXT NOT NULL CHECK (op IN ('add', 'delete')),
    key INTEGER NOT NULL,
    vector BLOB,                                -- float32 little-endian (D,), only for 'add'
    crc INTEGER NOT NULL                        -- CRC-32 of op, key, class code and vector
);
CREATE INDEX journal_by_key ON journal (key);
"""
_COLUMNS = "items.key, items.id, items.uri, items.label, classes.name, items.metadata, items.sha256, items.crc"
_SELECT = f"SELECT {_COLUMNS} FROM items LEFT JOIN classes ON classes.code = items.label "  # noqa: S608 - constants


class Catalog:
    """Items, classes and journal of one bank. Reads may come from any thread; writes one at a time."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._path = database.path

    @classmethod
    def create(cls, folder: Path, manifest: str) -> Self:
        """Make the catalogue of a new bank, in one transaction: it exists whole or not at all."""
        database = Database(folder / CATALOG, read_only=False, create=True)
        with database.transaction() as run:
            for statement in _SCHEMA.split(";\n"):
                run(statement)
            rows = (("format_version", str(FORMAT_VERSION)), ("generation", "0"), ("manifest", manifest))
            for row in rows:
                run("INSERT INTO state VALUES (?, ?)", row)
        return cls(database)

    @staticmethod
    def present(folder: Path) -> bool:
        """Tell whether the folder holds a catalogue; what an interrupted creation left is none."""
        path = folder / CATALOG
        if not path.is_file():
            return False
        database = Database(path, read_only=True)
        try:
            with database.reading() as run:
                return bool(run("SELECT count(*) FROM sqlite_schema").fetchone()[0])
        finally:
            database.close()

    @classmethod
    def open(cls, folder: Path, *, read_only: bool) -> Self:
        """Open an existing catalogue and check its format.

        Raises:
            BankFormatError: written by a newer version.
            BankDamagedError: not a catalogue, or unreadable.
        """
        database = Database(folder / CATALOG, read_only=read_only)
        try:
            _check_format(database)
        except BaseException:
            database.close()
            raise
        return cls(database)

    def close(self) -> None:
        """Close every connection."""
        self._database.close()

    def load(self) -> Ledger:
        """Read the state of one instant; every journal entry is checked.

        Raises:
            BankDamagedError: a journal entry or the class table is not what was written.
        """
        with self._database.reading() as run:
            return read_ledger(run, self._path)

    def shrink(self) -> None:
        """Give the room of what a compaction moved out of the journal back to the disk."""
        self._database.shrink()

    # --- changes -----------------------------------------------------------------------------------------------

    @contextmanager
    def change(self) -> Iterator[Change]:
        """Open a transaction; when the block ends without an error, its changes are on disk."""
        with self._database.transaction() as run:
            run("UPDATE state SET value = value + 1 WHERE key = 'generation'")
            yield Change(run)

    # --- reads -------------------------------------------------------------------------------------------------

    def generation(self) -> int:
        """Return the number of changes ever committed."""
        with self._database.reading() as run:
            return int(run("SELECT value FROM state WHERE key = 'generation'").fetchone()[0])

    def sequence(self) -> int:
        """Return the number of the last journal entry."""
        with self._database.reading() as run:
            return _last(run)

    def known(self, ids: Iterable[str]) -> set[str]:
        """Return those ids that an item has."""
        with self._database.reading() as run:
            return {id_ for id_ in ids if run("SELECT 1 FROM items WHERE id = ?", (_searchable(id_),)).fetchone()}

    def items(self, keys: Iterable[int]) -> list[Item | None]:
        """Look up items by key; None where the item has gone."""
        with self._database.reading() as run:
            rows = [run(_SELECT + "WHERE items.key = ?", (int(key),)).fetchone() for key in keys]
        return [None if row is None else self._item(row) for row in rows]

    def get(self, ids: Sequence[str]) -> list[Item]:
        """Look up items by id.

        Raises:
            ItemNotFoundError: for the first unknown id.
        """
        with self._database.reading() as run:
            rows = [run(_SELECT + "WHERE items.id = ?", (_searchable(id_),)).fetchone() for id_ in ids]
        for id_, row in zip(ids, rows, strict=True):
            if row is None:
                raise _not_found(id_)
        return [self._item(row) for row in rows]

    def keys_of(self, ids: Sequence[str | None]) -> Integers:
        """Return the key of each id, -1 for None and for an unknown one: int64 (B,)."""
        with self._database.reading() as run:
            rows = [
                None if id_ is None else run("SELECT key FROM items WHERE id = ?", (_searchable(id_),)).fetchone()
                for id_ in ids
            ]
        return np.array([-1 if row is None else row[0] for row in rows], np.int64)

    def page(self, label: str | None, limit: int, after: str | None) -> list[Item]:
        """List items in the order of their ids, those of one label if given, from behind the id `after`."""
        if limit < 1:
            raise ParameterError(f"expected a limit of at least 1, got {limit}")
        where, parameters = "WHERE items.id > ?", ["" if after is None else _searchable(after)]
        if label is not None:
            where += " AND items.label = (SELECT code FROM classes WHERE name = ?)"
            parameters.append(_searchable(label))
        with self._database.reading() as run:
            rows = run(_SELECT + where + " ORDER BY items.id LIMIT ?", (*parameters, limit)).fetchall()
        return [self._item(row) for row in rows]

    def matching(self, wanted: Filter, codes: Sequence[int] | None) -> Integers:
        """Return the keys of all items that fulfil a filter's metadata conditions: int64, ascending."""
        where, parameters = wanted.sql()
        if codes is not None:  # labels first: an index finds them
            where = f"label IN ({','.join(str(int(code)) for code in codes)}) AND {where}"
        with self._database.reading() as run:
            rows = run(f"SELECT key FROM items WHERE {where} ORDER BY key", parameters).fetchall()  # noqa: S608 - see Filter.sql
        return np.array(rows, np.int64).reshape(-1)

    def label_counts(self) -> dict[str, int]:
        """Return the number of items of each label, in the order of their codes; unlabelled ones are not in it."""
        with self._database.reading() as run:
            rows = run(
                "SELECT name, (SELECT count(*) FROM items WHERE label = code) FROM classes ORDER BY code"
            ).fetchall()
        return {name: count for name, count in rows if count}

    def shas(self) -> set[str]:
        """Return the checksums of all pictures that the bank knows."""
        with self._database.reading() as run:
            return {row[0] for row in run("SELECT sha256 FROM items WHERE sha256 IS NOT NULL")}

    def labels_by_key(self) -> dict[int, int]:
        """Return key → class code (-1 = none) of every item, each row checked."""
        with self._database.reading() as run:
            labels = {}
            for row in run(_SELECT):
                self._item(row)
                labels[row[0]] = -1 if row[3] is None else row[3]
            return labels

    def problems(self, *, quick: bool = False) -> list[str]:
        """Let SQLite check its own structure; an empty list means sound."""
        with self._database.reading() as run:
            rows = run(f"PRAGMA {'quick_check' if quick else 'integrity_check'}(10)").fetchall()
        return [f"{CATALOG}: {' '.join(row[0].split())}" for row in rows if row[0] != "ok"]

    def _item(self, row: Sequence[Any]) -> Item:
        key, id_, uri, code, label, metadata, sha256, crc = row
        if crc != item_crc(key, id_, uri, code, metadata, sha256, label):
            raise damaged(self._path, f"the row of key {key} does not match its checksum")
        return Item(id_, uri, label, json.loads(metadata), sha256)


def _check_format(database: Database) -> None:
    with database.reading() as run:
        row = run("SELECT value FROM state WHERE key = 'format_version'").fetchone()
    if row is None or not str(row[0]).isdecimal():
        raise damaged(database.path, "no format version")
    if int(row[0]) > FORMAT_VERSION:
        raise BankFormatError(
            f"expected bank format {FORMAT_VERSION} or older in {database.path.parent}, got {row[0]}; "
            "use the newer Lookalike that wrote it"
        )


def _last(run: Run) -> int:
    return int(run("SELECT coalesce(max(seq), 0) FROM journal").fetchone()[0])


def _searchable(id_: str) -> str:
    """Return the text, or nothing that could be found if SQLite cannot hold it."""
    return id_ if storable(id_) else ""


def _not_found(id_: str) -> ItemNotFoundError:
    return ItemNotFoundError(f"expected the id of an item, got {id_[:80]!a}, which is not in the bank")

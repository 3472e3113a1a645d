"""What a transaction may do to the catalogue: insert, remove, and record a compaction."""

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from index.database import Run
from index.errors import ItemNotFoundError
from index.filters import storable
from index.items import Item, metadata_text
from index.knn import Integers, Vectors


@dataclass(frozen=True)
class Inserted:
    """What an insertion gave out.

    Attributes:
        keys: int64 (B,), one an item.
        labels: int32 (B,), class codes; -1 = none.
        class_names: all names since, position = class code.
    """

    keys: Integers
    labels: NDArray[np.int32]
    class_names: tuple[str, ...]


class Change:
    """One open transaction on the catalogue."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def generation(self) -> int:
        """Return the generation that this change makes."""
        return int(self._run("SELECT value FROM state WHERE key = 'generation'").fetchone()[0])

    def existing(self, ids: Sequence[str]) -> list[str]:
        """Return those ids that an item has."""
        return [id_ for id_ in ids if self._key(id_) is not None]

    def insert(self, items: Sequence[Item], vectors: Vectors, class_names: Sequence[str]) -> Inserted:
        """Add items, whose ids are free, and their vectors (B, D) to the catalogue and the journal.

        Args:
            items: checked.
            vectors: float32 (B, D), unit rows, rounded to the bank's precision.
            class_names: the known ones; new ones are appended in the order of first use.
        """
        codes = {name: code for code, name in enumerate(class_names)}
        last = self._run("SELECT seq FROM sqlite_sequence WHERE name = 'items'").fetchone()
        first = 1 if last is None else int(last[0]) + 1  # never below a key that was ever given
        keys, labels = np.empty(len(items), np.int64), np.empty(len(items), np.int32)
        for position, (item, vector) in enumerate(zip(items, vectors, strict=True)):
            code = None if item.label is None else codes.get(item.label)
            if item.label is not None and code is None:
                code = codes[item.label] = len(codes)
                self._run("INSERT INTO classes VALUES (?, ?, ?)", (code, item.label, class_crc(code, item.label)))
            metadata = metadata_text(item)
            row = (first + position, item.id, item.uri, code, metadata, item.sha256)
            self._run("INSERT INTO items VALUES (?, ?, ?, ?, ?, ?, ?)", (*row, item_crc(*row, item.label)))
            self._record("add", first + position, code, vector.astype("<f4").tobytes())
            keys[position], labels[position] = first + position, -1 if code is None else code
        return Inserted(keys, labels, tuple(codes))

    def remove(self, ids: Sequence[str]) -> Integers:
        """Remove items and return their keys, int64 (B,).

        Raises:
            ItemNotFoundError: for the first unknown id.
        """
        keys = np.empty(len(ids), np.int64)
        for position, id_ in enumerate(ids):
            key = self._key(id_)
            if key is None:
                raise ItemNotFoundError(f"expected the id of an item, got {id_[:80]!a}, which is not in the bank")
            self._run("DELETE FROM items WHERE key = ?", (key,))
            self._run("DELETE FROM journal WHERE key = ?", (key,))
            # Also for an item that no segment holds yet: a compaction may be writing it at this moment.
            self._record("delete", key, None, None)
            keys[position] = key
        return keys

    def compacted(self, manifest: str, sequence: int, *, everything: bool) -> None:
        """Record that a new segment holds the journal's additions up to `sequence`.

        Args:
            manifest: the text that is true from now on.
            sequence: last journal entry that the compaction saw.
            everything: all older segments were merged too, so that the deletions up to there are done.
        """
        self._run("DELETE FROM journal WHERE seq <= ? AND (op = 'add' OR ?)", (sequence, everything))
        self._run("UPDATE state SET value = ? WHERE key = 'manifest'", (manifest,))

    def _key(self, id_: str) -> int | None:
        if not storable(id_):
            return None
        row = self._run("SELECT key FROM items WHERE id = ?", (id_,)).fetchone()
        return None if row is None else int(row[0])

    def _record(self, op: str, key: int, code: int | None, vector: bytes | None) -> None:
        row = (op, key, vector, journal_crc(op, key, code, vector))
        self._run("INSERT INTO journal (op, key, vector, crc) VALUES (?, ?, ?, ?)", row)


def item_crc(*row: object) -> int:
    """Return the CRC-32 of an item's row and its label: SQLite checks its structure, but not its content."""
    return zlib.crc32(json.dumps(row, default=repr).encode())  # a damaged row may hold bytes


def journal_crc(op: object, key: object, code: object, vector: object) -> int:
    """Return the CRC-32 of a journal entry: SQLite checks its structure, but not its content."""
    return zlib.crc32(vector if isinstance(vector, bytes) else b"", zlib.crc32(f"{op} {key} {code}".encode()))


def class_crc(code: object, name: object) -> int:
    """Return the CRC-32 of a class."""
    return zlib.crc32(f"{code} {name!s}".encode())

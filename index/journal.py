"""The journal: changes that are on disk but in no segment yet, and how they are read back when a bank opens."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from index.changes import class_crc, journal_crc
from index.database import Run
from index.knn import Integers, Vectors
from index.manifest import Manifest, damaged


@dataclass(frozen=True)
class Ledger:
    """The catalogue's state at one instant, without the items.

    Attributes:
        manifest: the committed one.
        generation: number of changes ever committed.
        items: number of items.
        class_names: position = class code.
        keys, labels, vectors: the journal's living additions, int64 (P,), int32 (P,), float32 (P, D).
        deleted: int64, deleted keys that a segment may still hold.
    """

    manifest: Manifest
    generation: int
    items: int
    class_names: tuple[str, ...]
    keys: Integers
    labels: NDArray[np.int32]
    vectors: Vectors
    deleted: Integers


def read_ledger(run: Run, path: Path) -> Ledger:
    """Read the state of one instant; see Catalog.load."""
    run("BEGIN")  # one snapshot for all that follows; whoever lent the connection ends it
    state = dict(run("SELECT key, value FROM state").fetchall())
    classes = run("SELECT code, name, crc FROM classes ORDER BY code").fetchall()
    items = int(run("SELECT count(*) FROM items").fetchone()[0])
    journal = run(
        "SELECT op, journal.key, vector, journal.crc, items.label FROM journal "
        "LEFT JOIN items ON items.key = journal.key ORDER BY seq"
    ).fetchall()
    manifest = Manifest.from_json(state.get("manifest", ""), path)
    dim = manifest.encoder.dim
    added: list[tuple[int, int, bytes]] = []
    deleted: list[int] = []
    for op, key, vector, crc, label in journal:
        if crc != journal_crc(op, key, label, vector) or (op == "add" and len(vector) != 4 * dim):
            raise damaged(path, f"the journal entry of key {key} does not match its checksum")
        if op == "add":
            added.append((key, -1 if label is None else label, vector))
        else:
            deleted.append(key)
    for place, (code, name, crc) in enumerate(classes):
        if code != place or crc != class_crc(code, name):
            raise damaged(path, f"class {code} does not match its checksum")
    if not str(state.get("generation")).isdecimal():
        raise damaged(path, "the generation is missing")
    vectors = np.frombuffer(b"".join(vector for *_, vector in added), "<f4").reshape(-1, dim)
    return Ledger(
        manifest=manifest,
        generation=int(state["generation"]),
        items=items,
        class_names=tuple(name for _, name, _ in classes),
        keys=np.array([key for key, *_ in added], np.int64),
        labels=np.array([label for _, label, _ in added], np.int32),
        vectors=vectors.astype(np.float32),
        deleted=np.array(deleted, np.int64),
    )

"""Decoded pictures on disk, for sets that do not fit into memory: decoded once, read by every epoch.

    FOLDER/KEY/
      cached.bin      uint8 (N, 3, S, S), what views are cut from
      prepared.bin    uint8 (N, H, H, 3), what the encoder sees
      journal.jsonl   what the rows are; a line a chunk, and a last one when all is done

A chunk's rows are on disk before its line is. Killed at any instant, the same command cuts the files back to what
the journal knows and decodes on from there. Broken pictures take no row; the journal keeps why.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from index.errors import TrainingError
from index.files import sync_folder
from index.images import Pixels
from index.progress import Progress
from index.sources import Source
from training.decoding import DIGEST, Decoded, Geometry, Workers, decode, decode_all

_FORMAT = 1
_CHUNK_BYTES = 64 * 2**20  # a kill loses at most this much decoding
_PROBE = 16  # pictures that are decoded again to see whether a cache is still theirs


@dataclass
class _Journal:
    """What is known of the rows in order, as in `Decoded`."""

    ids: list[str] = field(default_factory=list)
    labels: list[str | None] = field(default_factory=list)
    digests: bytearray = field(default_factory=bytearray)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    enlarged: int = 0
    length: int = 0
    complete: bool = False

    @property
    def seen(self) -> int:
        return len(self.ids) + len(self.skipped)


def open_cache(
    source: Source,
    geometry: Geometry,
    folder: Path,
    place: Path | str,
    *,
    workers: Workers = "auto",
    cores: int = 1,
) -> Decoded:
    """Return a source's decoded pictures from a folder, decoding those that it does not hold yet.

    Of several processes that ask, one decodes and the others wait.

    Args:
        source: the pictures.
        geometry: the sizes.
        folder: holds a cache for each set and geometry.
        place: where the source came from; part of the key.
        workers: see `decoding.decode_all`.
        cores: how many to use.

    Returns:
        The pictures that could be used; `cached` and `prepared` are read-only memory maps (empty arrays for none).

    Raises:
        TrainingError: no room, not writable, damaged, or made of pictures that have changed since.
    """
    here = folder / _key(source, geometry, place)
    try:
        here.mkdir(parents=True, exist_ok=True)
        with _locked(here / "lock"):
            journal = _read_journal(here / "journal.jsonl")
            _check(here, journal, source, geometry)
            if not journal.complete:
                _fill(here, journal, source, geometry, workers=workers, cores=cores)
    except OSError as error:
        raise TrainingError(
            f"expected room for decoded pictures in {here}, got: {error.strerror or error}; what is decoded is "
            "kept: make room, or move the folder and give its new place with --cache; the same command goes on"
        ) from error
    return _map(here, journal, geometry)


def _fill(
    here: Path, journal: _Journal, source: Source, geometry: Geometry, *, workers: Workers, cores: int
) -> None:
    """Decode what the journal does not know yet."""
    left = (len(source) - journal.seen) * geometry.bytes_per_picture
    free = shutil.disk_usage(here).free
    if left > free:
        raise TrainingError(
            f"expected {left / 2**30:,.1f} GiB free in {here} for {len(source):,} decoded pictures, got "
            f"{free / 2**30:,.1f} GiB; make room, give --cache on a larger disk, or --set cache_size=, image_size="
        )
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context((here / name).open("ab")) for name in ("cached.bin", "prepared.bin")]
        log = stack.enter_context((here / "journal.jsonl").open("ab"))
        for file, size in zip((*files, log), _lengths(journal, geometry), strict=True):
            file.truncate(size)  # what a kill left behind the last line
        sync_folder(here)
        progress = stack.enter_context(Progress("decoding", len(source), already=journal.seen))
        decoded = decode_all(source, geometry, start=journal.seen, workers=workers, cores=cores)
        stack.enter_context(contextlib.closing(decoded))
        for chunk in _chunks(decoded):
            for part in chunk:
                files[0].write(part.cached.data)
                files[1].write(part.prepared.data)
            for file in files:
                _sync(file)
            for part in chunk:
                _note(log, journal, part)
                progress.advance(part.seen)
            _sync(log)
        log.write(b'{"complete": true}\n')
        _sync(log)
    journal.complete = True


def _chunks(decoded: Iterable[Decoded]) -> Iterator[list[Decoded]]:
    chunk: list[Decoded] = []
    for part in decoded:
        chunk.append(part)
        if sum(done.cached.nbytes + done.prepared.nbytes for done in chunk) >= _CHUNK_BYTES:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _note(log: BinaryIO, journal: _Journal, part: Decoded) -> None:
    """Write down what some rows are."""
    digests = part.digests.tobytes()
    line: dict[str, Any] = {
        "ids": part.ids,
        "labels": part.labels,
        "digests": digests.hex(),
        "skipped": part.skipped,
    }
    line |= {"enlarged": part.enlarged}
    log.write(json.dumps(line).encode() + b"\n")
    _add(journal, line)


def _add(journal: _Journal, line: Mapping[str, Any]) -> None:
    journal.ids += line["ids"]
    journal.labels += line["labels"]
    journal.digests += bytes.fromhex(line["digests"])
    journal.skipped += [(name, reason) for name, reason in line["skipped"]]
    journal.enlarged += line["enlarged"]


def _read_journal(path: Path) -> _Journal:
    """Read as far as the lines are whole: a kill, or a power cut, may have left a part of one."""
    journal = _Journal()
    if not path.exists():
        return journal
    with path.open("rb") as file:
        for text in file:
            try:
                line = json.loads(text)
                if text[-1:] != b"\n":
                    break
                if line.get("complete"):
                    journal.complete = True
                else:
                    _add(journal, line)
            except (ValueError, KeyError, TypeError):
                break
            journal.length += len(text)
    return journal


def _check(here: Path, journal: _Journal, source: Source, geometry: Geometry) -> None:
    """Raise unless the files hold what the journal says, and the source's first pictures are still the same."""
    for name, size in zip(("cached.bin", "prepared.bin"), _lengths(journal, geometry), strict=False):
        found = (here / name).stat().st_size if (here / name).exists() else 0
        if found < size:
            raise TrainingError(
                f"expected {size:,} bytes in {here / name}, got {found:,}; delete {here} to decode the "
                "pictures again"
            )
    count = min(_PROBE, journal.seen)
    now = decode(list(islice(source, count)), geometry)
    rows = len(now.ids)
    same = (now.ids, now.labels, now.digests.tobytes()) == (
        tuple(journal.ids[:rows]),
        tuple(journal.labels[:rows]),
        bytes(journal.digests[: rows * DIGEST]),
    )
    if not same or (journal.complete and journal.seen != len(source)):
        raise TrainingError(
            f"expected the pictures that {here} was decoded from, got others under the same names (or another "
            "version of the decoder); delete it to decode them again"
        )


def _lengths(journal: _Journal, geometry: Geometry) -> tuple[int, int, int]:
    """Return how long the two files of pictures and the journal are, in bytes."""
    rows = len(journal.ids)
    return rows * 3 * geometry.cached.crop**2, rows * 3 * geometry.prepared.crop**2, journal.length


def _map(here: Path, journal: _Journal, geometry: Geometry) -> Decoded:
    rows, side, size = len(journal.ids), geometry.cached.crop, geometry.prepared.crop

    def mapped(name: str, shape: tuple[int, ...]) -> Pixels:
        # Read-only: a private, writable map of more than the memory would be refused by the kernel.
        return np.memmap(here / name, np.uint8, "r", shape=shape) if rows else np.empty(shape, np.uint8)

    return Decoded(
        cached=mapped("cached.bin", (rows, 3, side, side)),
        prepared=mapped("prepared.bin", (rows, size, size, 3)),
        digests=np.frombuffer(bytes(journal.digests), np.uint8).reshape(rows, DIGEST),
        ids=tuple(journal.ids),
        labels=tuple(journal.labels),
        skipped=tuple(journal.skipped),
        enlarged=journal.enlarged,
    )


def _key(source: Source, geometry: Geometry, place: Path | str) -> str:
    """Return the name of a set of pictures in two sizes: where they lie, their ids, the geometry."""
    identity = {"format": _FORMAT, "place": os.path.abspath(place), "geometry": asdict(geometry)}  # noqa: PTH100 - may be no path
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode())
    for name in source.ids():
        digest.update(name.encode(errors="surrogateescape") + b"\0")
    return digest.hexdigest()[:16]


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock that goes with the process, however it ends."""
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for the process that fills {path.parent}", file=sys.stderr)  # noqa: T201
            fcntl.flock(file, fcntl.LOCK_EX)
        yield

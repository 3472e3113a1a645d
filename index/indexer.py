"""Source + encoder → bank, in batches; interrupted anywhere, the same command goes on where it was.

Pictures are decoded by a few threads (Pillow leaves the interpreter lock while it works), embedded in one batch
by ONNX Runtime, and written in one transaction a batch: what is in the bank is finished, and is not redone.
"""

import csv
import hashlib
import io
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np

from index.encoder import Encoder
from index.errors import ImageError, SourceError
from index.files import write_atomically
from index.images import DEFAULT_LIMITS, ImageLimits, Pixels, load
from index.memory_bank import Item, MemoryBank
from index.progress import Progress
from index.sources import Picture, Source


@dataclass
class BuildReport:
    """What a build did.

    Attributes:
        added: items written in this run.
        already: items that an earlier run had written.
        skipped: (id, code, reason) of every picture that could not be used.
        copies: (id, id of the first picture with the same bytes), all of them in the bank.
    """

    added: int = 0
    already: int = 0
    skipped: list[tuple[str, str, str]] = field(default_factory=list)
    copies: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class _Prepared:
    picture: Picture
    sha256: str
    pixels: Pixels


def build(
    source: Source,
    encoder: Encoder,
    bank: MemoryBank,
    *,
    batch_size: int = 64,
    threads: int = 2,
    limits: ImageLimits = DEFAULT_LIMITS,
    skipped_csv: Path | None = None,
) -> BuildReport:
    """Embed what the bank does not hold yet and add it.

    Args:
        source: ordered pictures with stable ids.
        encoder: the bank's encoder.
        bank: open for writing.
        batch_size: pictures an ONNX Runtime call and a transaction.
        threads: decoding threads.
        limits: larger or stranger pictures are skipped, and listed.
        skipped_csv: where the list of skipped pictures goes (id, code, reason); written also on interruption.

    Raises:
        SourceError: nothing in the source could be used.
    """
    report = BuildReport()
    first_with: dict[str, str] = {}
    known = bank.known(source.ids())
    report.already = len(known)
    todo = (picture for picture in source if picture.id not in known)
    try:
        with (
            Progress("embedding", len(source), already=len(known)) as progress,
            ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool,
        ):
            progress.done = len(known)
            entries = _ahead(pool, todo, encoder, limits, 4 * batch_size)
            while group := list(islice(entries, batch_size)):
                prepared = [entry for entry in group if isinstance(entry, _Prepared)]
                report.skipped += [entry for entry in group if not isinstance(entry, _Prepared)]
                if prepared:
                    vectors = encoder.embed(np.stack([entry.pixels for entry in prepared]))
                    bank.add([_item(entry) for entry in prepared], vectors)
                    report.added += len(prepared)
                for entry in prepared:
                    first = first_with.setdefault(entry.sha256, entry.picture.id)
                    if first != entry.picture.id:
                        report.copies.append((entry.picture.id, first))
                progress.advance(len(group))
    finally:
        if skipped_csv is not None:
            write_atomically(skipped_csv, _csv(report.skipped))
    if not report.added and not report.already:
        raise SourceError(
            f"expected at least one usable picture, got {len(report.skipped)} broken ones; "
            f"the first: {report.skipped[0][0]}: {report.skipped[0][2]}"
        )
    return report


def _item(entry: _Prepared) -> Item:
    picture = entry.picture
    return Item(id=picture.id, uri=picture.uri, label=picture.label, metadata={}, sha256=entry.sha256)


def _prepare(picture: Picture, encoder: Encoder, limits: ImageLimits) -> _Prepared | tuple[str, str, str]:
    """Read and decode one picture, or say why not."""
    try:
        data = picture.read()
        return _Prepared(picture, hashlib.sha256(data).hexdigest(), load(data, encoder.spec.preprocess, limits))
    except (ImageError, SourceError) as error:
        return picture.id, error.code, str(error)
    except OSError as error:
        return picture.id, "unreadable", error.strerror or type(error).__name__


def _ahead(
    pool: ThreadPoolExecutor, pictures: Iterator[Picture], encoder: Encoder, limits: ImageLimits, depth: int
) -> Iterator[_Prepared | tuple[str, str, str]]:
    """Decode up to `depth` pictures ahead of the embedding, in order."""
    waiting: deque[Future[_Prepared | tuple[str, str, str]]] = deque()
    for picture in islice(pictures, depth):
        waiting.append(pool.submit(_prepare, picture, encoder, limits))
    try:
        while waiting:
            entry = waiting.popleft().result()
            for picture in islice(pictures, 1):
                waiting.append(pool.submit(_prepare, picture, encoder, limits))
            yield entry
    finally:
        for future in waiting:
            future.cancel()


def _csv(rows: Iterable[tuple[str, str, str]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["id", "code", "reason"])
    writer.writerows(rows)
    return text.getvalue().encode()

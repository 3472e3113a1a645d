"""Encoded pictures to bytes of one size, once, by all cores, in the order of the source.

Worker processes import this file, so nothing here imports torch.
"""

import hashlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from index import images
from index.errors import ImageError, SourceError, TrainingError
from index.images import Pixels, Preprocess
from index.sources import Picture, Source

DIGEST = 32  # bytes of a SHA-256
_GROUP_BYTES = 4 * 2**20  # what a worker hands over at once
_AHEAD = 3  # groups a worker, so that none waits for the slowest
# Pillow lets go of the interpreter while it works: on two cores threads are as fast as processes with photographs
# and faster with 32-pixel pictures (benchmarks/training_input.py). Only many cores would queue for the interpreter.
_CORES_OF_THREADS, _WORTH_PROCESSES = 8, 20_000
Workers = Literal["auto", "threads", "processes"]


@dataclass(frozen=True)
class Geometry:
    """The two sizes that every picture is kept in.

    Attributes:
        cached: square that views are cut from, of side S.
        prepared: what the encoder sees, of side H.
    """

    cached: Preprocess
    prepared: Preprocess

    @property
    def bytes_per_picture(self) -> int:
        """Return the size of a picture in both."""
        return 3 * (self.cached.crop**2 + self.prepared.crop**2)


@dataclass(frozen=True)
class Decoded:
    """What became of consecutive pictures of a source, of which G can be used.

    Attributes:
        cached: uint8 (G, 3, S, S).
        prepared: uint8 (G, H, H, 3).
        digests: uint8 (G, 32), SHA-256 of each cached picture.
        ids: of the G.
        labels: of the G, None for no label.
        skipped: (id, reason) of the others.
        enlarged: how many of the G had to be enlarged more than twice to what the encoder sees.
    """

    cached: Pixels
    prepared: Pixels
    digests: NDArray[np.uint8]
    ids: tuple[str, ...]
    labels: tuple[str | None, ...]
    skipped: tuple[tuple[str, str], ...]
    enlarged: int

    @property
    def seen(self) -> int:
        """Return how many pictures of the source this is about."""
        return len(self.ids) + len(self.skipped)


def decode(pictures: Sequence[Picture], geometry: Geometry) -> Decoded:
    """Read and decode some pictures."""
    good: list[tuple[Picture, Pixels, Pixels, bool]] = []
    skipped: list[tuple[str, str]] = []
    for picture in pictures:
        try:
            good.append((picture, *_both(picture.read(), geometry)))
        except (ImageError, SourceError) as error:
            skipped.append((picture.id, str(error)))
        except OSError as error:
            skipped.append((picture.id, error.strerror or type(error).__name__))
    side, size = geometry.cached.crop, geometry.prepared.crop
    cached = np.empty((len(good), 3, side, side), np.uint8)
    prepared = np.empty((len(good), size, size, 3), np.uint8)
    digests = np.empty((len(good), DIGEST), np.uint8)
    for row, (_, waiting, seen, _) in enumerate(good):
        cached[row], prepared[row] = waiting.transpose(2, 0, 1), seen
        digests[row] = digest(cached[row])
    return Decoded(
        cached,
        prepared,
        digests,
        ids=tuple(picture.id for picture, *_ in good),
        labels=tuple(picture.label for picture, *_ in good),
        skipped=tuple(skipped),
        enlarged=sum(enlarged for *_, enlarged in good),
    )


def digest(picture: Pixels) -> NDArray[np.uint8]:
    """Return the SHA-256 of a picture (3, S, S): uint8 (32,)."""
    return np.frombuffer(hashlib.sha256(np.ascontiguousarray(picture).data).digest(), np.uint8)


def decode_all(
    source: Source, geometry: Geometry, *, start: int = 0, workers: Workers = "auto", cores: int = 1
) -> Generator[Decoded, None, None]:
    """Decode a source from its `start`-th picture on, in order; few groups are in memory at any time.

    Args:
        source: what to decode.
        geometry: the sizes.
        start: pictures to leave out, done before.
        workers: "auto" takes processes where there are many cores and enough to do.
        cores: how many to use.

    Raises:
        TrainingError: a worker process died.
    """
    many = cores > _CORES_OF_THREADS and len(source) - start >= _WORTH_PROCESSES
    processes = workers == "processes" or (workers == "auto" and many)
    size = max(1, min(256, _GROUP_BYTES // geometry.bytes_per_picture))
    pictures = islice(iter(source), start, None)
    with _processes(cores) if processes else ThreadPoolExecutor(cores) as pool:
        waiting: deque[Future[Decoded]] = deque()
        try:
            while True:
                while len(waiting) < _AHEAD * cores and (group := list(islice(pictures, size))):
                    waiting.append(pool.submit(decode, group, geometry))
                if not waiting:
                    return
                yield waiting.popleft().result()
        except BrokenExecutor as error:
            raise TrainingError(
                "expected the decoding processes to live, got one that died, perhaps for want of memory; the same "
                "command goes on"
            ) from error
        finally:
            for future in waiting:
                future.cancel()


@contextmanager
def _processes(cores: int) -> Iterator[Executor]:
    """Start worker processes: spawned, because a fork of a process with threads (torch's) may hang."""
    before = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    os.environ.update(dict.fromkeys(before, "1"))  # inherited: NumPy starts its threads when it is imported
    try:
        pool = ProcessPoolExecutor(cores, multiprocessing.get_context("spawn"), initializer=follow_parent)
        pool.submit(int).result()  # starts them all
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    with pool:
        yield pool


def follow_parent(*_: object) -> None:
    """Leave Ctrl-C to the parent, and end when it ends, however it does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow, name="parent", daemon=True).start()


def _follow() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _both(data: bytes, geometry: Geometry) -> tuple[Pixels, Pixels, bool]:
    """Return a picture in both sizes, and whether it was small; decoded once where the contract allows it."""
    cached, prepared = geometry.cached, geometry.prepared
    image = images.decode(data, target=prepared.resize)
    side = max(image.size) if prepared.fit == "pad" else min(image.size)
    small = 2 * side < prepared.resize
    seen = images.apply(image, prepared)
    if cached == prepared:
        return seen, seen, small
    # Only a JPEG is decoded at another scale where another size is asked for.
    if cached.resize != prepared.resize and images.sniff(data) == "JPEG":
        image = images.decode(data, target=cached.resize)
    return images.apply(image, cached), seen, small

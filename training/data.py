"""Pictures for training: found, decoded once, kept as bytes in memory or, where they are too many, on disk.

Every picture is prepared twice by the decode contract of `index.images`: slightly larger than the encoder's input,
for random crops, and exactly as the encoder will see it, for evaluation and export. All of that happens before the
first step: a broken picture is skipped and listed here, and cannot stop a run at epoch 180.
"""

import csv
import hashlib
import io
import os
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from index.cores import available_cores
from index.errors import RecipeError, SourceError, TrainingError
from index.files import write_atomically
from index.images import Pixels, Preprocess
from index.progress import Progress
from index.sources import Source, open_source
from training.cache import open_cache
from training.decoding import DIGEST, Decoded, Geometry, Workers, decode_all
from training.recipes import Recipe

_MEMORY_SHARE = 0.5  # of this machine's memory that decoded pictures may take
_TOLD = 2000  # fewer pictures are decoded before a line of progress could be read
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")  # control groups v2: bytes, or "max"


@dataclass(frozen=True)
class Pictures:
    """N decoded pictures.

    Attributes:
        cached: uint8 (N, 3, S, S), S the recipe's cache_size; views are cut from these. A tensor in memory, or a
            memory map of a file.
        prepared: uint8 (N, H, H, 3), as the encoder sees them: `index.images.load`.
        labels: int64 (N,), index into `classes`, -1 for none.
        classes: class names, sorted.
        ids: relative path or the table's id.
        skipped: (id, reason) of those that could not be used.
        digests: uint8 (N, 32), SHA-256 of each cached picture when it was decoded.
        enlarged: how many had to be enlarged more than twice: the recipe is for larger pictures.
    """

    cached: Tensor | Pixels
    prepared: Pixels
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    ids: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]
    digests: NDArray[np.uint8]
    enlarged: int = 0

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def labelled(self) -> bool:
        """Whether there are at least two classes to tell apart."""
        return len(self.classes) > 1

    def first(self, count: int) -> Tensor:
        """Return up to `count` of the cached pictures: uint8 (≤ count, 3, S, S), in memory."""
        part = self.cached[:count]
        return part if isinstance(part, Tensor) else torch.from_numpy(np.array(part))

    def fingerprint(self) -> str:
        """Return a hash of the pixels and labels: a run resumes on the same pictures only.

        Of the digests, so that 250 GB on disk are not read again for it.
        """
        digest = hashlib.sha256(np.ascontiguousarray(self.digests).data)
        digest.update(self.labels.tobytes())
        return digest.hexdigest()


def preprocess_of(recipe: Recipe) -> Preprocess:
    """Return the geometry of the encoder that a recipe makes."""
    resize = recipe.image_size if recipe.fit == "pad" else recipe.cache_size
    return Preprocess(resize=resize, crop=recipe.image_size, fit=recipe.fit)


def load_pictures(
    place: Path | str,
    recipe: Recipe,
    *,
    labels: bool = True,
    cache: Path | None = None,
    overflow: Path | None = None,
    workers: Workers = "auto",
) -> Pictures:
    """Find and decode all pictures of a place.

    Args:
        place: whatever `index.sources` opens. The same source feeds the bank, so both see the same pictures in
            the same order.
        recipe: decides the sizes.
        labels: False ignores the labels.
        cache: folder for the decoded pictures, which are then never in memory as a whole; None decodes into
            memory.
        overflow: such a folder for sets that do not fit into half of the memory only.
        workers: who decodes; see `decoding.decode_all`.

    Raises:
        RecipeError: the recipe's sizes do not go together.
        SourceError: the place is missing, of another kind, or holds no usable picture.
        TrainingError: the decoded pictures fit neither into memory nor on the disk.
    """
    if recipe.cache_size < recipe.image_size:
        raise RecipeError(
            f"expected a cache_size of at least image_size ({recipe.image_size}), got {recipe.cache_size}; "
            f"--set cache_size={recipe.image_size}"
        )
    source = open_source(place, "folders" if labels else "none")
    geometry = Geometry(
        cached=Preprocess(resize=recipe.cache_size, crop=recipe.cache_size, fit=recipe.fit),
        prepared=preprocess_of(recipe),
    )
    folder = cache or (None if _fits(len(source), geometry) else overflow)
    cores = max(1, available_cores() // _processes_here())
    if folder is not None:
        decoded = open_cache(source, geometry, folder, place, workers=workers, cores=cores)
    elif _fits(len(source), geometry):
        decoded = _decode(source, geometry, workers, cores)
    else:
        needed, allowed = len(source) * geometry.bytes_per_picture, _allowed_memory()
        raise TrainingError(
            f"expected decoded pictures of at most {allowed / 2**30:.1f} GiB (half of this machine's memory), got "
            f"{len(source):,} pictures of {needed / 2**30:.1f} GiB; give --cache FOLDER to keep them on disk, take "
            "fewer, or --set cache_size=, image_size="
        )
    if not decoded.ids:
        reason = (
            f"; the first of {len(decoded.skipped)} failed with: {decoded.skipped[0][1]}" if decoded.skipped else ""
        )
        raise SourceError(
            f"expected pictures (JPEG, PNG, WebP, BMP, GIF, TIFF) in {place}, got none{reason}; check --data"
        )
    return _pictures(decoded)


def _decode(source: Source, geometry: Geometry, workers: Workers, cores: int) -> Decoded:
    """Decode a source into memory."""
    count, side, size = len(source), geometry.cached.crop, geometry.prepared.crop
    cached, prepared = np.empty((count, 3, side, side), np.uint8), np.empty((count, size, size, 3), np.uint8)
    digests = np.empty((count, DIGEST), np.uint8)
    ids: list[str] = []
    labels: list[str | None] = []
    skipped: list[tuple[str, str]] = []
    enlarged = 0
    with ExitStack() as stack:
        told = stack.enter_context(Progress("decoding", count)) if count >= _TOLD else None
        for part in stack.enter_context(closing(decode_all(source, geometry, workers=workers, cores=cores))):
            rows = slice(len(ids), len(ids) + len(part.ids))
            cached[rows], prepared[rows], digests[rows] = part.cached, part.prepared, part.digests
            ids += part.ids
            labels += part.labels
            skipped += part.skipped
            enlarged += part.enlarged
            if told:
                told.advance(part.seen)
    good = len(ids)
    return Decoded(
        cached[:good], prepared[:good], digests[:good], tuple(ids), tuple(labels), tuple(skipped), enlarged
    )


def _pictures(decoded: Decoded) -> Pictures:
    """Return decoded pictures with their classes numbered."""
    classes = tuple(sorted({label for label in decoded.labels if label is not None}))
    code = {name: index for index, name in enumerate(classes)}
    mapped = isinstance(decoded.cached, np.memmap)
    return Pictures(
        cached=decoded.cached if mapped else torch.from_numpy(decoded.cached),
        prepared=decoded.prepared,
        labels=np.array([-1 if label is None else code[label] for label in decoded.labels], dtype=np.int64),
        classes=classes,
        ids=decoded.ids,
        skipped=decoded.skipped,
        digests=decoded.digests,
        enlarged=decoded.enlarged,
    )


def write_skipped(path: Path, skipped: tuple[tuple[str, str], ...]) -> None:
    """Write `skipped.csv`: id, reason."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("id", "reason"))
    writer.writerows(skipped)
    write_atomically(path, out.getvalue().encode())


def _fits(count: int, geometry: Geometry) -> bool:
    return count * geometry.bytes_per_picture <= _allowed_memory()


def _allowed_memory() -> int:
    """Return the bytes that one process's decoded pictures may take."""
    return int(_MEMORY_SHARE * _total_memory() / _processes_here())


def _processes_here() -> int:
    """Return how many processes of this run share the machine: torchrun says so."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _total_memory() -> int:
    """Return this machine's memory in bytes, or the control group's share of it: a container's limit."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = _CGROUP_LIMIT.read_text().strip()
        return min(total, int(limit)) if limit != "max" else total
    except (OSError, ValueError):
        return total

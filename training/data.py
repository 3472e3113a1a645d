"""Pictures for training: found, decoded once, kept as bytes on the device.

Every picture is prepared twice by the decode contract of `index.images`: slightly larger than the encoder's input,
for random crops, and exactly as the encoder will see it, for evaluation and export. Broken pictures are skipped
and listed, never fatal.
"""

import csv
import hashlib
import io
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from index import images
from index.cores import available_cores
from index.errors import ImageError, SourceError, TrainingError
from index.files import write_atomically
from index.images import Pixels, Preprocess
from index.sources import Picture, open_source
from training.recipes import Recipe

_MEMORY_SHARE = 0.5  # of this machine's memory that decoded pictures may take


@dataclass(frozen=True)
class Pictures:
    """N decoded pictures.

    Attributes:
        cached: uint8 (N, 3, S, S), S the recipe's cache_size; views are cut from these.
        prepared: uint8 (N, H, H, 3), as the encoder sees them: `index.images.load`.
        labels: int64 (N,), index into `classes`, -1 for none.
        classes: class names, sorted.
        ids: relative path or the table's id.
        skipped: (id, reason) of those that could not be used.
    """

    cached: Tensor
    prepared: Pixels
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    ids: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def labelled(self) -> bool:
        """Whether there are at least two classes to tell apart."""
        return len(self.classes) > 1

    def fingerprint(self) -> str:
        """Return a hash of the pixels and labels: a run resumes on the same pictures only."""
        digest = hashlib.sha256(self.cached.cpu().numpy().tobytes())
        digest.update(self.labels.tobytes())
        return digest.hexdigest()

    def to(self, device: torch.device) -> "Pictures":
        """Return the same pictures with `cached` on a device."""
        return replace(self, cached=self.cached.to(device))


def preprocess_of(recipe: Recipe) -> Preprocess:
    """Return the geometry of the encoder that a recipe makes."""
    resize = recipe.image_size if recipe.fit == "pad" else recipe.cache_size
    return Preprocess(resize=resize, crop=recipe.image_size, fit=recipe.fit)


def load_pictures(path: Path, recipe: Recipe, *, labels: bool = True) -> Pictures:
    """Find and decode all pictures under a path.

    Args:
        path: whatever `index.sources` opens: a folder of (class) folders, or a Parquet file. The same source
            feeds the bank, so both see the same pictures in the same order.
        recipe: decides the sizes.
        labels: False ignores the labels.

    Raises:
        SourceError: the path is missing, of another kind, or holds no usable picture.
        TrainingError: the decoded pictures do not fit into memory.
    """
    source = open_source(path, "folders" if labels else "none")
    _check_memory(len(source), recipe)
    records = list(source)
    waiting = Preprocess(resize=recipe.cache_size, crop=recipe.cache_size, fit=recipe.fit)
    seen = preprocess_of(recipe)

    def decode(record: Picture) -> tuple[Pixels, Pixels] | str:
        try:
            data = record.read()
            return images.load(data, waiting), images.load(data, seen)
        except (ImageError, OSError) as error:
            return str(error)

    with ThreadPoolExecutor(available_cores()) as pool:  # Pillow lets go of the interpreter while it decodes
        decoded = list(pool.map(decode, records))
    good = [(record, pair) for record, pair in zip(records, decoded, strict=True) if not isinstance(pair, str)]
    skipped = tuple((r.id, pair) for r, pair in zip(records, decoded, strict=True) if isinstance(pair, str))
    if not good:
        reason = f"; the first of {len(skipped)} failed with: {skipped[0][1]}" if skipped else ""
        raise SourceError(
            f"expected pictures (JPEG, PNG, WebP, BMP, GIF, TIFF) in {path}, got none{reason}; check --data"
        )
    classes = tuple(sorted({record.label for record, _ in good if record.label is not None}))
    code = {name: index for index, name in enumerate(classes)}
    cached = np.stack([pair[0] for _, pair in good])
    return Pictures(
        cached=torch.from_numpy(cached).permute(0, 3, 1, 2).contiguous(),
        prepared=np.stack([pair[1] for _, pair in good]),
        labels=np.array([code.get(record.label or "", -1) for record, _ in good], dtype=np.int64),
        classes=classes,
        ids=tuple(record.id for record, _ in good),
        skipped=skipped,
    )


def write_skipped(path: Path, skipped: tuple[tuple[str, str], ...]) -> None:
    """Write `skipped.csv`: id, reason."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("id", "reason"))
    writer.writerows(skipped)
    write_atomically(path, out.getvalue().encode())


def _check_memory(count: int, recipe: Recipe) -> None:
    needed = count * 3 * (recipe.cache_size**2 + recipe.image_size**2)
    allowed = int(_MEMORY_SHARE * _total_memory())
    if needed > allowed:
        raise TrainingError(
            f"expected decoded pictures of at most {allowed / 2**30:.1f} GiB (half of this machine's memory), got "
            f"{count:,} pictures of {needed / 2**30:.1f} GiB; take fewer, or --set cache_size=, image_size="
        )


def _total_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

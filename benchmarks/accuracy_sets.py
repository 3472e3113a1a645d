"""The sets of benchmarks.training_accuracy: what is trained on each, and a fair part of its pictures as Parquet."""

import gzip
import io
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from index.files import replacing
from training.data import Pictures, load_pictures
from training.recipes import Augmentation, MocoV2, Npid, Options, Recipe, RelativeLocation, Rotation

TRAIN, TEST = 10_000, 5_000  # pictures of CIFAR-10 and Fashion-MNIST, evenly spaced


METHODS = ("npid", "moco_v2", "rotation", "relative_location")
# Rows that are not runs of a method, and what they are called in the table.
OTHERS = {
    "pixels": "raw pixels (PCA: the best of three whitenings)",
    "random": "random network of the same shape",
    "supervised": "supervised network of the same shape",
    "lite0": "EfficientNet-lite0, ImageNet labels (PCA: the best of three whitenings)",
}
_GEOMETRY = Augmentation(jitter=0.0, grayscale=0.0)


@dataclass(frozen=True)
class Benchmark:
    """A set's settings.

    Attributes:
        base: recipe of all rows but for `options`, `epochs` and `augment`.
        epochs: by method, and "supervised".
        patches: of relative location; (crop, patch) in pixels.
        lite0: side in pixels at which EfficientNet-lite0 sees the pictures.
        also: (k, τ), a second protocol for the table.
    """

    base: Recipe
    epochs: dict[str, int]
    patches: tuple[int, int]
    lite0: int
    also: tuple[int, float]


_SMALL = Recipe(
    name="accuracy",
    about="",
    options=Npid(),
    image_size=32,
    cache_size=32,
    width=0.25,
    stem="quarter",
    batch_size=128,
    optimizer="adamw",
    learning_rate=2e-3,
    weight_decay=0.05,
    warmup=1,
    precision="bfloat16",
    knn_k=200,
    knn_temperature=0.1,
    whiten=1.0,
    augment=Augmentation(jitter=0.8, hue=0.1),
)
_GRAY = Augmentation(crop_area=0.3, jitter=0.8, saturation=0.0, hue=0.0, grayscale=0.0)
_CLIPART = Augmentation(crop_area=0.25, rotation=10.0, jitter=0.8, hue=0.1)

# Each was about 80 CPU seconds of training when they were chosen.
_EPOCHS_32 = {"npid": 12, "moco_v2": 9, "rotation": 10, "relative_location": 10, "supervised": 24}

BENCHMARKS = {
    "cifar10": Benchmark(
        base=_SMALL,
        epochs=_EPOCHS_32,
        patches=(30, 8),
        lite0=160,
        also=(10, 0.07),
    ),
    "fashion-mnist": Benchmark(
        base=replace(_SMALL, augment=_GRAY),
        epochs=_EPOCHS_32,
        patches=(30, 8),
        lite0=128,
        also=(10, 0.07),
    ),
    "gallery": Benchmark(
        base=replace(
            _SMALL,
            image_size=64,
            cache_size=80,
            fit="pad",
            learning_rate=1e-3,
            knn_k=10,
            knn_temperature=0.07,
            augment=_CLIPART,
        ),
        epochs={"npid": 17, "moco_v2": 12, "rotation": 13, "relative_location": 20, "supervised": 34},
        patches=(78, 20),
        lite0=224,
        also=(1, 0.07),
    ),
}


def recipe_of(dataset: str, row: str, seed: int, share: float = 1.0) -> Recipe:
    """Return the recipe of a method, or of the network and pictures of another row.

    Args:
        dataset: key of BENCHMARKS.
        row: a method, or a key of OTHERS.
        seed: of everything random.
        share: of the epochs.
    """
    benchmark = BENCHMARKS[dataset]
    crop, patch = benchmark.patches
    options: dict[str, Options] = {
        "npid": Npid(temperature=0.2, views=2, instance=0.25, contrast=1.0),
        "moco_v2": MocoV2(queue=1024, old_weight=0.99, symmetric=True),
        "rotation": Rotation(),
        "relative_location": RelativeLocation(crop=crop, patch=patch, hidden=512),
    }
    # The pretext tasks change no colours, and relative location nothing but them, as published.
    augments = {
        "rotation": replace(_GEOMETRY, crop_area=benchmark.base.augment.crop_area),
        "relative_location": replace(_GEOMETRY, crop_area=1.0, crop_ratio=1.0, flip=0.0, grayscale=0.66),
    }
    epochs = max(2, round(share * benchmark.epochs.get(row, 2)))
    return replace(
        benchmark.base,
        options=options.get(row, options["npid"]),
        bn_splits=4 if row == "moco_v2" else 1,
        batch_size=64 if row in augments else benchmark.base.batch_size,
        augment=augments.get(row, benchmark.base.augment),
        epochs=epochs,
        knn_every=max(1, epochs // 4),
        seed=seed,
    )


def prepare(work: Path, dataset: str, train: Path, test: Path | None) -> None:
    """Write WORK/DATASET/train.parquet and test.parquet, or a note where the folder of pictures is."""
    folder = work / dataset
    if dataset == "gallery":
        (folder / "place.txt").write_text(str(train.resolve()))
    elif not (folder / "test.parquet").exists():
        for name, source, count in (("train", train, TRAIN), ("test", test or train, TEST)):
            if source.is_dir():
                rows = read_idx(source, "t10k" if name == "test" else "train", count)
            else:
                rows = read_parquet(source, count)
            _write(folder / f"{name}.parquet", rows)


def load(work: Path, dataset: str, recipe: Recipe) -> tuple[Pictures, Pictures | None]:
    """Return the decoded training and test pictures; leave-one-out has no test pictures."""
    folder = work / dataset
    if dataset == "gallery":
        return load_pictures(Path((folder / "place.txt").read_text()), recipe, workers="threads"), None
    train, test = (
        load_pictures(folder / f"{name}.parquet", recipe, workers="threads") for name in ("train", "test")
    )
    return train, test


def even(total: int, count: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return `count` row numbers, evenly spaced: int64 (count,)."""
    return np.linspace(0, total - 1, min(count, total)).round().astype(np.int64)


def read_parquet(path: Path, count: int) -> list[tuple[bytes, str]]:
    """Read encoded pictures and labels from columns `image` and `label`."""
    import pyarrow.parquet as pq

    whole = pq.read_table(path, columns=["image", "label"])
    part = whole.take(even(whole.num_rows, count)).to_pydict()
    return [(bytes(image), str(label)) for image, label in zip(part["image"], part["label"], strict=True)]


def read_idx(folder: Path, name: str, count: int) -> list[tuple[bytes, str]]:
    """Read gray 28 × 28 pictures and labels from NAME-images-idx3-ubyte.gz and NAME-labels-idx1-ubyte.gz."""
    with gzip.open(folder / f"{name}-images-idx3-ubyte.gz") as file:
        pixels = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28)
    with gzip.open(folder / f"{name}-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8)
    return [(_png(pixels[row]), str(labels[row])) for row in even(len(pixels), count)]


def _png(pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).convert("RGB").save(out, "PNG")
    return out.getvalue()


def _write(path: Path, rows: list[tuple[bytes, str]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {
        "id": [f"{number:05}" for number in range(len(rows))],
        "image": [image for image, _ in rows],
        "label": [label for _, label in rows],
    }
    with replacing(path) as temporary:
        pq.write_table(pa.table(columns), temporary)

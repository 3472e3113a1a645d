"""Known data sets, from the files that torchvision downloads: `cifar10:ROOT`, `cifar10:ROOT:test`.

ROOT is what one would give torchvision; nothing is downloaded here. The pictures are handed on as lossless PNG (or
as their own files), so that they go through the one decode contract like all others.

    cifar10, cifar100   ROOT/cifar-10-batches-py, ROOT/cifar-100-python       train (default), test
    stl10               ROOT/stl10_binary                          train (default), test, unlabeled, train+unlabeled
    fashionmnist        ROOT/FashionMNIST/raw, or the files lying flat in ROOT, .gz or not    train (default), test
    imagenet            ROOT/train/WNID, ROOT/val/WNID                        train (default), val
"""

import gzip
import io
import pickle
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from index.errors import SourceError
from index.images import Pixels
from index.sources.folder import FolderSource
from index.sources.picture import Labels, Picture, Source

_GARMENTS = (  # the files hold numbers only
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
# What a pickle of NumPy arrays needs; anything else in the file is not called.
_HARMLESS = {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")} | {
    (f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")
}


_DAMAGE = (AttributeError, ImportError, struct.error, zlib.error, pickle.UnpicklingError)  # from readers of files


@dataclass(frozen=True)
class ArraySource:
    """Pictures that lie in arrays: ids are SPLIT/ROW.

    Attributes:
        parts: pairs of the split's name and its pictures, uint8 (N, H, W) grey or (N, H, W, 3) RGB.
        labels: a class name or None for each picture of all parts.
    """

    parts: tuple[tuple[str, Pixels], ...]
    labels: tuple[str | None, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def ids(self) -> Iterator[str]:
        """Yield the id of each picture, in order."""
        return (f"{split}/{row:06d}" for split, pictures in self.parts for row in range(len(pictures)))

    def __iter__(self) -> Iterator[Picture]:
        pictures = (picture for _, part in self.parts for picture in part)
        for name, picture, label in zip(self.ids(), pictures, self.labels, strict=True):
            yield Picture(id=name, uri=None, label=label, read=partial(_png, np.array(picture)))


def named(place: Path | str) -> bool:
    """Tell whether a place names a data set rather than a path."""
    return str(place).partition(":")[0] in _OPENERS


def open_dataset(place: Path | str, labels: Labels = "folders") -> Source:
    """Open NAME:ROOT or NAME:ROOT:SPLIT.

    Raises:
        SourceError: files are missing, or are not what they should be.
    """
    name, _, rest = str(place).partition(":")
    known, opener = _OPENERS[name]
    root, colon, split = rest.rpartition(":")
    if not colon or "/" in split:  # a colon inside the path
        root, split = rest, known[0]
    if split not in known:
        raise SourceError(f"expected {name}:ROOT:SPLIT with one of {', '.join(known)}, got {split!r}")
    if not root:
        raise SourceError(f"expected {name}:ROOT, the folder that torchvision downloaded to, got no folder")
    try:
        source = opener(Path(root), split, labels)
    except FileNotFoundError as error:
        raise SourceError(
            f"expected the files of {name} in {root}, got none at {error.filename or error}; "
            f"{_HOW[name].format(root=root)}"
        ) from error
    except (OSError, EOFError, ValueError, LookupError, TypeError, *_DAMAGE) as error:
        raise SourceError(f"expected whole files of {name} in {root}, got damaged ones: {error}") from error
    return source


def _cifar(
    root: Path, split: str, shown: Labels, *, folder: str, train: tuple[str, ...], names: str, key: str
) -> ArraySource:
    place = root if root.name == folder else root / folder
    batches = [_unpickle(place / name) for name in (train if split == "train" else _CIFAR_TEST[folder])]
    # A row is the red plane, the green and the blue one, 1,024 bytes each.
    planes = np.concatenate([np.asarray(batch["data"], np.uint8) for batch in batches]).reshape(-1, 3, 32, 32)
    classes = _unpickle(place / ("batches.meta" if folder == "cifar-10-batches-py" else "meta"))[names]
    labels = [str(classes[number]) for batch in batches for number in batch[key]]
    return _arrays(((split, planes.transpose(0, 2, 3, 1)),), labels, shown)


_CIFAR_TEST = {"cifar-10-batches-py": ("test_batch",), "cifar-100-python": ("test",)}


def _stl10(root: Path, split: str, shown: Labels) -> ArraySource:
    place = root if root.name == "stl10_binary" else root / "stl10_binary"
    parts, labels = [], list[str | None]()
    classes = (place / "class_names.txt").read_text().split()
    for part in split.split("+"):
        # Planes of 96 × 96, each stored column by column.
        file = place / f"{part}_X.bin"
        flat: Pixels = np.memmap(file, np.uint8, mode="r")
        parts.append((part, flat.reshape(-1, 3, 96, 96).transpose(0, 3, 2, 1)))
        count = len(flat) // (3 * 96 * 96)
        numbers = [] if part == "unlabeled" else np.fromfile(place / f"{part}_y.bin", np.uint8).tolist()
        labels += [dict(enumerate(classes, 1))[number] for number in numbers] or [None] * count
    return _arrays(tuple(parts), labels, shown)


def _fashionmnist(root: Path, split: str, shown: Labels) -> ArraySource:
    prefix = "train" if split == "train" else "t10k"
    pictures = _idx(_first(root, f"{prefix}-images-idx3-ubyte"), 3)
    numbers = _idx(_first(root, f"{prefix}-labels-idx1-ubyte"), 1)
    return _arrays(((split, pictures),), [_GARMENTS[number] for number in numbers], shown)


def _imagenet(root: Path, split: str, shown: Labels) -> FolderSource:
    if not (root / split).is_dir():
        raise FileNotFoundError(2, "", str(root / split))
    return FolderSource(root / split, shown)


def _arrays(parts: tuple[tuple[str, Pixels], ...], labels: Sequence[str | None], shown: Labels) -> ArraySource:
    count = sum(len(pictures) for _, pictures in parts)
    if count != len(labels) or not count:
        raise ValueError(f"{count:,} pictures, {len(labels):,} labels")
    return ArraySource(parts, tuple(labels) if shown != "none" else (None,) * count)


def _first(root: Path, name: str) -> Path:
    """Return where a file lies: torchvision's folders, or flat as Debian's dataset-fashion-mnist has it."""
    places = [
        folder / f"{name}{end}"
        for folder in (root / "FashionMNIST" / "raw", root / "raw", root)
        for end in ("", ".gz")
    ]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise FileNotFoundError(2, "", str(places[0]))
    return found


def _idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """Read an IDX file of bytes: two zeros, type 8, how many dimensions, each as a big-endian int32, the data."""
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        data = file.read()
    magic, *shape = struct.unpack_from(f">{1 + dimensions}i", data)
    if magic != 0x0800 + dimensions:
        raise ValueError(f"{path.name} begins with {magic:#x}")
    return np.frombuffer(data, np.uint8, offset=4 * (1 + dimensions)).reshape(shape)


class _Arrays(pickle.Unpickler):
    """Reads pickled dictionaries of arrays, and calls nothing else that a file may name."""

    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401 - the interface's own type
        if (module, name) not in _HARMLESS:
            raise pickle.UnpicklingError(f"a pickle that calls {module}.{name}")
        return super().find_class(module, name)


def _unpickle(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        values = _Arrays(file, encoding="latin1").load()
    if not isinstance(values, dict):
        raise TypeError(f"{path.name} holds no dictionary")
    return values


def _png(pixels: Pixels) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG", compress_level=1)
    return out.getvalue()


_CIFAR10 = partial(
    _cifar,
    folder="cifar-10-batches-py",
    train=tuple(f"data_batch_{number}" for number in range(1, 6)),
    names="label_names",
    key="labels",
)
_CIFAR100 = partial(
    _cifar, folder="cifar-100-python", train=("train",), names="fine_label_names", key="fine_labels"
)
_OPENERS: dict[str, tuple[tuple[str, ...], Callable[[Path, str, Labels], "ArraySource | FolderSource"]]] = {
    "cifar10": (("train", "test"), _CIFAR10),
    "cifar100": (("train", "test"), _CIFAR100),
    "stl10": (("train", "test", "unlabeled", "train+unlabeled"), _stl10),
    "fashionmnist": (("train", "test"), _fashionmnist),
    "imagenet": (("train", "val"), _imagenet),
}
_DOWNLOAD = "torchvision.datasets.{name}('{{root}}', download=True) gets them"
_HOW = {
    "cifar10": _DOWNLOAD.format(name="CIFAR10"),
    "cifar100": _DOWNLOAD.format(name="CIFAR100"),
    "stl10": _DOWNLOAD.format(name="STL10"),
    "fashionmnist": _DOWNLOAD.format(name="FashionMNIST"),
    "imagenet": "torchvision.datasets.ImageNet('{root}') unpacks the archives that image-net.org gives out",
}

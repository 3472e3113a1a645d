"""Where pictures come from: a folder (labels from its class folders) or a Parquet file of encoded pictures.

A source is a sized, ordered stream of `Picture`; the bytes are read when they are asked for. Order and ids
depend on the content only, so a run that was interrupted finds the same items again.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

from index.errors import ExtraMissingError, SourceError

# By extension only to leave text, tables and hidden files alone; what a file really is, its first bytes tell.
_EXTENSIONS = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})


@dataclass(frozen=True)
class Picture:
    """One picture of a source.

    Attributes:
        id: unique in the source, stable between runs.
        uri: path relative to the source's root, for thumbnails; None when it has none of its own.
        label: class name, or None.
        read: returns the encoded bytes.
    """

    id: str
    uri: str | None
    label: str | None
    read: Callable[[], bytes]


class Source(Protocol):
    """A sized, ordered stream of pictures that can be iterated again; its ids alone cost no picture."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Picture]: ...
    def ids(self) -> Iterator[str]:
        """Yield the id of each picture, in order."""
        ...


class FolderSource:
    """Every picture below a folder, in path order; the first folder below the root is the label."""

    def __init__(self, root: Path, labels: Literal["folders", "none"] = "folders") -> None:
        if not root.is_dir():
            raise SourceError(f"expected a folder of pictures at {root}, got no such folder")
        self.root, self._labels = root, labels
        self._paths = sorted(_pictures_below(root))
        if not self._paths:
            raise SourceError(
                f"expected pictures in {root}, got none (looked for {', '.join(sorted(_EXTENSIONS))})"
            )

    def __len__(self) -> int:
        return len(self._paths)

    def ids(self) -> Iterator[str]:
        """Yield the id of each picture, in order."""
        return iter(self._paths)

    def __iter__(self) -> Iterator[Picture]:
        for name in self._paths:
            label = name.split("/")[0] if self._labels == "folders" and "/" in name else None
            yield Picture(id=name, uri=name, label=label, read=(self.root / name).read_bytes)


class ParquetSource:
    """Rows of a Parquet file: `image` (bytes, or a struct with `bytes`), and optionally `id` and `label`.

    Without an `id` column a row is called NAME/ROW, after the file.
    """

    def __init__(self, path: Path, labels: Literal["folders", "none"] = "folders") -> None:
        try:
            from pyarrow import ArrowInvalid, parquet  # noqa: PLC0415 - optional
        except ImportError as error:
            raise ExtraMissingError("reading Parquet needs pyarrow: pip install 'lookalike[training]'") from error
        try:
            self._file = parquet.ParquetFile(path)
        except (OSError, ArrowInvalid) as error:
            raise SourceError(f"expected a Parquet file at {path}, got: {str(error).splitlines()[0]}") from error
        names = set(self._file.schema_arrow.names)
        if "image" not in names:
            raise SourceError(
                f"expected a column `image` in {path}, got {', '.join(sorted(names)) or 'no columns'}"
            )
        self.path = path
        self._columns = ["image", *sorted(names & ({"id", "label"} if labels != "none" else {"id"}))]
        if not len(self):
            raise SourceError(f"expected pictures in {path}, got an empty table")

    def __len__(self) -> int:
        return int(self._file.metadata.num_rows)

    def ids(self) -> Iterator[str]:
        """Yield the id of each row, in order, without reading the pictures."""
        return (self._id(row, values) for row, values in enumerate(self._rows(self._columns[1:])))

    def __iter__(self) -> Iterator[Picture]:
        for row, values in enumerate(self._rows(self._columns)):
            label = values.get("label")
            read = partial(_bytes, values["image"])
            yield Picture(self._id(row, values), None, None if label is None else str(label), read)

    def _rows(self, columns: list[str]) -> Iterator[dict[str, Any]]:
        if not columns:
            yield from ({} for _ in range(len(self)))
        else:
            for batch in self._file.iter_batches(batch_size=1024, columns=columns):
                yield from batch.to_pylist()

    def _id(self, row: int, values: dict[str, Any]) -> str:
        return str(values["id"]) if values.get("id") is not None else f"{self.path.stem}/{row:07d}"


def open_source(path: Path, labels: Literal["folders", "none"] = "folders") -> Source:
    """Open what lies at `path`: a folder, or a .parquet file.

    Args:
        path: the folder or the file.
        labels: "none" leaves class folders and label columns unread.

    Raises:
        SourceError: neither, or without pictures.
    """
    if path.suffix == ".parquet":
        return ParquetSource(path, labels)
    return FolderSource(path, labels)


def _pictures_below(root: Path) -> Iterator[str]:
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in files:
            if not name.startswith(".") and Path(name).suffix.lower() in _EXTENSIONS:
                yield (Path(folder) / name).relative_to(root).as_posix()


def _bytes(value: Any) -> bytes:  # noqa: ANN401 - a Parquet cell
    data = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(data, bytes):
        raise SourceError(f"expected encoded picture bytes, got {type(value).__name__}")
    return data

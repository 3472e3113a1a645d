"""A table of paths, CSV or Parquet: which files are the pictures, and what they show.

Columns: `path` (or `image`), and optionally `label` and `id`. Paths are relative to the table's folder and stay
inside it: a table that came with somebody's pictures must not pull other files of this machine into a bank.
"""

import csv
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from index.errors import SourceError
from index.sources.parquet import ParquetSource, open_file
from index.sources.picture import Labels, Picture, Source, broken

Rows = list[dict[str, str | None]]
_PATHS = ("path", "image")  # the columns that may hold the path; the first that is there does
_READ = {*_PATHS, "label", "id"}


class TableSource:
    """The pictures that a table names, in its order.

    A row's id is its `id` column or its path. A file that is missing or outside the table's folder is a broken
    picture with a reason, as is a row without a path; a row without a label has none.
    """

    def __init__(self, path: Path, rows: Rows, labels: Labels = "folders") -> None:
        self.path, self._labels = path, labels
        names = set(rows[0]) if rows else set()
        column = next((name for name in _PATHS if name in names), None)
        if not rows:
            raise SourceError(f"expected pictures in {path}, got an empty table")
        if column is None:
            raise SourceError(f"expected a column `path` or `image` in {path}, got {', '.join(sorted(names))}")
        self._rows = [
            (_id(row, column, path, number), row[column], row.get("label")) for number, row in enumerate(rows)
        ]
        seen: dict[str, int] = {}
        for number, (name, _, _) in enumerate(self._rows):
            if name in seen:
                raise SourceError(
                    f"expected each picture once in {path}, got {name!r} in rows {seen[name] + 1} and "
                    f"{number + 1}; drop one, or give a column `id`"
                )
            seen[name] = number

    def __len__(self) -> int:
        return len(self._rows)

    def ids(self) -> Iterator[str]:
        """Yield the id of each row, in order."""
        return (name for name, _, _ in self._rows)

    def __iter__(self) -> Iterator[Picture]:
        root = self.path.parent
        for name, path, label in self._rows:
            inside = _inside(root, path) if path else None
            if not path:
                yield broken(name, f"expected a path in the table {self.path.name}, got an empty cell")
            elif inside is None:
                yield broken(name, f"expected a path inside {root}, got {path}")
            else:
                known = label if label and self._labels != "none" else None
                yield Picture(id=name, uri=inside, label=known, read=partial(_read, root / inside))


def open_csv(path: Path, labels: Labels = "folders") -> TableSource:
    """Open a CSV file of paths: UTF-8, commas, a header line.

    Raises:
        SourceError: missing, not such a file, without pictures, or with a picture twice.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            table = csv.DictReader(file, strict=True)
            rows = [{name: row[name] for name in row if name in _READ} or {"": None} for row in table]
            header = table.fieldnames or []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise SourceError(f"expected a CSV file (UTF-8) with a header at {path}, got: {reason}") from error
    if header and not set(header) & set(_PATHS):
        raise SourceError(
            f"expected a column `path` or `image` in the first line of {path}, got {', '.join(header)[:80]}"
        )
    return TableSource(path, rows, labels)


def open_parquet(path: Path, labels: Labels = "folders") -> Source:
    """Open a Parquet file: pictures where `image` holds bytes, a table of paths where it or `path` holds text.

    Raises:
        SourceError: missing, not Parquet, without such a column or without rows.
        ExtraMissingError: pyarrow is not installed.
    """
    file = open_file(path)
    types = {field.name: str(field.type) for field in file.schema_arrow}
    if "image" in types and types["image"] not in {"string", "large_string", "string_view"}:
        return ParquetSource(path, labels)
    if not set(types) & set(_PATHS):
        return ParquetSource(path, labels)  # says which columns it expected
    table = file.read(columns=sorted(set(types) & _READ)).to_pylist()
    return TableSource(path, [{name: _text(value) for name, value in row.items()} for row in table], labels)


def _id(row: dict[str, str | None], column: str, path: Path, number: int) -> str:
    return row.get("id") or row[column] or f"{path.stem}/{number:07d}"


def _text(value: Any) -> str | None:  # noqa: ANN401 - a Parquet cell
    return None if value is None else str(value)


def _inside(root: Path, path: str) -> str | None:
    """Return a path relative to the root, or None where it leads out of it.

    By its text only: a link below the root was put there by the owner of the pictures.
    """
    if "\0" in path:
        return None
    relative = os.path.relpath(root / path, root)
    return None if relative == ".." or relative.startswith("../") else Path(relative).as_posix()


def _read(path: Path) -> bytes:
    if not path.is_file():  # a pipe or a device would never end
        raise SourceError(f"expected a file at {path}, got {'no file' if not path.exists() else 'something else'}")
    return path.read_bytes()

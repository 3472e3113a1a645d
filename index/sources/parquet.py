"""A Parquet file whose rows hold the encoded pictures themselves."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from index.errors import ExtraMissingError, SourceError
from index.sources.picture import Labels, Picture

_ROWS = 1024  # read at once


def open_file(path: Path) -> Any:  # noqa: ANN401 - pyarrow is optional, so are its types
    """Open a Parquet file.

    Returns:
        `pyarrow.parquet.ParquetFile`.

    Raises:
        SourceError: missing or no Parquet.
        ExtraMissingError: pyarrow is not installed.
    """
    try:
        from pyarrow import ArrowException, parquet  # noqa: PLC0415 - optional
    except ImportError as error:
        raise ExtraMissingError("reading Parquet needs pyarrow: pip install 'lookalike[training]'") from error
    try:
        return parquet.ParquetFile(path)
    except (OSError, ArrowException) as error:
        raise SourceError(f"expected a Parquet file at {path}, got: {str(error).splitlines()[0]}") from error


class ParquetSource:
    """Rows of a Parquet file: `image` (bytes, or a struct with `bytes`), and optionally `id` and `label`.

    Without an `id` column a row is called NAME/ROW, after the file.
    """

    def __init__(self, path: Path, labels: Labels = "folders") -> None:
        self._file = open_file(path)
        names = set(self._file.schema_arrow.names)
        if "image" not in names:
            raise SourceError(
                f"expected a column `image` (bytes or paths) or `path` in {path}, "
                f"got {', '.join(sorted(names)) or 'no columns'}"
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
            return
        from pyarrow import ArrowException  # noqa: PLC0415 - optional

        try:
            for batch in self._file.iter_batches(batch_size=_ROWS, columns=columns):
                yield from batch.to_pylist()
        except (ArrowException, OSError) as error:
            raise SourceError(f"expected whole rows in {self.path}, got: {str(error).splitlines()[0]}") from error

    def _id(self, row: int, values: dict[str, Any]) -> str:
        return str(values["id"]) if values.get("id") is not None else f"{self.path.stem}/{row:07d}"


def _bytes(value: Any) -> bytes:  # noqa: ANN401 - a Parquet cell
    data = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(data, bytes):
        raise SourceError(f"expected encoded picture bytes, got {type(value).__name__}")
    return data

"""Where pictures come from: one function opens them all.

| what lies there | pictures | labels |
| --- | --- | --- |
| a folder | every picture below it | its class folders |
| `table.csv`, `table.parquet` with `path` | the files it names | column `label` |
| `set.parquet` with `image` bytes | its cells | column `label` |
| `a.tar`, a folder of them, `shard-{000..010}.tar`, `*.tar` | the members (WebDataset) | NAME.cls, .json, .txt |
| `cifar10:ROOT`, `cifar100:`, `stl10:`, `fashionmnist:`, `imagenet:` | the files of that data set | its classes |
"""

from pathlib import Path

from index.sources import datasets, shards, tables
from index.sources.folder import FolderSource
from index.sources.parquet import ParquetSource
from index.sources.picture import Labels, Picture, Source

__all__ = ["FolderSource", "Labels", "ParquetSource", "Picture", "Source", "open_source"]


def open_source(place: Path | str, labels: Labels = "folders") -> Source:
    """Open what lies at a place.

    Args:
        place: see the table above.
        labels: "none" leaves class folders, columns and label members unread.

    Raises:
        SourceError: nothing there, something else, or no pictures in it.
        ExtraMissingError: Parquet without pyarrow.
    """
    if datasets.named(place):
        return datasets.open_dataset(place, labels)
    path = Path(place)
    if path.suffix == ".parquet":
        return tables.open_parquet(path, labels)
    if path.suffix == ".csv":
        return tables.open_csv(path, labels)
    if shards.named(path):
        return shards.open_shards(path, labels)
    return FolderSource(path, labels)

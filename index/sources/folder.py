"""A folder of pictures, nested as you like; class folders are labels."""

import os
from collections.abc import Iterator
from pathlib import Path

from index.errors import SourceError
from index.sources.picture import SUFFIXES, Labels, Picture


class FolderSource:
    """Every picture below a folder, in path order; the first folder below the root is the label."""

    def __init__(self, root: Path, labels: Labels = "folders") -> None:
        if not root.is_dir():
            raise SourceError(f"expected a folder of pictures at {root}, got no such folder")
        self.root, self._labels = root, labels
        self._paths = sorted(pictures_below(root))
        if not self._paths:
            raise SourceError(
                f"expected pictures in {root}, got none (looked for {', '.join(sorted(SUFFIXES))} and .tar)"
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


def pictures_below(root: Path) -> Iterator[str]:
    """Yield the paths of what looks like pictures, relative to the root; what is hidden is left alone."""
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in files:
            if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES:
                yield (Path(folder) / name).relative_to(root).as_posix()

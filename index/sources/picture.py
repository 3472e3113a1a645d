"""The seam: a source is a sized, ordered stream of pictures whose bytes are read when they are asked for.

Order and ids depend on the content only, so a run that was interrupted finds the same pictures again. What cannot
be read stays in its place: its `read` says why, and whoever reads it skips and lists it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol

from index.errors import SourceError

Labels = Literal["folders", "none"]  # "none" leaves class folders, label columns and label members unread

# By extension only to leave text, tables and hidden files alone; what a file really is, its first bytes tell.
SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})


@dataclass(frozen=True)
class Picture:
    """One picture of a source.

    Attributes:
        id: unique in the source, stable between runs.
        uri: path relative to the source's root, for thumbnails; None when it has none of its own.
        label: class name, or None.
        read: returns the encoded bytes, here or, because it can be pickled, in another process; raises OSError or
            SourceError for a picture that is broken.
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


def broken(name: str, reason: str) -> Picture:
    """Return a picture that only says why it cannot be read."""
    return Picture(id=name, uri=None, label=None, read=partial(_refuse, reason))


def _refuse(reason: str) -> bytes:
    raise SourceError(reason)

"""WebDataset shards: plain .tar files, their headers read once, their members read by offset, nothing unpacked.

A sample is the members that share a name up to its first dot: NAME.jpg is the picture, and what it shows is the
first there is of NAME.cls, `label` in NAME.json, and NAME.txt (where that is a caption: `--labels none`).
"""

import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from glob import has_magic
from itertools import product
from os.path import commonpath
from pathlib import Path, PurePosixPath

from index.errors import SourceError
from index.sources.folder import pictures_below
from index.sources.picture import SUFFIXES, Labels, Picture, broken

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_LABELS = (".cls", ".json", ".txt")  # in the order in which they count
_LABEL_BYTES = 2**20  # a longer one is no label
_SHARDS = 1_000_000  # more in one pattern is a slip of the pen


@dataclass(frozen=True, slots=True)
class _Member:
    shard: Path
    offset: int
    size: int


@dataclass(slots=True)
class _Sample:
    pictures: dict[str, _Member] = field(default_factory=dict)
    labels: dict[str, _Member] = field(default_factory=dict)

    def label_members(self) -> tuple[tuple[str, _Member], ...]:
        """Return those that may say what it shows, in the order in which they count."""
        return tuple((suffix, self.labels[suffix]) for suffix in _LABELS if suffix in self.labels)


class ShardSource:
    """The pictures of some shards, in their order; an id is SHARD/MEMBER.

    A damaged or missing shard gives the members before the damage, and one broken picture that says where it is.
    """

    def __init__(self, shards: list[Path], place: Path, labels: Labels = "folders") -> None:
        root = Path(commonpath([shard.parent for shard in shards]))
        self._pictures: list[tuple[str, _Member, tuple[tuple[str, _Member], ...]]] = []
        self._damage: list[tuple[str, str]] = []
        for shard in shards:
            name = shard.relative_to(root).with_suffix("").as_posix()
            samples, reason = _index(shard)
            for sample in samples.values():
                shown = sample.label_members() if labels != "none" else ()
                self._pictures += [(f"{name}/{key}", member, shown) for key, member in sample.pictures.items()]
            if reason is not None:
                self._damage.append((f"{name}.tar", reason))
        if not self._pictures:
            why = f"; {self._damage[0][1]}" if self._damage else ""
            raise SourceError(
                f"expected pictures in the {len(shards):,} shards of {place}, got none "
                f"(looked for {', '.join(sorted(SUFFIXES))}){why}"
            )

    def __len__(self) -> int:
        return len(self._pictures) + len(self._damage)

    def ids(self) -> Iterator[str]:
        """Yield the id of each picture, in order; damaged shards come last."""
        yield from (name for name, _, _ in self._pictures)
        yield from (name for name, _ in self._damage)

    def __iter__(self) -> Iterator[Picture]:
        for name, member, shown in self._pictures:
            yield Picture(id=name, uri=None, label=_label(shown), read=partial(_read, member))
        for name, reason in self._damage:
            yield broken(name, reason)


def named(path: Path) -> bool:
    """Tell whether a place is a .tar, a pattern of them, or a folder that holds them and no pictures."""
    if path.suffix == ".tar" and not path.is_dir():
        return True
    return path.is_dir() and next(pictures_below(path), None) is None and any(_below(path))


def open_shards(path: Path, labels: Labels = "folders") -> ShardSource:
    """Open a .tar, a folder of them, or a pattern such as `shard-{000..010}.tar` or `shard-*.tar`.

    Raises:
        SourceError: there are none, or they hold no pictures.
    """
    shards = sorted(_below(path)) if path.is_dir() else list(_expand(path))
    if not any(shard.is_file() for shard in shards):
        raise SourceError(f"expected .tar shards at {path}, got no such file")
    return ShardSource(shards, path, labels)


def _below(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*.tar") if not path.name.startswith(".") and path.is_file())


def _expand(pattern: Path) -> Iterator[Path]:
    """Yield the files of a pattern; those of a range are expected, those of a star are found."""
    for name in _unfold(str(pattern)):
        path = Path(name)
        if has_magic(name) and not path.exists():
            anchor = Path(path.anchor)
            yield from sorted(anchor.glob(str(path.relative_to(anchor))))
        else:
            yield path


def _unfold(text: str) -> Iterator[str]:
    """Yield what `{000..010}` and `{a,b}` stand for, each choice with each."""
    parts = _BRACES.split(text)
    choices, count = [], 1
    for inside in parts[1::2]:
        numbers = _RANGE.fullmatch(inside)
        first, last = (int(number) for number in numbers.groups()) if numbers else (0, inside.count(","))
        count *= abs(last - first) + 1
        if count > _SHARDS:
            raise SourceError(f"expected a pattern of at most {_SHARDS:,} shards, got {text}")
        width = len(numbers[1]) if numbers else 0
        step = 1 if last >= first else -1
        choices.append(
            [f"{n:0{width}d}" for n in range(first, last + step, step)] if numbers else inside.split(",")
        )
    for chosen in product(*choices):
        yield "".join(outer + inner for outer, inner in zip(parts[::2], (*chosen, ""), strict=True))


def _index(shard: Path) -> tuple[dict[str, _Sample], str | None]:
    """Return the samples of a shard by name, and why reading it stopped early, if it did."""
    samples: dict[str, _Sample] = {}
    end = 0
    try:
        with tarfile.open(shard, "r:") as tar:
            while (header := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined] # its own list of a million headers is not needed
                if header.offset < end:
                    return samples, f"expected a whole .tar at {shard}, got a damaged header at byte {end:,}"
                end = header.offset_data
                if header.isreg() and not header.issparse():
                    _place(samples, header.name, _Member(shard, header.offset_data, header.size))
            damaged_at = _stopped_at(tar)
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return samples, f"expected a whole .tar (not compressed) at {shard}, got: {reason}"
    if damaged_at is None:
        return samples, None
    return samples, f"expected a whole .tar at {shard}, got one that is damaged at byte {damaged_at:,}"


def _stopped_at(tar: tarfile.TarFile) -> int | None:
    """Return where reading stopped if that is not the archive's end, which is a block of zeros.

    `tarfile` itself ends silently at a header that it cannot read.
    """
    tar.fileobj.seek(tar.offset)
    return None if tar.fileobj.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE) else tar.offset


def _place(samples: dict[str, _Sample], name: str, member: _Member) -> None:
    path = PurePosixPath(name)
    if path.name.startswith("."):
        return
    key = (path.parent / path.name.split(".")[0]).as_posix()
    suffix = path.suffix.lower()
    if suffix in SUFFIXES:
        samples.setdefault(key, _Sample()).pictures[path.as_posix()] = member
    elif suffix in _LABELS:
        samples.setdefault(key, _Sample()).labels[suffix] = member


def _label(members: tuple[tuple[str, _Member], ...]) -> str | None:
    for suffix, member in members:
        if member.size > _LABEL_BYTES:
            continue
        try:
            text = _read(member).decode()
            value = json.loads(text).get("label") if suffix == ".json" else text.strip()
        except (SourceError, OSError, ValueError, AttributeError, RecursionError):
            continue  # the picture is worth more than its label
        if value is not None and str(value):
            return str(value)
    return None


def _read(member: _Member) -> bytes:
    with member.shard.open("rb") as file:
        file.seek(member.offset)
        data = file.read(member.size)
    if len(data) < member.size:
        raise SourceError(f"expected {member.size:,} bytes, got {len(data):,}: {member.shard} is truncated")
    return data

"""The bank's table of contents: whose vectors it holds, in which segments, and how well they are searched.

`manifest.json` is for people and strangers' readers; its text is also kept in the catalogue, whose transaction
is the one commit point of every change. The two differ only between a commit and the rename that follows it,
and opening the bank for writing puts that right.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

from index.errors import BankDamagedError, BankFormatError, EncoderMismatchError

if TYPE_CHECKING:
    from index.encoder import Encoder

FORMAT_VERSION = 1
Store = Literal["auto", "float32", "float16"]
Precision = Literal["float32", "float16"]
IndexKind = Literal["flat", "ivf"]
# Above this, a bank with store="auto" keeps float16: half of the memory, and the rounding (relative 2^-11) moves
# a cosine by about 1e-4. Below it the whole bank is under 51 MB at D = 128, and memory is no reason to round.
FLOAT16_ABOVE = 100_000

SEGMENT_FILES = ("index.faiss", "keys.npy", "labels.npy")
_SEGMENT_NAME = re.compile(r"[a-z0-9-]{1,64}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class EncoderIdentity:
    """Which encoder made the vectors: two encoders' vectors cannot be compared.

    Attributes:
        name: for people.
        sha256: of the encoder file; this alone decides.
        dim: D.
    """

    name: str
    sha256: str
    dim: int

    @classmethod
    def of(cls, encoder: "Encoder") -> Self:
        """Take the identity of a loaded encoder."""
        return cls(encoder.spec.name, encoder.sha256, encoder.dim)

    def check_same(self, other: "EncoderIdentity", bank: object) -> None:
        """Raise EncoderMismatchError unless `other` is the encoder that made the bank."""
        if other.sha256 == self.sha256:
            return
        raise EncoderMismatchError(
            f"expected encoder {self.name} (sha256 {self.sha256}) for the bank {bank}, "
            f"got {other.name} (sha256 {other.sha256}); use that encoder, or rebuild the bank: "
            "python -m index build --encoder ENCODER --images SOURCE --out BANK"
        )


@dataclass(frozen=True)
class SegmentEntry:
    """One immutable segment.

    Attributes:
        name: its folder below `segments/`.
        count: rows, dead ones included.
        index: "flat", or "ivf" (an inverted file whose lists hold the vectors).
        precision: of a stored component.
        lists: number of inverted lists; 0 for flat.
        effort: lists visited by default (nprobe); 0 for flat.
        recall_at_10: share of the true ten nearest found with this effort, over the stored vectors.
        files: SHA-256 of each file.
    """

    name: str
    count: int
    index: IndexKind
    precision: Precision
    lists: int
    effort: int
    recall_at_10: float
    files: Mapping[str, str]


@dataclass(frozen=True)
class Manifest:
    """The committed state of a bank, journal aside.

    Attributes:
        encoder: whose vectors these are.
        store: what was asked for; "auto" goes from float32 to float16 at a compaction above FLOAT16_ABOVE items.
        precision: what new vectors are rounded to, so that a compaction changes no answer.
        generation: of the bank when this was written; the catalogue holds the current one.
        segments: oldest first.
        class_names: position = class code.
    """

    encoder: EncoderIdentity
    store: Store
    precision: Precision
    generation: int = 0
    segments: tuple[SegmentEntry, ...] = ()
    class_names: tuple[str, ...] = ()

    @property
    def format_version(self) -> int:
        """Of the directory, as this version writes it."""
        return FORMAT_VERSION

    @property
    def tuning(self) -> dict[str, Any]:
        """How the bank is searched by default, and how much of the truth that finds."""
        inverted = [segment for segment in self.segments if segment.index == "ivf"]
        if not inverted:
            return {"index": "flat", "effort": 0, "recall@10": 1.0, "how": "every vector is compared"}
        return {
            "index": "ivf",
            "effort": max(segment.effort for segment in inverted),
            "recall@10": min(segment.recall_at_10 for segment in inverted),
            "how": "the bank's own vectors as queries, own item excluded, against exact search of what is stored",
        }

    def to_json(self) -> str:
        """Return the text of `manifest.json`, which ends with a checksum of the rest."""
        body = {
            "format_version": FORMAT_VERSION,
            "generation": self.generation,
            "encoder": asdict(self.encoder),
            "metric": "cosine",
            "store": self.store,
            "precision": self.precision,
            "segments": [asdict(segment) for segment in self.segments],
            "tuning": self.tuning,
            "class_names": list(self.class_names),
        }
        return json.dumps(body | {"checksum": _checksum(body)}, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, source: object) -> Self:
        """Read a manifest back.

        Args:
            text: as `to_json` wrote it.
            source: the file that it comes from, for messages.

        Raises:
            BankFormatError: written by a newer version.
            BankDamagedError: anything else that is not exactly what was written.
        """
        try:
            body = json.loads(text)
            version = body["format_version"]
            if isinstance(version, int) and version > FORMAT_VERSION:
                raise BankFormatError(
                    f"expected bank format {FORMAT_VERSION} or older in {source}, got {version}; "
                    "use the newer Lookalike that wrote it"
                )
            _check(body, body.pop("checksum"))
            return cls(
                encoder=EncoderIdentity(**body["encoder"]),
                store=body["store"],
                precision=body["precision"],
                generation=body["generation"],
                segments=tuple(_segment(entry) for entry in body["segments"]),
                class_names=tuple(body["class_names"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise damaged(source, str(error)) from error


def damaged(source: object, what: str) -> BankDamagedError:
    """Return the one sentence for a file that is not what was written."""
    return BankDamagedError(
        f"expected an intact {source}, got a damaged one ({' '.join(what.split())[:300]}); restore it from a copy, "
        "or see what is wrong with: python -m index verify --bank BANK"
    )


def _check(body: Mapping[str, Any], checksum: object) -> None:
    if body["format_version"] != FORMAT_VERSION or checksum != _checksum(body):
        raise ValueError("the checksum does not match")


def _checksum(body: Mapping[str, Any]) -> str:
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _segment(entry: dict[str, Any]) -> SegmentEntry:
    segment = SegmentEntry(**entry)
    # Names become paths: even a manifest with a valid checksum must not lead outside of the bank.
    if not _SEGMENT_NAME.fullmatch(segment.name) or sorted(segment.files) != sorted(SEGMENT_FILES):
        raise ValueError(f"segment {segment.name!r} names other files than {', '.join(SEGMENT_FILES)}")
    if not all(_SHA256.fullmatch(digest) for digest in segment.files.values()):
        raise ValueError(f"segment {segment.name!r} has a malformed checksum")
    return segment

"""Rebuild the example gallery from Debian's ``openclipart-png`` package.

The pictures were chosen by eye; the choice is ``gallery_selection.csv`` beside this file. What follows the choice
is mechanical, so the gallery is rebuilt byte for byte wherever Pillow carries the same libwebp:

    sudo apt-get install openclipart-png
    python examples/build_gallery.py --source /usr/share/openclipart/png --out examples/gallery
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

LONG_SIDE = 192
LARGEST_SOURCE = 4096  # a few drawings of the package are 16 000 px wide: decoding them is not worth the memory
QUALITY = 80
ALPHA_QUALITY = 60  # lossless alpha takes sixty times as long and a third more space, for the same edges
NEAR_WHITE = 250
SELECTION = Path(__file__).with_name("gallery_selection.csv")
PROVENANCE_COLUMNS = ("file", "category", "title", "author", "source", "sha256")


@dataclass(frozen=True)
class Choice:
    """One chosen picture: where it comes from, where it goes, and whom to thank."""

    source: str
    category: str
    slug: str
    title: str
    author: str

    @property
    def file(self) -> str:
        """Where the picture lies, relative to the gallery."""
        return f"{self.category}/{self.slug}.webp"


def read_selection(path: Path) -> list[Choice]:
    """Read the choice, in file order.

    Raises:
        SystemExit: two rows would write the same file.
    """
    with path.open(encoding="utf-8", newline="") as lines:
        choices = [Choice(**row) for row in csv.DictReader(lines)]
    files = [choice.file for choice in choices]
    twice = sorted({file for file in files if files.count(file) > 1})
    if twice:
        sys.exit(f"expected every slug once in its category, got {twice[0]} twice in {path}; rename one of them")
    return choices


def drawing_box(picture: Image.Image) -> tuple[int, int, int, int]:
    """The box around everything that is visible on a white page, with a margin of 2 % of its longer side.

    Many drawings are a thumbnail in the corner of an A4 page; the empty page would be most of what is searched.
    """
    page = Image.new("RGBA", picture.size, "white")
    page.alpha_composite(picture)
    ink = np.any(np.asarray(page.convert("RGB")) < NEAR_WHITE, axis=2)
    rows, columns = np.flatnonzero(np.any(ink, axis=1)), np.flatnonzero(np.any(ink, axis=0))
    if rows.size == 0:
        return (0, 0, picture.width, picture.height)
    top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    margin = round(0.02 * max(bottom - top, right - left))
    return (
        max(left - margin, 0),
        max(top - margin, 0),
        min(right + margin, picture.width),
        min(bottom + margin, picture.height),
    )


def reduce(picture: Image.Image) -> Image.Image:
    """Trim to the drawing, then one antialiased resize to at most ``LONG_SIDE`` pixels; small ones stay so.

    Pillow resizes RGBA with premultiplied alpha, so no colour of a transparent pixel bleeds into an edge.
    """
    picture = picture.convert("RGBA")
    picture = picture.crop(drawing_box(picture))
    scale = LONG_SIDE / max(picture.size)
    if scale < 1:
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    return picture.convert("RGB") if picture.getchannel("A").getextrema() == (255, 255) else picture


def webp(path: Path) -> bytes:
    """The WebP file of one PNG of the package.

    Raises:
        ValueError: the picture is larger than ``LARGEST_SOURCE`` on a side.
    """
    with Image.open(path) as picture:
        if max(picture.size) > LARGEST_SOURCE:
            message = f"expected at most {LARGEST_SOURCE} px a side, got {picture.size} in {path}; leave it out"
            raise ValueError(message)
        small = reduce(picture)
    out = io.BytesIO()
    small.save(out, "WEBP", quality=QUALITY, alpha_quality=ALPHA_QUALITY, method=6)
    return out.getvalue()


def build(source: Path, out: Path, choices: list[Choice]) -> int:
    """Write every picture and ``provenance.csv`` under ``out``; pictures no longer chosen are removed.

    Returns:
        The bytes of all pictures together.
    """
    rows: list[tuple[str, ...]] = []
    total = 0
    for choice in choices:
        data = webp(source / choice.source)
        target = out / choice.file
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        total += len(data)
        digest = hashlib.sha256(data).hexdigest()
        rows.append((choice.file, choice.category, choice.title, choice.author, choice.source, digest))
    chosen = {out / choice.file for choice in choices}
    for stale in [path for path in out.glob("*/*.webp") if path not in chosen]:
        stale.unlink()
    for folder in [path for path in out.iterdir() if path.is_dir() and not any(path.iterdir())]:
        folder.rmdir()
    part = out / "provenance.csv.part"
    with part.open("w", encoding="utf-8", newline="") as lines:
        writer = csv.writer(lines, lineterminator="\n")
        writer.writerow(PROVENANCE_COLUMNS)
        writer.writerows(sorted(rows))
    os.replace(part, out / "provenance.csv")  # noqa: PTH105 - replaces on every platform
    return total


def main() -> None:
    """Rebuild the gallery from the command line."""
    parser = argparse.ArgumentParser(description="Rebuild the example gallery from the openclipart-png package.")
    parser.add_argument("--source", type=Path, default=Path("/usr/share/openclipart/png"), help="the PNGs")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("gallery"), help="folder to write")
    parser.add_argument("--selection", type=Path, default=SELECTION, help="the choice of pictures (CSV)")
    arguments = parser.parse_args()
    if not arguments.source.is_dir():
        sys.exit(f"expected the PNGs of openclipart-png, got {arguments.source}; apt-get install openclipart-png")
    choices = read_selection(arguments.selection)
    total = build(arguments.source, arguments.out, choices)
    categories = len({choice.category for choice in choices})
    megabytes = total / 1e6
    sys.stdout.write(f"{len(choices)} pictures in {categories} categories, {megabytes:.1f} MB, {arguments.out}\n")


if __name__ == "__main__":
    main()

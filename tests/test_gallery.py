"""The example gallery is what its provenance says, and stays small enough to ship."""

import csv
import hashlib
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

GALLERY = Path(__file__).resolve().parents[1] / "examples" / "gallery"


@pytest.fixture(scope="module")
def provenance() -> list[dict[str, str]]:
    with (GALLERY / "provenance.csv").open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def test_every_row_has_its_file_and_every_file_its_row(provenance):
    named = [row["file"] for row in provenance]
    assert sorted(named) == sorted(path.relative_to(GALLERY).as_posix() for path in GALLERY.glob("*/*"))
    assert len(named) == len(set(named))


def test_every_file_has_the_recorded_sha256_and_lies_in_its_category(provenance):
    for row in provenance:
        assert hashlib.sha256((GALLERY / row["file"]).read_bytes()).hexdigest() == row["sha256"], row["file"]
        assert row["file"].split("/")[0] == row["category"]
        assert row["title"]
        assert row["author"]


def test_no_two_pictures_are_the_same_file(provenance):
    assert len({row["sha256"] for row in provenance}) == len(provenance)


def test_every_picture_is_a_small_webp(provenance):
    for row in provenance:
        with Image.open(GALLERY / row["file"]) as picture:
            picture.load()
            assert picture.format == "WEBP"
            assert picture.mode in {"RGB", "RGBA"}
            assert max(picture.size) <= 192


def test_the_gallery_is_of_the_promised_size(provenance):
    assert 2300 <= len(provenance) <= 2700
    assert sum((GALLERY / row["file"]).stat().st_size for row in provenance) < 12_000_000


def test_every_category_has_at_least_a_dozen_pictures(provenance):
    counts = Counter(row["category"] for row in provenance)
    assert min(counts.values()) >= 12, counts.most_common()[-3:]

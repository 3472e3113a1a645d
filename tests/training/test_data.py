"""Pictures for training: the decode contract, labels, and what happens to the broken ones."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from index import images
from index.errors import SourceError, TrainingError
from training import data
from training.data import load_pictures, preprocess_of, write_skipped


def test_a_folder_gives_pictures_in_path_order_with_the_folders_as_labels(tiny_recipe, shapes_folder):
    pictures = load_pictures(shapes_folder, tiny_recipe)
    assert len(pictures) == 32
    assert pictures.classes == ("circle", "square", "stripes", "triangle")
    assert list(pictures.ids) == sorted(pictures.ids)
    assert pictures.labels.tolist() == [0] * 8 + [1] * 8 + [2] * 8 + [3] * 8
    assert pictures.cached.shape == (32, 3, 20, 20)


@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_the_prepared_pictures_are_what_indexing_and_the_service_see(tiny_recipe, shapes_folder, fit):
    recipe = dataclasses.replace(tiny_recipe, fit=fit)
    pictures = load_pictures(shapes_folder, recipe)
    for row in (0, 17):
        content = (shapes_folder / pictures.ids[row]).read_bytes()
        assert np.array_equal(pictures.prepared[row], images.load(content, preprocess_of(recipe)))


def test_labels_can_be_left_unread(tiny_recipe, shapes_folder):
    pictures = load_pictures(shapes_folder, tiny_recipe, labels=False)
    assert pictures.classes == ()
    assert set(pictures.labels.tolist()) == {-1}
    assert not pictures.labelled


def test_a_parquet_file_gives_the_same_pictures(tiny_recipe, shapes_folder, tmp_path):
    files = sorted(shapes_folder.rglob("*.png"))
    table = pa.table(
        {
            "id": [file.relative_to(shapes_folder).as_posix() for file in files],
            "image": [file.read_bytes() for file in files],
            "label": [file.parent.name for file in files],
        }
    )
    parquet.write_table(table, tmp_path / "shapes.parquet")
    assert (
        load_pictures(tmp_path / "shapes.parquet", tiny_recipe).fingerprint()
        == load_pictures(shapes_folder, tiny_recipe).fingerprint()
    )


def test_broken_pictures_are_skipped_and_listed(tiny_recipe, tmp_path, shape_png):
    (tmp_path / "good.png").write_bytes(shape_png("circle", 1))
    (tmp_path / "cut.png").write_bytes(shape_png("circle", 2)[:90])
    (tmp_path / "text.jpg").write_bytes(b"not a picture")
    pictures = load_pictures(tmp_path, tiny_recipe)
    assert pictures.ids == ("good.png",)
    assert [name for name, _ in pictures.skipped] == ["cut.png", "text.jpg"]
    write_skipped(tmp_path / "skipped.csv", pictures.skipped)
    lines = (tmp_path / "skipped.csv").read_text().splitlines()
    assert lines[0] == "id,reason"
    assert lines[2].startswith("text.jpg,")


def test_only_broken_pictures_are_an_error_that_shows_the_first_reason(tiny_recipe, tmp_path):
    (tmp_path / "text.jpg").write_bytes(b"not a picture")
    with pytest.raises(SourceError, match="got none; the first of 1 failed with: expected a JPEG"):
        load_pictures(tmp_path, tiny_recipe)


def test_a_missing_folder_and_an_empty_one_are_told_apart(tiny_recipe, tmp_path):
    with pytest.raises(SourceError, match="no such folder"):
        load_pictures(tmp_path / "absent", tiny_recipe)
    with pytest.raises(SourceError, match="got none"):
        load_pictures(tmp_path, tiny_recipe)


def test_pictures_that_do_not_fit_into_memory_are_refused_before_decoding(tiny_recipe, shapes_folder, monkeypatch):
    monkeypatch.setattr(data, "_total_memory", lambda: 50_000)
    with pytest.raises(TrainingError, match="half of this machine's memory"):
        load_pictures(shapes_folder, tiny_recipe)


def test_the_fingerprint_follows_pixels_and_labels(tiny_recipe, shapes_folder):
    pictures = load_pictures(shapes_folder, tiny_recipe)
    changed = pictures.cached.clone()
    changed[5, 0, 0, 0] += 1
    assert dataclasses.replace(pictures, cached=changed).fingerprint() != pictures.fingerprint()
    assert dataclasses.replace(pictures, labels=pictures.labels[::-1]).fingerprint() != pictures.fingerprint()

"""Pictures for training: the decode contract, labels, and what happens to the broken ones."""

import dataclasses
import shutil

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from index import images
from index.errors import RecipeError, SourceError, TrainingError
from training import data, decoding
from training.data import load_pictures, preprocess_of, write_skipped
from training.evaluation.knn import Evaluation
from training.runs import _open_folder, start


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


def test_the_fingerprint_follows_pixels_and_labels(tiny_recipe, shapes_folder, tmp_path, shape_png):
    copy = tmp_path / "copy"
    shutil.copytree(shapes_folder, copy)
    before = load_pictures(shapes_folder, tiny_recipe).fingerprint()
    assert load_pictures(copy, tiny_recipe).fingerprint() == before
    assert load_pictures(copy, tiny_recipe, labels=False).fingerprint() != before
    (copy / "circle" / "3.png").write_bytes(shape_png("circle", 99))
    assert load_pictures(copy, tiny_recipe).fingerprint() != before


@pytest.mark.parametrize("workers", ["threads", "processes"])
def test_it_does_not_matter_who_decodes(tiny_recipe, shapes_folder, monkeypatch, workers):
    monkeypatch.setattr(decoding, "_GROUP_BYTES", 5_000)  # a few pictures a group
    one = load_pictures(shapes_folder, tiny_recipe)
    many = load_pictures(shapes_folder, tiny_recipe, workers=workers)
    assert many.fingerprint() == one.fingerprint()
    assert np.array_equal(many.prepared, one.prepared)
    assert torch.equal(many.cached, one.cached)
    assert (many.ids, many.labels.tolist()) == (one.ids, one.labels.tolist())


@pytest.mark.parametrize("fit", ["crop", "pad"])
@pytest.mark.parametrize("sizes", [(16, 20), (16, 16), (40, 60)])
def test_both_sizes_are_those_of_the_decode_contract_for_every_format(tiny_recipe, tmp_path, fit, sizes):
    rng = np.random.default_rng(5)
    for name in ("a.jpg", "b.png", "c.webp"):  # large enough that a JPEG is decoded at a fraction of its size
        Image.fromarray(rng.integers(0, 256, (300, 390, 3), np.uint8)).save(tmp_path / name)
    size, cache_size = sizes
    recipe = dataclasses.replace(tiny_recipe, fit=fit, image_size=size, cache_size=cache_size)
    pictures = load_pictures(tmp_path, recipe)
    cached = images.Preprocess(resize=cache_size, crop=cache_size, fit=fit)
    for row, name in enumerate(pictures.ids):
        content = (tmp_path / name).read_bytes()
        assert np.array_equal(pictures.cached[row].permute(1, 2, 0), images.load(content, cached))
        assert np.array_equal(pictures.prepared[row], images.load(content, preprocess_of(recipe)))


def test_a_table_without_labels_is_not_labelled_and_missing_ones_do_not_vote(tiny_recipe, shapes_folder, tmp_path):
    files = sorted(shapes_folder.rglob("*.png"))[:12]
    for number, file in enumerate(files):
        (tmp_path / f"{number}.png").write_bytes(file.read_bytes())
    (tmp_path / "t.csv").write_text("path\n" + "".join(f"{number}.png\n" for number in range(12)))
    assert not load_pictures(tmp_path / "t.csv", tiny_recipe).labelled
    labels = ["a", "b", ""] * 4
    rows = "".join(f"{number}.png,{label}\n" for number, label in enumerate(labels))
    (tmp_path / "t.csv").write_text("path,label\n" + rows)
    pictures = load_pictures(tmp_path / "t.csv", tiny_recipe)
    assert pictures.labels.tolist() == [0, 1, -1] * 4
    assert pictures.classes == ("a", "b")


def test_test_pictures_without_labels_are_one_sentence(tiny_recipe, shapes_folder):
    unlabelled = load_pictures(shapes_folder, tiny_recipe, labels=False)
    with pytest.raises(
        TrainingError, match=r"expected test pictures of the training classes .*got none; check --test"
    ):
        Evaluation(tiny_recipe, load_pictures(shapes_folder, tiny_recipe), unlabelled)


def test_a_recipe_for_the_wrong_image_size_is_one_sentence(tiny_recipe, shapes_folder, tmp_path, capsys):
    wrong = dataclasses.replace(tiny_recipe, image_size=32, cache_size=16)
    with pytest.raises(RecipeError, match=r"cache_size of at least image_size \(32\), got 16"):
        load_pictures(shapes_folder, wrong)
    for number, file in enumerate(sorted(shapes_folder.rglob("*.png"))):
        with Image.open(file) as picture:
            picture.resize((8, 6) if number < 4 else (6, 7)).save(tmp_path / f"{number}.png")
    assert load_pictures(shapes_folder, tiny_recipe).enlarged == 0
    assert load_pictures(tmp_path, tiny_recipe).enlarged == 28
    _open_folder(tmp_path / "run", tiny_recipe, load_pictures(tmp_path, tiny_recipe), {})
    assert "28 of 32 pictures had to be enlarged more than twice for image_size 16" in capsys.readouterr().err


def test_fewer_pictures_than_a_batch_and_one_alone_are_one_sentence(tiny_recipe, tmp_path, shape_png):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.png").write_bytes(shape_png("circle", 1))
    with pytest.raises(TrainingError, match=r"expected at least two different pictures.*got one"):
        start(tiny_recipe, data=tmp_path / "data", test=None, labels=True, folder=tmp_path / "run")
    (tmp_path / "data" / "b.png").write_bytes(shape_png("circle", 2))
    with pytest.raises(TrainingError, match="expected at least one batch of 8 pictures, got 2"):
        start(tiny_recipe, data=tmp_path / "data", test=None, labels=True, folder=tmp_path / "run")


def test_a_container_has_the_memory_that_its_control_group_grants(tmp_path, monkeypatch):
    machine = data._total_memory()
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(data, "_CGROUP_LIMIT", limit)
    for text, expected in (("max\n", machine), ("1000000\n", 1_000_000), ("", machine)):
        limit.write_text(text)
        assert data._total_memory() == min(machine, expected)

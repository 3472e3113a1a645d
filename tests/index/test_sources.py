import pytest

from index.errors import SourceError
from index.sources import FolderSource, ParquetSource, open_source


def test_a_folder_gives_its_pictures_in_path_order_with_class_folders_as_labels(shapes_folder):
    source = FolderSource(shapes_folder)
    items = list(source)
    assert len(source) == len(items) == 32
    assert [item.id for item in items] == sorted(item.id for item in items)
    assert list(source.ids()) == [item.id for item in items]
    assert {item.label for item in items} == {"circle", "square", "stripes", "triangle"}
    assert all(item.label == item.id.split("/")[0] and item.uri == item.id for item in items)
    assert items[0].read() == (shapes_folder / items[0].id).read_bytes()


def test_only_pictures_count_and_pictures_in_the_root_have_no_label(tmp_path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for name in ("a.JPG", "deep/er/b.webp", "notes.txt", ".hidden.png", "deep/table.csv"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "c.png").write_bytes(b"x")
    found = {item.id: item.label for item in FolderSource(tmp_path)}
    assert found == {"a.JPG": None, "deep/er/b.webp": "deep"}
    assert {item.label for item in FolderSource(tmp_path, labels="none")} == {None}


def test_missing_and_empty_folders_are_one_sentence(tmp_path):
    with pytest.raises(SourceError, match="no such folder"):
        open_source(tmp_path / "absent")
    with pytest.raises(SourceError, match="got none"):
        open_source(tmp_path)


def test_a_parquet_file_gives_its_rows(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pa.table({"image": [{"bytes": b"one"}, {"bytes": b"two"}], "label": [7, 3], "id": ["x", "y"]})
    parquet.write_table(table, tmp_path / "set.parquet")
    items = list(open_source(tmp_path / "set.parquet"))
    assert [(item.id, item.label, item.uri, item.read()) for item in items] == [
        ("x", "7", None, b"one"),
        ("y", "3", None, b"two"),
    ]
    assert list(open_source(tmp_path / "set.parquet").ids()) == ["x", "y"]
    parquet.write_table(table.select(["image"]), tmp_path / "bare.parquet")
    bare = ParquetSource(tmp_path / "bare.parquet")
    assert [item.id for item in bare] == list(bare.ids()) == ["bare/0000000", "bare/0000001"]


def test_a_parquet_file_without_pictures_is_one_sentence(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pa.table({"picture": [b"x"]}), tmp_path / "wrong.parquet")
    with pytest.raises(SourceError, match="column `image`"):
        open_source(tmp_path / "wrong.parquet")
    parquet.write_table(pa.table({"image": pa.array([], pa.binary())}), tmp_path / "empty.parquet")
    with pytest.raises(SourceError, match="empty table"):
        open_source(tmp_path / "empty.parquet")
    (tmp_path / "text.parquet").write_text("hello")
    with pytest.raises(SourceError, match="expected a Parquet file"):
        open_source(tmp_path / "text.parquet")
    with pytest.raises(SourceError, match="expected a Parquet file"):
        open_source(tmp_path / "absent.parquet")

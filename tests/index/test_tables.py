"""Tables of paths, CSV and Parquet."""

import pickle

import pytest

from index.errors import SourceError
from index.images import Preprocess, load
from index.indexer import build
from index.memory_bank import EncoderIdentity, MemoryBank
from index.sources import open_source


def write(path, text):
    path.write_text(text)
    return path


def shape_table(folder, shapes_folder, kind="csv"):
    """The same pictures as the class folders, named by a table beside them."""
    rows = [(f"{label}/{seed}.png", label) for label in ("circle", "square") for seed in range(3)]
    for path, _ in rows:
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_bytes((shapes_folder / path).read_bytes())
    if kind == "csv":
        return write(folder / "set.csv", "path,label\n" + "".join(f"{path},{label}\n" for path, label in rows))
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    columns = {"path": [path for path, _ in rows], "label": [label for _, label in rows]}
    parquet.write_table(pa.table(columns), folder / "set.parquet")
    return folder / "set.parquet"


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_table_gives_the_pictures_that_class_folders_give(tmp_path, shapes_folder, kind):
    items = list(open_source(shape_table(tmp_path, shapes_folder, kind)))
    expected = [item for item in open_source(shapes_folder) if item.id in {item.id for item in items}]
    assert [(i.id, i.uri, i.label, i.read()) for i in items] == [(i.id, i.uri, i.label, i.read()) for i in expected]
    assert list(open_source(tmp_path / f"set.{kind}").ids()) == [item.id for item in items]
    assert {item.label for item in open_source(tmp_path / f"set.{kind}", "none")} == {None}


def test_a_picture_can_be_read_in_another_process(tmp_path, shapes_folder):
    items = list(open_source(shape_table(tmp_path, shapes_folder)))
    assert pickle.loads(pickle.dumps(items[2])).read() == items[2].read()


def test_the_columns_image_and_id_work_and_missing_labels_are_none(tmp_path, shape_png):
    (tmp_path / "a.png").write_bytes(shape_png("circle", 1))
    table = write(tmp_path / "t.csv", "\ufeffid,image,label,width\nfirst,a.png,round,48\nsecond,./a.png,,48\n")
    assert [(item.id, item.uri, item.label) for item in open_source(table)] == [
        ("first", "a.png", "round"),
        ("second", "a.png", None),
    ]


def test_what_cannot_be_read_is_a_broken_picture_with_a_reason(tmp_path, shape_png):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "good.png").write_bytes(shape_png("circle", 1))
    (tmp_path / "secret.png").write_bytes(shape_png("circle", 2))
    text = f"path\ngood.png\nabsent.png\n../secret.png\n{tmp_path}/secret.png\n''\n.\n"
    items = list(open_source(write(tmp_path / "in" / "t.csv", text)))
    reasons = []
    for item in items[1:]:
        with pytest.raises(SourceError) as caught:
            item.read()
        reasons.append(str(caught.value))
    assert "got no file" in reasons[0]
    assert reasons[1].startswith("expected a path inside")
    assert reasons[2].startswith("expected a path inside")
    assert "got something else" in reasons[4]
    assert load(items[0].read(), Preprocess(resize=8, crop=8)).shape == (8, 8, 3)


def test_an_empty_path_is_one_broken_picture(tmp_path):
    items = list(open_source(write(tmp_path / "t.csv", "path,label\n,circle\nb.png,square\n")))
    assert [item.id for item in items] == ["t/0000000", "b.png"]
    with pytest.raises(SourceError, match="empty cell"):
        items[0].read()


def test_a_bank_built_from_a_table_lists_what_was_missing(tmp_path, shapes_folder, tiny_encoder):
    table = shape_table(tmp_path, shapes_folder)
    table.write_text(table.read_text() + "circle/gone.png,circle\n")
    with MemoryBank.create(tmp_path / "bank", encoder=EncoderIdentity.of(tiny_encoder)) as bank:
        report = build(open_source(table), tiny_encoder, bank)
        assert report.added == bank.count == 6
        assert [(name, code) for name, code, _ in report.skipped] == [("circle/gone.png", "source_invalid")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty table"),
        ("path,label\n", "empty table"),
        ("file,label\na.png,x\n", "column `path` or `image` in the first line.*got file, label"),
        ("path\na.png\nb.png\na.png\n", "each picture once.*'a.png' in rows 1 and 3"),
        ('path\n"a.png\n', "expected a CSV file"),
    ],
)
def test_a_table_that_is_none_is_one_sentence(tmp_path, text, message):
    with pytest.raises(SourceError, match=message):
        open_source(write(tmp_path / "t.csv", text))


def test_a_missing_table_and_one_that_is_no_text_are_one_sentence(tmp_path):
    with pytest.raises(SourceError, match=r"expected a CSV file.*No such file"):
        open_source(tmp_path / "absent.csv")
    (tmp_path / "bytes.csv").write_bytes(b"path\n\xff\xfe.png\n")
    with pytest.raises(SourceError, match="expected a CSV file"):
        open_source(tmp_path / "bytes.csv")


def test_a_parquet_table_without_a_useful_column_is_one_sentence(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pa.table({"file": ["a.png"]}), tmp_path / "t.parquet")
    with pytest.raises(SourceError, match=r"column `image` \(bytes or paths\) or `path`"):
        open_source(tmp_path / "t.parquet")
    parquet.write_table(pa.table({"path": pa.array([], pa.string())}), tmp_path / "e.parquet")
    with pytest.raises(SourceError, match="empty table"):
        open_source(tmp_path / "e.parquet")

"""WebDataset shards: headers once, members by offset, damage listed."""

import io
import json
import pickle
import tarfile

import pytest

from index.errors import SourceError
from index.sources import open_source
from index.sources.shards import _unfold


def write_shard(path, members, **options):
    with tarfile.open(path, "w", **options) as tar:
        for name, data in members:
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    return path


def samples(shape_png, first, count, kind="circle"):
    for seed in range(first, first + count):
        yield f"{seed:06d}.png", shape_png(kind, seed)
        yield f"{seed:06d}.cls", kind.encode()


@pytest.fixture
def shards(tmp_path, shape_png):
    for number, kind in enumerate(("circle", "square", "stripes")):
        write_shard(tmp_path / f"shard-{number:03d}.tar", samples(shape_png, 10 * number, 4, kind))
    return tmp_path


def test_a_shard_gives_its_members_in_order_with_their_labels(shards, shape_png):
    items = list(open_source(shards / "shard-001.tar"))
    assert [item.id for item in items] == [f"shard-001/{seed:06d}.png" for seed in range(10, 14)]
    assert [item.read() for item in items] == [shape_png("square", seed) for seed in range(10, 14)]
    assert {item.label for item in items} == {"square"}
    assert pickle.loads(pickle.dumps(items[1])).read() == items[1].read()
    assert {item.label for item in open_source(shards / "shard-001.tar", "none")} == {None}


def test_a_folder_a_range_and_a_star_give_the_same_pictures(shards):
    expected = [(i.id, i.label, i.read()) for i in open_source(shards)]
    assert len(expected) == len(open_source(shards)) == 12
    for pattern in ("shard-{000..002}.tar", "shard-*.tar", "shard-00{0,1,2}.tar", "shard-00[0-2].tar"):
        source = open_source(shards / pattern)
        assert [(i.id, i.label, i.read()) for i in source] == expected
        assert list(source.ids()) == [name for name, _, _ in expected]
    assert next(open_source(str(shards / "shard-{002..001}.tar")).ids()) == "shard-002/000020.png"


def test_patterns_unfold_as_a_shell_does():
    assert list(_unfold("a{08..11}")) == ["a08", "a09", "a10", "a11"]
    assert list(_unfold("{a,b}{1..2}")) == ["a1", "a2", "b1", "b2"]
    assert list(_unfold("{2..0}x")) == ["2x", "1x", "0x"]
    assert list(_unfold("plain")) == ["plain"]
    with pytest.raises(SourceError, match="at most"):
        list(_unfold("{0..999999999}"))


@pytest.mark.parametrize(
    ("members", "label"),
    [
        ([("a.cls", b"7\n")], "7"),
        ([("a.txt", b" cat ")], "cat"),
        ([("a.json", json.dumps({"label": 3, "caption": "x"}).encode())], "3"),
        ([("a.json", b'{"label": 0}'), ("a.txt", b"a long caption")], "0"),
        ([("a.json", b"{"), ("a.txt", b"cat")], "cat"),
        ([("a.json", b"[1]")], None),
        ([("a.cls", b"\xff\xfe")], None),
        ([("b.cls", b"7")], None),
    ],
)
def test_the_label_is_the_first_member_that_says_one(tmp_path, shape_png, members, label):
    shard = write_shard(tmp_path / "s.tar", [*members, ("a.png", shape_png("circle", 1))])
    assert [item.label for item in open_source(shard)] == [label]


def test_folders_long_names_and_other_members_are_fine(tmp_path, shape_png):
    long = "deep/" * 30 + "x" * 120
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        members = [(f"{long}.png", shape_png("circle", 1)), (f"{long}.cls", b"round"), ("notes.md", b"hello")]
        shard = write_shard(tmp_path / "s.tar", members, format=form)
        with tarfile.open(shard, "a") as tar:
            for kind, name in ((tarfile.DIRTYPE, "folder.png"), (tarfile.SYMTYPE, "link.png")):
                header = tarfile.TarInfo(name)
                header.type, header.linkname = kind, "/etc/passwd"
                tar.addfile(header)
        assert [(item.id, item.label) for item in open_source(shard)] == [(f"s/{long}.png", "round")]


def reasons(source):
    found = []
    for item in source:
        try:
            item.read()
        except SourceError as error:
            found.append((item.id, str(error)))
    return found


def test_a_shard_cut_anywhere_gives_the_members_before_and_says_so(shards):
    whole = (shards / "shard-000.tar").read_bytes()
    expected = {item.id: item.read() for item in open_source(shards / "shard-000.tar")}
    with tarfile.open(shards / "shard-000.tar") as tar:
        ends = [header.offset_data + -(-header.size // 512) * 512 for header in tar]
    for cut in [*range(600, ends[-1], 300), *ends]:
        (shards / "shard-000.tar").write_bytes(whole[:cut])
        source = open_source(shards)
        broken = reasons(source)
        read = [item.id for item in source if item.id.startswith("shard-000/") and item.id not in dict(broken)]
        assert read == list(expected)[: len(read)]
        # All members that are whole are there; the cut is listed once, and what it cut.
        assert len(read) >= sum(end <= cut for end in ends[::2])
        assert broken
        assert all(name.startswith("shard-000") for name, _ in broken)
        assert broken[-1][0] == "shard-000.tar"
        assert len(broken) <= 2


def test_a_damaged_header_in_the_middle_is_listed(shards):
    data = bytearray((shards / "shard-000.tar").read_bytes())
    with tarfile.open(shards / "shard-000.tar") as tar:
        start = tar.getmembers()[4].offset
    data[start : start + 8] = b"\xff" * 8
    (shards / "shard-000.tar").write_bytes(data)
    source = open_source(shards / "shard-000.tar")
    assert len(list(source)) == len(source) == 3
    sentence = f"expected a whole .tar at {shards}/shard-000.tar, got one that is damaged at byte {start:,}"
    assert reasons(source) == [("shard-000.tar", sentence)]


def test_a_missing_shard_of_a_range_is_listed(shards):
    source = open_source(shards / "shard-{000..003}.tar")
    assert len(source) == 13
    assert [name for name, _ in reasons(source)] == ["shard-003.tar"]
    assert "No such file" in reasons(source)[0][1]


def test_no_shards_no_pictures_and_no_tar_are_one_sentence(tmp_path, shape_png):
    with pytest.raises(SourceError, match=r"expected \.tar shards at .*, got no such file"):
        open_source(tmp_path / "s.tar")
    with pytest.raises(SourceError, match=r"expected \.tar shards at .*, got no such file"):
        open_source(tmp_path / "s-{0..3}.tar")
    with pytest.raises(SourceError, match="got no such file"):
        open_source(tmp_path / "s-*.tar")
    write_shard(tmp_path / "s.tar", [("a.txt", b"hello")])
    with pytest.raises(SourceError, match=r"expected pictures in the 1 shards.*got none"):
        open_source(tmp_path / "s.tar")
    (tmp_path / "s.tar").write_bytes(shape_png("circle", 1) * 30)
    with pytest.raises(SourceError, match=r"got none.*expected a whole"):
        open_source(tmp_path / "s.tar")
    (tmp_path / "s.tar").write_bytes(b"")
    with pytest.raises(SourceError, match=r"got none.*expected a whole"):
        open_source(tmp_path / "s.tar")

import contextlib
import csv
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from index.encoder import Encoder
from index.errors import BankError, EncoderMismatchError, SourceError
from index.indexer import build
from index.memory_bank import EncoderIdentity, MemoryBank
from index.retriever import Retriever
from index.sources import FolderSource, Picture


@pytest.fixture
def bank(tiny_encoder, tmp_path):
    with MemoryBank.create(tmp_path / "bank", encoder=EncoderIdentity.of(tiny_encoder)) as bank:
        yield bank


def test_a_folder_becomes_a_bank_that_finds_each_picture_itself(tiny_encoder, bank, shapes_folder):
    source = FolderSource(shapes_folder)
    report = build(source, tiny_encoder, bank, batch_size=5)
    assert (report.added, report.already, report.skipped) == (32, 0, [])
    retriever = Retriever(tiny_encoder, bank)
    for picture in source:
        (neighbors,) = retriever.search(retriever.embed([picture.read()]), k=1)
        assert neighbors[0].item.id == picture.id
        assert neighbors[0].item.label == picture.label
        assert neighbors[0].similarity == pytest.approx(1, abs=1e-5)


def test_a_second_run_does_nothing_and_new_pictures_are_added(
    tiny_encoder, bank, shapes_folder, tmp_path, shape_png
):
    build(FolderSource(shapes_folder), tiny_encoder, bank)
    assert build(FolderSource(shapes_folder), tiny_encoder, bank).already == 32
    extra = tmp_path / "more"
    extra.mkdir()
    (extra / "new.png").write_bytes(shape_png("circle", 99))
    assert build(FolderSource(extra), tiny_encoder, bank).added == 1
    assert bank.count == 33


def test_broken_pictures_are_skipped_and_listed(tiny_encoder, bank, tmp_path, shape_png):
    folder = tmp_path / "mixed"
    folder.mkdir()
    (folder / "good.png").write_bytes(shape_png("circle", 0))
    (folder / "copy.png").write_bytes(shape_png("circle", 0))
    (folder / "html.jpg").write_text("<html>")
    (folder / "half.png").write_bytes(shape_png("square", 0)[:100])
    report = build(FolderSource(folder), tiny_encoder, bank, skipped_csv=tmp_path / "skipped.csv")
    assert report.added == 2
    assert report.copies == [("good.png", "copy.png")]
    with (tmp_path / "skipped.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["id"], row["code"]) for row in rows] == [
        ("half.png", "image_decode_failed"),
        ("html.jpg", "image_unknown_format"),
    ]


def test_only_broken_pictures_are_an_error(tiny_encoder, bank, tmp_path):
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "a.jpg").write_text("no")
    with pytest.raises(SourceError, match=r"a\.jpg"):
        build(FolderSource(folder), tiny_encoder, bank)


class Interrupted(FolderSource):
    """Ctrl-C at one picture."""

    def __iter__(self):
        for number, picture in enumerate(super().__iter__()):
            if number == 20:

                def interrupt() -> bytes:
                    raise KeyboardInterrupt

                yield Picture(picture.id, picture.uri, picture.label, interrupt)
            else:
                yield picture


def test_an_interrupted_build_keeps_what_is_done_and_goes_on(tiny_encoder, bank, shapes_folder, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        build(Interrupted(shapes_folder), tiny_encoder, bank, batch_size=4, skipped_csv=tmp_path / "skipped.csv")
    assert 0 < bank.count <= 20
    assert (tmp_path / "skipped.csv").exists()
    report = build(FolderSource(shapes_folder), tiny_encoder, bank, batch_size=4)
    assert report.already + report.added == bank.count == 32


def run(*arguments: object, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "index", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


@pytest.fixture(scope="session")
def built(tiny_encoder_path, shapes_folder, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("cli") / "bank"
    done = run("build", "--encoder", tiny_encoder_path, "--images", shapes_folder, "--out", out)
    assert done.returncode == 0, done.stderr
    assert "32 items, 4 classes" in done.stdout
    assert "32/32" in done.stderr
    return out


def test_the_command_line_builds_searches_tells_and_verifies(built, tiny_encoder_path, shapes_folder, tmp_path):
    query = shapes_folder / "circle" / "3.png"
    montage = tmp_path / "montage.png"
    found = run("search", query, "--encoder", tiny_encoder_path, "--bank", built, "-k", 3, "--montage", montage,
                "--images", shapes_folder)  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert "1.0000  circle" in found.stdout
    assert "circle/3.png" in found.stdout
    assert montage.read_bytes().startswith(b"\x89PNG")
    told = run("info", "--bank", built)
    assert "32" in told.stdout
    assert "triangle" in told.stdout
    checked = run("verify", "--bank", built)
    assert (checked.returncode, checked.stdout.strip()) == (0, f"{built}: sound")


def test_the_same_command_again_finds_everything_there(built, tiny_encoder_path, shapes_folder):
    again = run("build", "--encoder", tiny_encoder_path, "--images", shapes_folder, "--out", built)
    assert "added 0, already there 32" in again.stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("info", "--bank", "absent"), "expected"),
        (("build", "--encoder", "absent.onnx", "--images", "{shapes}", "--out", "b"), "no such file"),
        (("build", "--encoder", "{encoder}", "--images", "absent", "--out", "b"), "no such folder"),
        (("search", "absent.png", "--encoder", "{encoder}", "--bank", "{bank}"), "expected a picture"),
        (("search", "{text}", "--encoder", "{encoder}", "--bank", "{bank}"), "expected a JPEG, PNG"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    arguments, sentence, built, tiny_encoder_path, shapes_folder, tmp_path
):
    text = tmp_path / "page.jpg"
    text.write_text("<html>")
    places = {"shapes": shapes_folder, "encoder": tiny_encoder_path, "bank": built, "text": text}
    failed = run(*(str(a).format(**places) for a in arguments), cwd=Path(__file__).parents[2])
    assert failed.returncode == 2
    (line,) = failed.stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert sentence in line


def test_a_bank_refuses_another_encoder(built, other_encoder_path, shapes_folder):
    failed = run("build", "--encoder", other_encoder_path, "--images", shapes_folder, "--out", built)
    assert failed.returncode == 2
    assert Encoder.load(other_encoder_path, threads=1).sha256 in failed.stderr
    with pytest.raises(EncoderMismatchError):
        MemoryBank.open(
            built, encoder=EncoderIdentity.of(Encoder.load(other_encoder_path, threads=1)), read_only=True
        )


def test_a_build_killed_in_its_middle_is_finished_by_the_same_command(tiny_encoder_path, shapes_folder, tmp_path):
    """kill -9 while one picture is being read: a pipe that nobody writes holds the build exactly there."""
    pictures, out = tmp_path / "pictures", tmp_path / "bank"
    shutil.copytree(shapes_folder, pictures)
    held = pictures / "square" / "4.png"  # the thirteenth in path order
    held.unlink()
    os.mkfifo(held)
    arguments = ("build", "--encoder", tiny_encoder_path, "--images", pictures, "--out", out, "--batch-size", 1)
    child = subprocess.Popen(
        [sys.executable, "-m", "index", *map(str, arguments)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    done = 0
    while done < 12:
        assert child.poll() is None
        with contextlib.suppress(BankError), MemoryBank.open(out, read_only=True) as bank:
            done = bank.count
    child.send_signal(signal.SIGKILL)
    child.wait()
    with MemoryBank.open(out) as bank:
        assert bank.count == 12
        assert bank.verify() == []
    held.unlink()
    shutil.copy(shapes_folder / "square" / "4.png", held)
    again = run(*arguments)
    assert again.returncode == 0, again.stderr
    assert "added 20, already there 12" in again.stdout
    with MemoryBank.open(out, read_only=True) as bank:
        assert bank.count == 32
        assert bank.verify() == []

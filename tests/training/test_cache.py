"""The cache of decoded pictures: the same as in memory, whatever interrupts it."""

import dataclasses
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from index.errors import TrainingError
from index.images import Preprocess
from index.sources import Picture, open_source
from training import cache, data, decoding
from training.cache import open_cache
from training.data import load_pictures
from training.decoding import Geometry, decode_all

ROOT = Path(__file__).parents[2]
GEOMETRY = Geometry(Preprocess(20, 20, fit="pad"), Preprocess(16, 16, fit="pad"))
# A child that fills a cache four pictures a chunk: what it is given to read decides how far it comes.
CHILD = """
import resource, sys
from pathlib import Path
from index.images import Preprocess
from index.sources import open_source
from training import cache, decoding
cache._CHUNK_BYTES = decoding._GROUP_BYTES = 4 * 3 * (20**2 + 16**2)
pictures, folder, workers, limit = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
if __name__ == "__main__":
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    geometry = decoding.Geometry(Preprocess(20, 20, fit="pad"), Preprocess(16, 16, fit="pad"))
    cache.open_cache(open_source(pictures), geometry, folder, pictures, workers=workers, cores=2)
"""


def content(decoded):
    """All that a cache holds, to be compared with ==."""
    arrays = {name: getattr(decoded, name) for name in ("cached", "prepared", "digests")}
    pixels = {name: (array.shape, np.asarray(array).tobytes()) for name, array in arrays.items()}
    return {**pixels, "ids": decoded.ids, "labels": decoded.labels, "skipped": decoded.skipped}


@pytest.fixture
def pictures(tmp_path, shapes_folder):
    """32 pictures, two of them broken."""
    shutil.copytree(shapes_folder, tmp_path / "pictures")
    (tmp_path / "pictures" / "circle" / "5.png").write_bytes(b"not a picture")
    (tmp_path / "pictures" / "square" / "2.png").write_bytes(b"\x89PNG\r\n\x1a\nneither")
    return tmp_path / "pictures"


@pytest.fixture
def small_chunks(monkeypatch):
    for module, name in ((cache, "_CHUNK_BYTES"), (decoding, "_GROUP_BYTES")):
        monkeypatch.setattr(module, name, 4 * GEOMETRY.bytes_per_picture)


def fill(pictures, folder, **options):
    return open_cache(open_source(pictures), GEOMETRY, folder, pictures, **options)


@pytest.mark.usefixtures("small_chunks")
def test_a_cache_holds_what_memory_would(tiny_recipe, pictures, tmp_path):
    memory = load_pictures(pictures, tiny_recipe)
    for _ in range(2):  # decoded, then opened
        disk = load_pictures(pictures, tiny_recipe, cache=tmp_path / "cache")
        assert disk.fingerprint() == memory.fingerprint()
        assert np.array_equal(disk.cached, memory.cached)
        assert np.array_equal(disk.prepared, memory.prepared)
        assert (disk.ids, disk.classes, disk.skipped) == (memory.ids, memory.classes, memory.skipped)
        assert disk.labels.tolist() == memory.labels.tolist()
        assert np.array_equal(disk.first(3), memory.first(3))
        assert isinstance(disk.cached, np.memmap)
    assert [name for name, _ in disk.skipped] == ["circle/5.png", "square/2.png"]


def test_a_set_that_does_not_fit_into_memory_goes_to_the_disk_by_itself(
    tiny_recipe, pictures, tmp_path, monkeypatch
):
    small = load_pictures(pictures, tiny_recipe, overflow=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
    monkeypatch.setattr(data, "_total_memory", lambda: 50_000)
    large = load_pictures(pictures, tiny_recipe, overflow=tmp_path / "cache")
    assert isinstance(large.cached, np.memmap)
    assert large.fingerprint() == small.fingerprint()
    with pytest.raises(TrainingError, match="give --cache FOLDER"):
        load_pictures(pictures, tiny_recipe)


def test_processes_on_one_machine_share_its_memory(tiny_recipe, pictures, monkeypatch):
    needed = 32 * GEOMETRY.bytes_per_picture
    monkeypatch.setattr(data, "_total_memory", lambda: 2 * needed)
    load_pictures(pictures, tiny_recipe)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # as torchrun says
    with pytest.raises(TrainingError, match="half of this machine's memory"):
        load_pictures(pictures, tiny_recipe)


@pytest.mark.parametrize("workers", ["threads", "processes"])
def test_a_build_that_was_killed_goes_on_and_equals_the_straight_one(pictures, tmp_path, workers):
    straight = fill(pictures, tmp_path / "straight")
    stuck = pictures / "stripes" / "4.png"
    kept = stuck.read_bytes()
    stuck.unlink()
    os.mkfifo(stuck)  # whoever reads it waits, so the child is killed at a known place
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, pictures, tmp_path / "cache", workers, "0"], cwd=ROOT
    ) as child:
        journal = wait_for(lambda: next((tmp_path / "cache").glob("*/journal.jsonl"), None), child)
        wait_for(lambda: journal.read_bytes().count(b"\n") >= 5, child)
        workers_of = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
        child.send_signal(signal.SIGKILL)
    for pid in workers_of:  # they end with their parent
        wait_for(lambda pid=pid: not Path(f"/proc/{pid}").exists() or is_zombie(pid))
    stuck.unlink()
    stuck.write_bytes(kept)
    (pictures / "square" / "7.png").write_bytes(b"finished chunks are not decoded again")
    for name in ("cached.bin", "prepared.bin"):  # what a kill in the middle of a write leaves
        with (journal.parent / name).open("ab") as file:
            file.write(b"half a picture")
    assert content(fill(pictures, tmp_path / "cache")) == content(straight)


def wait_for(what, child=None):
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if value := what():
            return value
        assert child is None or child.poll() is None
        time.sleep(0.01)
    raise AssertionError("it did not happen within a minute")


def is_zombie(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.usefixtures("small_chunks")
def test_a_journal_cut_at_any_place_goes_on_from_the_line_before(pictures, tmp_path):
    straight = fill(pictures, tmp_path / "cache")
    here = next((tmp_path / "cache").iterdir())
    whole = (here / "journal.jsonl").read_bytes()
    for cut in range(0, len(whole), 293):
        (here / "journal.jsonl").write_bytes(whole[:cut])
        assert content(fill(pictures, tmp_path / "cache")) == content(straight)
        assert (here / "journal.jsonl").read_bytes() == whole


def test_two_that_ask_at_once_share_one_build(pictures, tmp_path):
    found = []
    askers = [threading.Thread(target=lambda: found.append(fill(pictures, tmp_path / "cache"))) for _ in range(3)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    straight = fill(pictures, tmp_path / "straight")
    assert len(found) == 3
    for one in found:
        assert content(one) == content(straight)


def test_other_sizes_and_other_places_get_caches_of_their_own(pictures, tmp_path, tiny_recipe):
    larger = dataclasses.replace(tiny_recipe, cache_size=24)
    for recipe in (tiny_recipe, larger):
        load_pictures(pictures, recipe, cache=tmp_path / "cache")
    load_pictures(pictures / "circle", tiny_recipe, cache=tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 3


def test_pictures_that_changed_under_the_same_names_are_one_sentence(pictures, tmp_path, shape_png):
    fill(pictures, tmp_path / "cache")
    (pictures / "circle" / "1.png").write_bytes(shape_png("circle", 77))
    with pytest.raises(TrainingError, match=r"got others under the same names.*delete it"):
        fill(pictures, tmp_path / "cache")


def test_a_cache_that_lost_bytes_is_one_sentence(pictures, tmp_path):
    fill(pictures, tmp_path / "cache")
    file = next((tmp_path / "cache").glob("*/prepared.bin"))
    os.truncate(file, file.stat().st_size - 1)
    with pytest.raises(TrainingError, match=r"expected .* bytes in .*prepared.bin, got .*; delete"):
        fill(pictures, tmp_path / "cache")


def test_a_disk_that_is_too_small_is_told_before_decoding(pictures, tmp_path):
    huge = Geometry(Preprocess(10**6, 10**6), Preprocess(16, 16))
    with pytest.raises(TrainingError, match=r"expected [\d,.]+ GiB free in .*make room, give --cache"):
        open_cache(open_source(pictures), huge, tmp_path / "cache", pictures)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_a_disk_that_fills_up_is_one_sentence_and_loses_nothing(pictures, tmp_path, share):
    straight = fill(pictures, tmp_path / "straight")
    limit = int(share * straight.cached.nbytes)  # no file may grow beyond it
    child = subprocess.run(
        [sys.executable, "-c", CHILD, pictures, tmp_path / "cache", "threads", str(limit)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "TrainingError: expected room for decoded pictures in" in child.stderr
    assert "File too large; what is decoded is kept" in child.stderr
    journal = next((tmp_path / "cache").glob("*/journal.jsonl")).read_bytes()
    assert journal.count(b"\n") >= 1
    assert b"complete" not in journal
    assert content(fill(pictures, tmp_path / "cache")) == content(straight)


def test_a_place_that_cannot_be_written_is_one_sentence(pictures, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match="expected room for decoded pictures in"):
        fill(pictures, tmp_path / "file" / "cache")


class Listed:
    def __init__(self, pictures):
        self.pictures = pictures

    def __len__(self):
        return len(self.pictures)

    def __iter__(self):
        return iter(self.pictures)

    def ids(self):
        return (picture.id for picture in self.pictures)


def test_a_worker_that_dies_is_one_sentence_and_leaves_no_process():
    deadly = Listed([Picture("a.png", None, None, partial(os._exit, 9))])
    with pytest.raises(TrainingError, match="expected the decoding processes to live"):
        list(decode_all(deadly, GEOMETRY, workers="processes", cores=2))
    assert multiprocessing.active_children() == []


def test_only_broken_pictures_make_an_empty_cache(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(b"no")
    for _ in range(2):
        found = fill(tmp_path / "pictures", tmp_path / "cache")
        assert (found.ids, len(found.skipped), found.cached.shape) == ((), 1, (0, 3, 20, 20))

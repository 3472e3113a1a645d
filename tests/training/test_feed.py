"""From memory, from a disk, to a device: the same batches in the same order."""

import dataclasses
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from index.errors import TrainingError
from training import checkpoints
from training.data import load_pictures
from training.evaluation.knn import Evaluation
from training.feed import Feed, _Cached
from training.loop import Training

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


@pytest.fixture
def memory(tiny_recipe, shapes_folder):
    return load_pictures(shapes_folder, tiny_recipe)


@pytest.fixture
def disk(tiny_recipe, shapes_folder, tmp_path):
    return load_pictures(shapes_folder, tiny_recipe, cache=tmp_path / "cache")


def orders(epochs=3, batch=7):
    for epoch in range(epochs):
        order = torch.randperm(32, generator=torch.Generator().manual_seed(epoch))
        yield from order.split(batch)


def collect(feed, rows):
    return [batch.clone() for batch in feed.stream(rows)]


def test_every_way_gives_the_rows_that_were_asked_for_in_their_order(memory, disk):
    expected = [memory.cached[rows] for rows in orders()]
    by_memory, by_disk = Feed(memory, CPU), Feed(disk, CPU)
    assert (by_memory.readers, by_disk.readers > 0) == (0, True)
    for found in (
        collect(by_memory, orders()),
        collect(by_disk, orders()),
        list(by_memory._from_memory(memory.cached, orders())),
    ):
        assert len(found) == len(expected) == 15
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    by_memory.close()
    by_disk.close()
    assert multiprocessing.active_children() == []


def test_a_feed_that_is_closed_in_the_middle_leaves_no_process_behind(disk):
    feed = Feed(disk, CPU)
    stream = feed.stream(orders(epochs=1000))
    assert torch.equal(next(stream), torch.from_numpy(disk.cached[next(orders()).numpy()].copy()))
    assert len(multiprocessing.active_children()) == feed.readers
    feed.close()
    assert multiprocessing.active_children() == []
    with pytest.raises(StopIteration):
        next(stream)


def test_readers_end_with_a_process_that_is_killed(disk):
    script = """
import multiprocessing, sys, torch
from training.data import Pictures
from training.feed import Feed
import numpy as np
if __name__ == "__main__":
    cached = np.memmap(sys.argv[1], np.uint8, "r").reshape(-1, 3, 20, 20)
    empty = np.zeros(len(cached), np.int64)
    feed = Feed(Pictures(cached, cached, empty, (), (), (), empty), torch.device("cpu"))
    stream = feed.stream(torch.tensor([0, 1]) for _ in range(1000))
    next(stream)
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    sys.stdin.read()
"""
    command = [sys.executable, "-c", script, disk.cached.filename]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert len(child.stdout.readline().split()) >= 1
        child.send_signal(signal.SIGKILL)
        assert child.stdout.read() == ""  # ends when the last process that holds the other side has ended
        child.wait()


def test_a_reading_process_that_dies_is_one_sentence(disk):
    feed = Feed(disk, CPU)
    stream = feed.stream(orders(epochs=1000))
    next(stream)
    for child in multiprocessing.active_children():
        os.kill(child.pid, signal.SIGKILL)
    with pytest.raises(TrainingError, match=r"expected the . processes that read .* to go on, got"):
        for _ in stream:
            pass
    feed.close()
    assert multiprocessing.active_children() == []


def test_a_cache_that_is_cut_during_a_run_is_one_sentence(disk):
    os.truncate(disk.cached.filename, 5 * 3 * 20 * 20)
    feed = Feed(disk, CPU)
    with pytest.raises(TrainingError, match=r"got: OSError: .* ends before picture"):
        list(feed.stream(orders()))
    feed.close()


def test_a_file_that_became_shorter_is_told(disk):
    reader = _Cached(str(disk.cached.filename), disk.cached.shape)
    rows = torch.tensor([31, 0]).numpy()
    assert torch.equal(reader[rows], torch.from_numpy(disk.cached[rows].copy()))
    os.truncate(disk.cached.filename, 31 * 3 * 20 * 20)
    with pytest.raises(OSError, match="ends before picture 31"):
        reader[rows]


@pytest.mark.parametrize("labels", [True, False])
def test_a_run_from_the_disk_equals_the_run_from_memory_to_the_bit(tiny_recipe, shapes_folder, tmp_path, labels):
    recipe = dataclasses.replace(tiny_recipe, epochs=2)
    states, lines = [], []
    for name, cache in (("memory", None), ("disk", tmp_path / "cache")):
        folder = tmp_path / name
        folder.mkdir()
        pictures = load_pictures(shapes_folder, recipe, labels=labels, cache=cache)
        training = Training(recipe, Evaluation(recipe, pictures), folder)
        assert training.run()
        states.append(checkpoints.load(checkpoints.latest(folder))["method"])
        lines.append([json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()])
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    for one, other in zip(*lines, strict=True):
        assert {key: one[key] for key in one if key not in {"seconds", "wait"}} == {
            key: other[key] for key in other if key not in {"seconds", "wait"}
        }

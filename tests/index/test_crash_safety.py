"""Killed at any moment, a bank opens by itself with every acknowledged change and nothing half-done.

The child (`_work`) changes a bank and prints each change after it was acknowledged. The parent kills it, opens
the bank and compares: what was printed must be there; of the one change in flight, all or nothing.
"""

import hashlib
import os
import random
import select
import signal
import subprocess
import sys
import tempfile
import traceback
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from index.errors import LookalikeError, ParameterError, StorageFullError
from index.knn import normalise, top_k
from index.memory_bank import EncoderIdentity, Item, MemoryBank

DIM = 8
ENCODER = EncoderIdentity("test", "c" * 64, DIM)
ROOT = Path(__file__).parents[2]


# --- a history: change number n is a function of n and of what the bank holds ---------------------------------


def vector_of(version):
    """Every version of every item has a vector of its own, which the parent can compute too."""
    seed = int.from_bytes(hashlib.sha256(version.encode()).digest()[:4], "little")
    return normalise(np.random.default_rng(seed).standard_normal((1, DIM)))[0]


def change(number, held):
    """Return (what, ids) of change `number`; `held` maps the present ids to the change that wrote them."""
    rng = random.Random(number)
    if number % 9 == 8:
        return "compact", []
    if held and number % 4 == 3:
        return "delete", rng.sample(sorted(held), min(3, len(held)))
    if held and number % 4 == 1:
        return "upsert", [*rng.sample(sorted(held), min(2, len(held))), f"n{number}"]
    return "add", [f"n{number}-{part}" for part in range(rng.randint(1, 6))]


def apply(held, number):
    """Return what the bank must hold after change `number`."""
    what, ids = change(number, held)
    if what == "delete":
        return {id_: since for id_, since in held.items() if id_ not in ids}
    return held | dict.fromkeys(ids, number)


def perform(bank, number, held):
    what, ids = change(number, held)
    items = [Item(id_, label=f"c{len(id_) % 3}", metadata={"since": number}) for id_ in ids]
    vectors = np.array([vector_of(f"{id_}@{number}") for id_ in ids]).reshape(-1, DIM)
    if what == "compact":
        bank.compact(["flat", "ivf"][number % 2], merge=number % 3 != 0)
    elif what == "delete":
        bank.delete(ids)
    else:
        getattr(bank, what)(items, vectors)


def state_of(bank, but="nothing"):
    """Return id → change that wrote it, after checking that the bank is sound and finds every item."""
    assert [sentence for sentence in bank.verify() if not sentence.startswith(but)] == []
    items = bank.page(limit=100_000)
    assert len(items) == bank.count
    if items:
        queries = np.array([vector_of(f"{item.id}@{item.metadata['since']}") for item in items])
        hits = bank.search(queries, 3, exact=True)
        truth = top_k(queries, bank.vectors([item.id for item in items]), 3)
        np.testing.assert_allclose(hits.similarities, truth.similarities, atol=2e-6)
        assert [item and item.id for item in bank.items(hits.keys[:, 0])] == [item.id for item in items]
    return {item.id: item.metadata["since"] for item in items}


def tell(what):
    sys.stdout.write(f"{what}\n")
    sys.stdout.flush()


def _work(path, first):
    """In the child: go on from change `first` until killed."""
    first = int(first)
    with MemoryBank.open(path) as bank:
        held = {item.id: item.metadata["since"] for item in bank.page(limit=100_000)}
        tell("open")
        for number in range(first, first + 100_000):
            perform(bank, number, held)
            tell(number)
            held = apply(held, number)


class Children:
    """Starts children quickly: a process that has imported everything, and computed nothing, forks for each."""

    def __init__(self):
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        self._process = subprocess.Popen([sys.executable, __file__], text=True, env=environment, **pipes)

    def start(self, *command):
        self._process.stdin.write("\t".join(map(str, command)) + "\n")
        self._process.stdin.flush()
        return int(self.line())

    def line(self):
        return self._process.stdout.readline().rstrip("\n")

    def rest(self):
        """Return what the child still said, and how it ended (negative: the signal)."""
        lines = []
        while not (line := self.line()).startswith("ended "):
            assert line or self._process.poll() is None, lines
            lines.append(line)
        return lines, os.waitstatus_to_exitcode(int(line.split()[1]))

    def close(self):
        with self._process:
            self._process.stdin.close()


def _fork_for_each_command():
    """The process behind Children."""
    for command in sys.stdin:
        name, path, *numbers = command.rstrip("\n").split("\t")
        if (pid := os.fork()) == 0:
            tell(os.getpid())
            status = 1
            try:
                {"work": _work, "fault": _fault}[name](Path(path), *numbers)
                status = 0
            except BaseException:  # noqa: BLE001 - whatever it was, the parent shall read it
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        tell(f"ended {os.waitpid(pid, 0)[1]}")


@pytest.fixture(scope="module")
def children():
    children = Children()
    yield children
    children.close()


def survive_kills(children, folder, rounds, seed):
    """Kill the child `rounds` times, each time after a random number of answers and a random part of a change."""
    rng = random.Random(seed)
    path = folder / "bank"
    MemoryBank.create(path, encoder=ENCODER, store=rng.choice(["float32", "float16"])).close()
    held, number, interrupted = {}, 0, 0
    for _ in range(rounds):
        pid = children.start("work", path, number)
        said = [children.line() for _ in range(1 + rng.randrange(12))]
        # A compaction takes about 10 ms, a change 2 ms: the kill falls anywhere in the next one or two.
        select.select([], [], [], rng.random() * 0.02)
        os.kill(pid, signal.SIGKILL)
        rest, status = children.rest()
        assert status == -signal.SIGKILL, rest
        assert (said + rest)[0] == "open"
        for line in (said + rest)[1:]:
            assert int(line) == number
            held, number = apply(held, number), number + 1
        with MemoryBank.open(path) as bank:
            found = state_of(bank)
        in_flight = apply(held, number)
        assert found in (held, in_flight)
        if found != held:
            interrupted += 1
            held, number = in_flight, number + 1
        elif change(number, held)[0] == "compact":
            number += 1  # committed or not, it shows in no item
    return number, interrupted


def test_a_bank_survives_being_killed_at_any_moment(children, tmp_path):
    number, _ = survive_kills(children, tmp_path, rounds=25, seed=1)
    assert number > 25


@pytest.mark.slow
def test_a_bank_survives_being_killed_three_hundred_times(children, tmp_path):
    number, interrupted = survive_kills(children, tmp_path, rounds=300, seed=2)
    assert number > 300
    assert interrupted > 0


# --- the n-th step towards the disk fails, or is the last --------------------------------------------------------

CYCLE = 18  # changes, with two compactions


class Step:
    """Counts what goes to the disk, and at the n-th call fails as a full disk does, or dies."""

    def __init__(self, fatal, how):
        self.calls, self.fatal, self.how = 0, fatal, how

    def __call__(self):
        self.calls += 1
        if self.calls == self.fatal:
            if self.how == "die":
                os._exit(9)
            raise OSError(28, "No space left on device")


def instrument(step):
    """Let every write, fsync, rename, removal and SQLite statement outside of reading take a step."""
    import pathlib
    import shutil
    import sqlite3

    from index import database, segments

    def stepping(owner, name):
        original = getattr(owner, name)

        def stepped(*arguments, **options):
            step()
            return original(*arguments, **options)

        setattr(owner, name, stepped)

    for owner, name in ((os, "fsync"), (os, "open"), (shutil, "rmtree"), (pathlib.Path, "replace")):
        stepping(owner, name)
    for name in ("mkdir", "write_bytes", "unlink"):
        stepping(pathlib.Path, name)
    stepping(segments, "_npy")

    class Connection(sqlite3.Connection):
        def execute(self, sql, *arguments):
            if not sql.startswith("SELECT"):
                try:
                    step()
                except OSError as error:
                    full = sqlite3.OperationalError("database or disk is full")
                    full.sqlite_errorname = "SQLITE_FULL"
                    raise full from error
            return super().execute(sql, *arguments)

    connect = sqlite3.connect
    database.sqlite3.connect = lambda *arguments, **options: connect(*arguments, factory=Connection, **options)


def _fault(path, fatal, how):
    """In the child: create a bank, change it CYCLE times, fail at step `fatal`; print what was acknowledged."""
    step = Step(int(fatal), how)
    instrument(step)
    held = {}
    try:
        bank = MemoryBank.create(path, encoder=ENCODER)
    except StorageFullError:  # there is room again
        try:
            bank = MemoryBank.create(path, encoder=ENCODER)
        except ParameterError:  # its catalogue was committed, so it is a bank already
            bank = MemoryBank.open(path)
    tell("created")
    for number in range(CYCLE):
        try:
            perform(bank, number, held)
        except StorageFullError:
            # The one thing that may lag behind is the copy of the manifest for people.
            assert state_of(bank, but="manifest.json is not that of the last commit") == held
            perform(bank, number, held)  # there is room again
        tell(number)
        held = apply(held, number)
    bank.close()
    tell(f"end {step.calls}")


@dataclass(frozen=True)
class Left:
    """What a child left: the state it acknowledged, the one it was on its way to, and what a reader found."""

    acknowledged: dict
    following: dict
    found: dict
    status: int
    steps: int | None


def cycle_with_fault(children, folder, fatal, how):
    """Run one child to its fault and open what it left; `steps` is how many it took (None when it died)."""
    path = folder / "bank"
    children.start("fault", path, fatal, how)
    lines, status = children.rest()
    assert status == (9 if how == "die" and fatal else 0), "\n".join(lines)
    held, numbers = {}, [int(line) for line in lines if line.isdigit()]
    for number in numbers:
        held = apply(held, number)
    if "created" not in lines:
        try:
            bank = MemoryBank.open(path)
        except LookalikeError as error:
            sentence = str(error)
            bank = MemoryBank.create(path, encoder=ENCODER)
            assert "make it with" in sentence or "make it again" in sentence or "make one" in sentence
    else:
        bank = MemoryBank.open(path)
    with bank:
        found = state_of(bank)
        names = {entry.name for entry in bank.manifest.segments}
        assert {entry.name for entry in (path / "segments").iterdir()} == names
        assert {entry.name for entry in path.iterdir()} <= {
            "manifest.json",
            "catalog.sqlite",
            "catalog.sqlite-wal",
            "catalog.sqlite-shm",
            "segments",
            "writer.lock",
        }
        bank.add([Item("afterwards")], vector_of("afterwards")[None])
        bank.compact()
        assert bank.count == len(found) + 1
    following = apply(held, len(numbers)) if len(numbers) < CYCLE else held
    steps = next((int(line.split()[1]) for line in lines if line.startswith("end ")), None)
    return Left(held, following, found, status, steps)


def faults(children, how, stride, offset=0):
    """Yield (step, what was left) for a fault at every `stride`-th step of a whole cycle."""
    with tempfile.TemporaryDirectory() as folder:
        steps = cycle_with_fault(children, Path(folder), 0, how).steps
    assert steps > 200
    for fatal in range(1 + offset, steps + 1, stride):
        with tempfile.TemporaryDirectory() as folder:
            yield fatal, cycle_with_fault(children, Path(folder), fatal, how)


@pytest.mark.parametrize("how", ["die", "fail"])
def test_some_steps_towards_the_disk_may_be_the_last_or_fail(children, how):
    seen = 0
    for step, left in faults(children, how, stride=23, offset=7):
        assert left.found in (left.acknowledged, left.following), f"at step {step}"
        assert left.status == (9 if how == "die" else 0), f"at step {step}"
        seen += 1
    assert seen >= 8


@pytest.mark.slow
@pytest.mark.parametrize("how", ["die", "fail"])
def test_any_step_towards_the_disk_may_be_the_last_or_fail(children, how):
    seen = 0
    for step, left in faults(children, how, stride=1):
        assert left.found in (left.acknowledged, left.following), f"at step {step}"
        assert left.status == (9 if how == "die" else 0), f"at step {step}"
        seen += 1
    assert seen > 200


if __name__ == "__main__":
    _fork_for_each_command()

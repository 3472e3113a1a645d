"""What holds for the house as a whole; the import contracts themselves are checked by `make lint`."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "faiss", "onnxruntime", "fastapi", "PIL", "numpy"}
NOBODYS_ROOMS = {"utils", "util", "common", "core", "base", "helpers", "misc", "manager"}
PACKAGES = ("index", "service", "training")


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("package", PACKAGES)
def test_help_is_instant_because_it_imports_nothing_heavy(package):
    code = f"""
import contextlib, io, runpy, sys
sys.argv = ["{package}", "--help"]
with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as out:
    runpy.run_module("{package}", run_name="__main__", alter_sys=True)
assert "usage: python -m {package}" in out.getvalue(), out.getvalue()
print(*sorted({HEAVY!r} & sys.modules.keys()))
"""
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_a_package_imports_nothing_else(package):
    done = python(
        f"import sys; before = set(sys.modules); import {package}; print(*sorted(set(sys.modules) - before))"
    )
    assert done.stdout.split() == [package]


def test_serving_and_indexing_work_where_torch_cannot_be_imported():
    code = """
import sys
sys.modules.update(dict.fromkeys(["torch", "torchvision", "onnx", "training"]))  # None: importing raises
import index.__main__, index.indexer, index.retriever, service.__main__, service.app
"""
    done = python(code)
    assert done.returncode == 0, done.stderr


def test_no_room_is_named_after_nothing():
    names = {path.stem for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    assert not names & NOBODYS_ROOMS


def test_files_stay_within_a_few_screens():
    long = {
        str(path.relative_to(ROOT)): lines
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if (lines := len(path.read_text().splitlines())) > 320
    }
    assert not long


def test_the_image_copies_what_exists_and_nothing_of_training():
    copied = [
        source
        for line in (ROOT / "Dockerfile").read_text().splitlines()
        if line.startswith("COPY ") and "--from=" not in line
        for source in line.split()[1:-1]
    ]
    assert {"index", "service"} <= set(copied)
    assert "training" not in copied
    allowed = set((ROOT / ".dockerignore").read_text().splitlines())
    for source in copied:
        assert (ROOT / source).exists(), source
        assert f"!{source}" in allowed, source

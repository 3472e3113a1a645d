"""The documents against the house: the tree, the commands, the targets, the links."""

import argparse
import importlib
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").glob("*.md")])
PACKAGES = ("index", "service", "training")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def commands(document: Path) -> list[str]:
    """Return the command lines in a document's code blocks, continued lines joined."""
    found = []
    for _, body in BLOCK.findall(document.read_text()):
        for line in body.replace("\\\n", " ").splitlines():
            command = line.split("   ")[0].removeprefix("$ ").strip()  # a caption may follow after a gap
            if command.startswith(("make ", "python -m ")):
                found.append(command)
    return found


ALL_COMMANDS = sorted({(str(d.relative_to(ROOT)), c) for d in DOCUMENTS for c in commands(d)})


def test_the_readmes_tree_is_the_house():
    """Every module of the three packages has its captioned line in the README, and no line is stale."""
    tree = next(body for _, body in BLOCK.findall((ROOT / "README.md").read_text()) if "index/" in body)
    listed, folder = set(), ""
    for line in tree.splitlines():
        name = line.split()[0] if line.split() else ""
        indent = len(line) - len(line.lstrip())
        if indent == 0:
            folder = name if name.endswith("/") else ""
        elif name.endswith("/") and folder.split("/")[0] in PACKAGES:
            folder = folder.split("/")[0] + "/" + name
        if name.endswith(".py"):
            if indent == 2:
                folder = folder.split("/")[0] + "/"
            listed.add(folder + name)
            assert len(line.split()) > 1, f"{name} has no caption"
    actual = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if path.name != "__init__.py"
    }
    assert listed == actual


@pytest.mark.parametrize(
    ("document", "command"), [pair for pair in ALL_COMMANDS if pair[1].startswith("python -m ")]
)
def test_every_documented_command_is_understood(document, command):
    words = [word for word in shlex.split(command, comments=True) if word not in {"[--images", "ROOT]"}]
    if "|" in words or "…" in command:
        pytest.skip("a synopsis, not a command")
    module = words[2].split(".")[0]
    if module == "benchmarks":
        assert (ROOT / f"{words[2].replace('.', '/')}.py").exists(), f"{document}: {command}"
        return
    parser: argparse.ArgumentParser = importlib.import_module(f"{module}.__main__")._parser()
    end = next((i for i, word in enumerate(words) if word in {"&", "&&", ";", ">"}), len(words))
    try:
        parser.parse_args(words[3:end])
    except SystemExit as stopped:
        assert stopped.code == 0, f"{document}: {command}"  # noqa: PT017 - argparse exits 0 for --help


@pytest.mark.parametrize(("document", "command"), [pair for pair in ALL_COMMANDS if pair[1].startswith("make ")])
def test_every_documented_target_exists(document, command):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    words = [word for word in shlex.split(command, comments=True)[1:] if "=" not in word]
    assert set(words[:1]) <= targets, document


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(document):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text()):
        if not target.startswith(("http:", "https:")):
            assert (document.parent / target).exists(), target


def test_every_setting_of_the_service_says_what_it_means():
    settings = pytest.importorskip("service.settings").Settings
    for name, field in settings.model_fields.items():
        assert field.description, name

"""Checkpoints: everything a run needs to go on as if it had never stopped.

A run's folder:

    recipe.json          the recipe and what it was trained on; a run resumes under the same recipe only
    metrics.jsonl        one line an epoch
    skipped.csv          pictures that could not be used
    checkpoint-STEP.pt   the last two
    best.pt              the one with the best kNN so far

Files are written whole (temporary, fsync, rename) and loaded with `weights_only=True`: a checkpoint is data, it
cannot run code.
"""

import io
import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch

from index.errors import CheckpointError
from index.files import write_atomically
from training.recipes import Recipe, from_json

FORMAT_VERSION = 2  # 2: options of the method, no state of a random generator
_KEPT = 2


def save(folder: Path, step: int, state: Mapping[str, Any]) -> Path:
    """Write `checkpoint-STEP.pt` and remove all but the last two."""
    path = folder / f"checkpoint-{step:09d}.pt"
    _write(path, state)
    for old in sorted(folder.glob("checkpoint-*.pt"))[:-_KEPT]:
        old.unlink()
    return path


def save_best(folder: Path, state: Mapping[str, Any]) -> None:
    """Write `best.pt`."""
    _write(folder / "best.pt", state)


def latest(folder: Path) -> Path | None:
    """Return the newest checkpoint of a run, None for a run that has none yet."""
    return max(folder.glob("checkpoint-*.pt"), default=None)


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Raises:
        CheckpointError: missing, damaged, or of another format.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"expected a checkpoint at {path}, got no such file") from error
    except (OSError, RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(
            f"expected a whole checkpoint at {path}, got a damaged one; delete it to resume from the one before"
        ) from error
    if not isinstance(state, dict) or state.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(f"expected a checkpoint of format {FORMAT_VERSION} at {path}, got another")
    return cast("dict[str, Any]", state)


def write_recipe(folder: Path, recipe: Recipe, trained_on: Mapping[str, Any]) -> None:
    """Write `recipe.json` of a new run, or check that a run to be resumed has the same.

    Raises:
        CheckpointError: the folder holds a run of another recipe or of other pictures.
    """
    path = folder / "recipe.json"
    if not path.exists():
        document = {"format_version": FORMAT_VERSION, "recipe": recipe.to_json(), "trained_on": dict(trained_on)}
        write_atomically(path, (json.dumps(document, indent=2) + "\n").encode())
        return
    before, pictures = read_recipe(folder)
    old, new = _flat(before.to_json()), _flat(recipe.to_json())
    changed = [f"{key} {old.get(key)} → {new[key]}" for key in new if new[key] != old.get(key) and key != "about"]
    if changed:
        raise CheckpointError(
            f"expected the recipe that {folder} was started with, got {', '.join(changed)}; "
            "give the same recipe and --set to resume, or another --out"
        )
    if pictures.get("fingerprint") != trained_on.get("fingerprint"):
        raise CheckpointError(
            f"expected the {pictures.get('pictures')} pictures that {folder} was started with, got "
            f"{trained_on.get('pictures')} that differ; give the same --data to resume, or another --out"
        )


def read_recipe(folder: Path) -> tuple[Recipe, dict[str, Any]]:
    """Return the recipe of a run and what it was trained on.

    Raises:
        CheckpointError: the folder is no run, or its recipe cannot be read.
    """
    path = folder / "recipe.json"
    try:
        document = json.loads(path.read_text())
        if document["format_version"] != FORMAT_VERSION:
            raise CheckpointError(
                f"expected a run of format {FORMAT_VERSION} in {folder}, got {document['format_version']}; "
                "resume and export it with the version that started it"
            )
        return from_json(document["recipe"]), document["trained_on"]
    except FileNotFoundError as error:
        raise CheckpointError(
            f"expected a run in {folder}, got a folder without recipe.json; `python -m training pretrain` makes one"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"expected a recipe in {path}, got something else: {error}") from error


def _write(path: Path, state: Mapping[str, Any]) -> None:
    out = io.BytesIO()
    torch.save({**state, "format_version": FORMAT_VERSION}, out)
    try:
        write_atomically(path, out.getvalue())
    except OSError as error:
        raise CheckpointError(
            f"expected to write {len(out.getvalue()) / 1e6:.0f} MB to {path}, got: {error.strerror}; the "
            "checkpoint before it is whole, and the same command goes on from there"
        ) from error


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return flat

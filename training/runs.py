"""One run from the outside: load the pictures, open the folder, train."""

import os
import platform
from pathlib import Path
from typing import Any

import torch

from index.cores import available_cores
from index.errors import TrainingError
from training import checkpoints, metrics
from training.data import Pictures, load_pictures, write_skipped
from training.evaluation.knn import Evaluation, Scores
from training.loop import SAVE_SECONDS, Training, report
from training.recipes import Recipe


def start(
    recipe: Recipe,
    *,
    data: Path,
    test: Path | None,
    labels: bool,
    folder: Path,
    threads: int | None = None,
    save_seconds: float = SAVE_SECONDS,
) -> Scores | None:
    """Begin a run, or go on with the one that the folder holds.

    Args:
        recipe: with its overrides.
        data: folder of pictures, or .parquet.
        test: labelled pictures for the measurement; None measures leave-one-out.
        labels: whether the labels of `data` are read; they only measure.
        folder: of the run; made if it does not exist.
        threads: of torch; None takes the cores this process may use.
        save_seconds: between checkpoints; 0 saves after every step.

    Returns:
        The final scores, or None when the run was interrupted.
    """
    torch.set_num_threads(threads or available_cores())
    train = load_pictures(data, recipe, labels=labels)
    if len(train) < 2:
        raise TrainingError(f"expected at least two different pictures to tell apart, got one in {data}")
    tested = load_pictures(test, recipe) if test else None
    _make(folder)
    write_skipped(folder / "skipped.csv", train.skipped)
    if train.skipped:
        report(f"skipped {len(train.skipped):,} pictures that could not be read: {folder / 'skipped.csv'}")
    evaluation = Evaluation(recipe, train, tested)
    checkpoints.write_recipe(folder, recipe, describe(train, data, test, labels=labels))
    training = Training(recipe, evaluation, folder, save_seconds=save_seconds)
    scores = training.run()
    if scores:
        report(
            f"finished: {evaluation.describe()}: projection {scores.projection:.4f}, PCA head {scores.pca:.4f}, "
            f"pooled features {scores.features:.4f}"
        )
        report(metrics.read(folder).verdict())
        report(f"next: python -m training export {folder} --out encoder.onnx")
    return scores


def describe(train: Pictures, data: Path, test: Path | None, *, labels: bool) -> dict[str, Any]:
    """Return what a run was trained on and where, for its folder."""
    return {
        "data": str(data),
        "test": None if test is None else str(test),
        "labels": labels,
        "pictures": len(train),
        "classes": len(train.classes),
        "fingerprint": train.fingerprint(),
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"expected a folder for the run at {folder}, got: {error.strerror}") from error

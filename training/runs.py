"""One run from the outside: load the pictures, open the folder, train."""

import os
import platform
from functools import partial
from pathlib import Path
from typing import Any

import torch

from index.cores import available_cores
from index.errors import TrainingError
from training import checkpoints, distributed, metrics
from training.data import Pictures, load_pictures, write_skipped
from training.distributed import processes
from training.evaluation.knn import Evaluation
from training.loop import SAVE_SECONDS, Training
from training.progress import report
from training.recipes import Recipe


def start(
    recipe: Recipe,
    *,
    data: Path | str,
    test: Path | str | None,
    labels: bool,
    folder: Path,
    cache: Path | None = None,
    threads: int | None = None,
    save_seconds: float = SAVE_SECONDS,
) -> bool:
    """Begin a run, or go on with the one that the folder holds; under torchrun, as one of its processes.

    Args:
        recipe: with its overrides.
        data: whatever `index.sources` opens.
        test: labelled pictures for the measurement; None measures leave-one-out.
        labels: whether the labels of `data` are read; they only measure.
        folder: of the run; made if it does not exist.
        cache: folder for decoded pictures; None keeps them in memory, or in RUN/cache where they do not fit.
        threads: of torch; None takes the cores this process may use.
        save_seconds: between checkpoints; 0 saves after every step.

    Returns:
        Whether the run reached its end; False when it was interrupted.
    """
    torch.set_num_threads(threads or available_cores())
    with processes() as group:
        load = partial(load_pictures, recipe=recipe, cache=cache, overflow=folder / "cache")
        train = load(data, labels=labels)
        if len(train) < 2:
            raise TrainingError(f"expected at least two different pictures to tell apart, got one in {data}")
        evaluation = Evaluation(recipe, train, load(test) if test else None)
        if group.first:
            trained_on = describe(train, data, test, labels=labels) | {"cache": cache and str(cache)}
            _open_folder(folder, recipe, train, trained_on)
        distributed.wait()
        training = Training(recipe, evaluation, folder, processes=group, save_seconds=save_seconds)
        finished = training.run()
        if finished and training.scores:
            trained = training.scores.projection
            head = "" if trained is None else f"projection {trained:.4f}, "
            report(
                f"finished: {evaluation.describe()}: {head}PCA head {training.scores.pca:.4f}, "
                f"pooled features {training.scores.features:.4f}"
            )
            report(metrics.read(folder).verdict())
            report(f"next: python -m training export {folder} --out encoder.onnx")
        return finished


def describe(train: Pictures, data: Path | str, test: Path | str | None, *, labels: bool) -> dict[str, Any]:
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


def _open_folder(folder: Path, recipe: Recipe, train: Pictures, trained_on: dict[str, Any]) -> None:
    """Make the folder of a new run, or check that the run it holds is this one."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"expected a folder for the run at {folder}, got: {error.strerror}") from error
    write_skipped(folder / "skipped.csv", train.skipped)
    if train.skipped:
        report(f"skipped {len(train.skipped):,} pictures that could not be read: {folder / 'skipped.csv'}")
    if 2 * train.enlarged > len(train):
        report(
            f"note: {train.enlarged:,} of {len(train):,} pictures had to be enlarged more than twice for "
            f"image_size {recipe.image_size}; a recipe for small pictures, or --set image_size= and cache_size=, "
            "costs less"
        )
    checkpoints.write_recipe(folder, recipe, trained_on)

"""Learning curves of one or more runs as a picture."""

import json
from pathlib import Path
from typing import Any

from index.errors import CheckpointError, ExtraMissingError
from index.files import replacing


def plot(runs: list[Path], out: Path) -> None:
    """Draw kNN (with the raw-pixel line) and loss against the epoch, one colour a run.

    Args:
        runs: folders of runs.
        out: the picture; its suffix decides the format.
    """
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 - heavy, and no window system is touched this way
    except ImportError as error:
        raise ExtraMissingError("plotting needs matplotlib: pip install 'lookalike[training]'") from error
    figure = Figure(figsize=(9, 3.6), dpi=110, layout="constrained")
    accuracy, loss = figure.subplots(1, 2)
    for number, run in enumerate(runs):
        baseline, lines = read_metrics(run)
        colour, name = f"C{number}", run.resolve().name
        measured = [line for line in lines if "knn_pca" in line]
        epochs = [line["epoch"] for line in measured]
        accuracy.plot(epochs, [line["knn_pca"] for line in measured], colour, label=f"{name}, PCA head")
        accuracy.plot(
            epochs, [line["knn_projection"] for line in measured], f"{colour}--", label=f"{name}, projection"
        )
        if baseline is not None:
            accuracy.axhline(baseline, color=colour, linestyle=":", label=f"{name}, raw pixels")
        loss.plot([line["epoch"] for line in lines], [line["loss"] for line in lines], colour, label=name)
    accuracy.set(xlabel="epoch", ylabel="kNN top-1")
    loss.set(xlabel="epoch", ylabel="loss")
    for axes in (accuracy, loss):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    with replacing(out) as temporary:
        figure.savefig(temporary, format=out.suffix.lstrip(".") or "png")


def read_metrics(run: Path) -> tuple[float | None, list[dict[str, Any]]]:
    """Return the raw-pixel baseline of a run, and its epochs.

    Raises:
        CheckpointError: the folder holds no metrics.
    """
    path = run / "metrics.jsonl"
    if not path.is_file():
        raise CheckpointError(f"expected a run in {run}, got a folder without metrics.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    baseline = next((line["baseline"] for line in lines if "baseline" in line), None)
    return baseline, [line for line in lines if "epoch" in line]

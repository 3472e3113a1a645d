"""`metrics.jsonl` of a run: the baselines in the first line, then a line an epoch."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from index.errors import CheckpointError
from index.files import write_atomically

_FILE = "metrics.jsonl"


@dataclass(frozen=True)
class Metrics:
    """What a run wrote down.

    Attributes:
        baselines: kNN of what needs no training ("raw_pixels", "untrained"), 0 to 1.
        epochs: one mapping an epoch, in order.
    """

    baselines: dict[str, float]
    epochs: list[dict[str, Any]]

    def curve(self, key: str) -> dict[int, float]:
        """Return epoch → value, for the epochs that have it."""
        return {int(line["epoch"]): float(line[key]) for line in self.epochs if key in line}

    def verdict(self) -> str:
        """Say in a sentence whether the run rose above its baselines, or how far it got."""
        trained = self.curve("knn_projection")  # empty for a method without a trained head
        best = {epoch: max(score, trained.get(epoch, 0.0)) for epoch, score in self.curve("knn_pca").items()}
        if not best or not self.baselines:
            return "nothing was measured"
        name, line = max(self.baselines.items(), key=lambda item: item[1])
        name = name.replace("_", " ")
        last = list(best.values())[-1]
        above = [epoch for epoch, score in best.items() if score > line]
        if last > line:
            return f"above the best baseline ({name}, {line:.4f}) by {last - line:+.4f}, first at epoch {above[0]}"
        return f"not above the best baseline ({name}, {line:.4f}) yet: {last - line:+.4f}; raise epochs"


def begin(run: Path, baselines: dict[str, float]) -> None:
    """Start the file of a new run."""
    write_atomically(run / _FILE, (json.dumps({"baselines": baselines}) + "\n").encode())


def append(run: Path, line: dict[str, Any]) -> None:
    """Add an epoch."""
    with (run / _FILE).open("a") as file:
        file.write(json.dumps(line) + "\n")


def cut(run: Path, epochs: int) -> None:
    """Drop what lies after an epoch, a line cut short included: a resumed run will write it again."""
    metrics = read(run)
    begin(run, metrics.baselines)
    for line in metrics.epochs:
        if line["epoch"] <= epochs:
            append(run, line)


def read(run: Path) -> Metrics:
    """Read the file of a run.

    Raises:
        CheckpointError: there is none.
    """
    path = run / _FILE
    if not path.is_file():
        raise CheckpointError(f"expected a run in {run}, got a folder without {_FILE}")
    lines = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    baselines: dict[str, float] = next((line["baselines"] for line in lines if "baselines" in line), {})
    return Metrics(baselines, [line for line in lines if "epoch" in line])

"""What a run says on standard error: where it is, how fast, how long still, and how well it does."""

import sys
from collections.abc import Mapping

import torch

from training import distributed
from training.evaluation.knn import Scores


def report(line: str) -> None:
    """Print a line on standard error; of several processes, only the first speaks."""
    if distributed.rank() == 0:
        print(line, file=sys.stderr, flush=True)  # noqa: T201 - the command line's only way out during training


def epoch_line(
    epoch: int, epochs: int, means: Mapping[str, float], *, rate: float, left: float, scores: Scores | None
) -> str:
    """Return the line of a finished epoch.

    Args:
        epoch: that is finished, from 1.
        epochs: in all.
        means: of the epoch's metrics; "loss", "lr" and "spread" are always among them.
        rate: pictures a second.
        left: seconds to the end.
        scores: if it was measured.
    """
    known = {"loss": "7.4f", "lr": ".5f", "spread": ".2f", "alignment": ".2f", "accuracy": ".3f"}
    values = "  ".join(f"{name} {means[name]:{form}}" for name, form in known.items() if name in means)
    text = f"epoch {epoch:>4}/{epochs}  {values}  {rate:5.0f} pictures/s{_memory()}  {duration(left)} left"
    if scores is None:
        return text
    trained = "" if scores.projection is None else f"projection {scores.projection:.4f}  "
    return f"{text}  kNN {trained}pca {scores.pca:.4f}"


def step_line(epoch: int, position: int, steps: int, *, loss: float, rate: float, left: float) -> str:
    """Return the line within a long epoch: a sign of life."""
    return (
        f"  epoch {epoch:>4}  step {position:,}/{steps:,}  loss {loss:.4f}  {rate:.0f} pictures/s{_memory()}  "
        f"{duration(left)} left"
    )


def duration(seconds: float) -> str:
    """Return a span of time as people say it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _memory() -> str:
    """Return the peak of the GPU's memory, nothing without one."""
    if not torch.cuda.is_available():
        return ""
    return f"  {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB"

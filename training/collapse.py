"""Signs that a run is lost, watched every step: embeddings that became equal, a loss that is not a number.

`spread` and `uniformity` follow Wang and Isola 2020 (arXiv:2005.10242) and the usual variance check of
self-supervised training; both are logged each epoch beside the task's alignment.

Shapes: B pictures, D dimension.
"""

import math
from pathlib import Path

import torch
from torch import Tensor

from index.errors import CollapseError

_LEAST_SPREAD = 0.01  # a healthy run is above 0.3; a collapsed one is at rounding error


def spread(embeddings: Tensor) -> Tensor:
    """Return the mean standard deviation of the D components times √D: 1 on a full sphere, 0 when all are equal."""
    return embeddings.std(dim=0).mean() * math.sqrt(embeddings.shape[1])


def uniformity(embeddings: Tensor) -> Tensor:
    """Return log mean exp(-2·|a - b|²) over pairs of unit rows: 0 when all are equal, about -4 on a full sphere."""
    squared = torch.pdist(embeddings.float()).square()
    return squared.mul(-2).exp().mean().log()


def check_loss(value: float, step: int, run: Path) -> None:
    """Raise CollapseError when a loss is infinite or not a number."""
    if not math.isfinite(value):
        raise CollapseError(
            f"expected a finite loss, got {value} at step {step}; lower learning_rate, or --set clip=1 or "
            f"precision=float32, and start again in a new --out (the newest checkpoint in {run} is from before)"
        )


def check_spread(value: float, epoch: int) -> None:
    """Raise CollapseError when an epoch's embeddings had all become equal."""
    if value < _LEAST_SPREAD:
        raise CollapseError(
            f"expected embeddings that differ (spread above {_LEAST_SPREAD}), got {value:.4f} in epoch {epoch}: "
            "they have become equal; lower learning_rate, raise batch_size, or check that the pictures differ"
        )

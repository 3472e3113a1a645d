"""The seam between the loop and a pretext task: make views, compute, then commit.

The loop knows nothing of any task. A step is

    batch = Batch(method.views(images, generator), rows, seed)
    loss = method.loss(batch)          # pure: changes nothing but BatchNorm's running statistics
    loss.value.backward(); optimizer.step()
    method.commit(loss.pending)        # instance memory, queue, momentum encoder: only here

so a loss can be computed twice and compared with a slow oracle, and a step that fails leaves no half-written
memory behind.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Generator, Tensor, nn

from training.backbone import Network


@dataclass(frozen=True)
class Batch:
    """What a step computes on.

    Attributes:
        views: float32 (B, 3, H, W) in 0…1, as many as the task wants.
        rows: int64 (B,), which pictures these are.
        seed: for randomness inside the loss (noise samples), so that the loss stays a function of the batch.
    """

    views: tuple[Tensor, ...]
    rows: Tensor
    seed: int


@dataclass(frozen=True)
class Loss:
    """The outcome of a step.

    Attributes:
        value: scalar with gradient.
        metrics: numbers to average over the epoch.
        embeddings: float32 (B, D) unit rows of the first view, detached; the loop watches them for collapse.
        pending: what `commit` shall write; nothing has been written yet.
    """

    value: Tensor
    metrics: Mapping[str, Tensor]
    embeddings: Tensor
    pending: Any


class Method(nn.Module, ABC):
    """A pretext task around a network."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    @abstractmethod
    def views(self, images: Tensor, generator: Generator) -> tuple[Tensor, ...]:
        """Return the augmented views of uint8 pictures (B, 3, S, S)."""

    @abstractmethod
    def loss(self, batch: Batch) -> Loss:
        """Compute the loss without changing any state."""

    @abstractmethod
    def commit(self, pending: Any) -> None:  # noqa: ANN401 - each task's own type
        """Write what the step learnt, after the optimiser moved the weights."""

"""The seam between the loop and a pretext task: make views, compute, then commit.

The loop knows nothing of any task. A step is

    batch = Batch(method.views(images, draw), rows, share, seed)
    loss = method.loss(batch)          # pure: changes nothing but BatchNorm's running statistics
    loss.value.backward(); optimizer.step()
    method.commit(loss.pending)        # instance memory, queue, momentum encoder: only here

so a loss can be computed twice and compared with a slow oracle, and a step that fails leaves no half-written
memory behind. Between the two, the loop joins what the step's micro-batches and processes left pending: a task
knows nothing of them either.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor, nn

from training.backbone import Network
from training.draws import Draw, Share
from training.recipes import Recipe


@dataclass(frozen=True)
class Batch:
    """What a step, or a part of one, computes on.

    Attributes:
        views: float32 (B, 3, H, W) in 0…1, as many as the task wants.
        rows: int64 (B,), which pictures these are.
        share: which part of the step's batch they are.
        seed: for randomness inside the loss (noise samples), so that the loss stays a function of the batch.
    """

    views: tuple[Tensor, ...]
    rows: Tensor
    share: Share
    seed: int


@dataclass(frozen=True)
class Loss:
    """The outcome of a step, or of a part of one.

    Attributes:
        value: scalar with gradient.
        metrics: numbers to average over the epoch.
        embeddings: float32 (B, D) unit rows of the first view, detached; the loop watches them for collapse.
        pending: what `commit` shall write, a row a picture (or one row a part); nothing has been written yet.
    """

    value: Tensor
    metrics: Mapping[str, Tensor]
    embeddings: Tensor
    pending: Mapping[str, Tensor] = field(default_factory=dict)


class Method(nn.Module, ABC):
    """A pretext task around a network.

    Attributes:
        note: a sentence on how to read the run, printed at its start; empty if there is nothing odd.
    """

    note: ClassVar[str] = ""

    def __init__(self, network: Network, recipe: Recipe, pictures: int) -> None:
        """Hold the network; a task adds its heads and buffers.

        Args:
            network: backbone, and the projection that the recipe's options ask for.
            recipe: of the run.
            pictures: N.
        """
        super().__init__()
        self.network = network
        self.recipe = recipe
        self.pictures = pictures

    @abstractmethod
    def views(self, images: Tensor, draw: Draw) -> tuple[Tensor, ...]:
        """Return the augmented views of uint8 pictures (B, 3, S, S)."""

    @abstractmethod
    def loss(self, batch: Batch) -> Loss:
        """Compute the loss without changing any state."""

    def commit(self, pending: Mapping[str, Tensor]) -> None:
        """Write what the step learnt, after the optimiser moved the weights; most tasks keep nothing."""

    def forward(self, batch: Batch) -> Loss:
        """Return the loss; the way in for DistributedDataParallel."""
        return self.loss(batch)

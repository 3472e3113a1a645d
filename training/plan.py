"""What each step of a run consists of: a pure function of the recipe, the number of pictures and the processes.

Nothing is drawn from a generator that has state, so a step can be planned without the ones before it; that is
why a run resumes exactly.
"""

import functools
import math
from collections.abc import Iterator
from enum import IntEnum

import numpy as np
import torch
from torch import Generator, Tensor

from index.errors import RecipeError, TrainingError
from training.distributed import Processes
from training.draws import Share
from training.recipes import Recipe


class Stream(IntEnum):
    """Things that are random, each with seeds of its own."""

    ORDER = 0
    VIEWS = 1
    WEIGHTS = 2
    NOISE = 3
    DROPOUT = 4


class Plan:
    """The steps of a run.

    Attributes:
        steps_per_epoch: whole batches of an epoch; the rest is dropped, and the next order drops another.
        steps: of the whole run.
        shares: this process's micro-batches of any step.
    """

    def __init__(self, recipe: Recipe, pictures: int, processes: Processes) -> None:
        self._recipe, self._pictures, self._processes = recipe, pictures, processes
        self.steps_per_epoch = _steps_per_epoch(recipe, pictures)
        self.steps = recipe.epochs * self.steps_per_epoch
        self.shares = _shares(recipe, processes)
        self.order = functools.lru_cache(maxsize=2)(self._order)  # a feed reads ahead into the next epoch

    def stream(self, step: int) -> Iterator[Tensor]:
        """Yield the rows of this process's micro-batches from a step on: what the feed shall fetch."""
        for number in range(step, self.steps):
            for share in self.shares:
                yield self.rows(number, share)

    def rows(self, step: int, share: Share) -> Tensor:
        """Return which pictures a share of a step is made of: int64 (B,)."""
        epoch, position = divmod(step, self.steps_per_epoch)
        start = position * self._recipe.batch_size + share.start
        return self.order(epoch)[start : start + share.count]

    def seed(self, stream: Stream, number: int = 0) -> int:
        """Return the seed of one thing that is random; different numbers give independent streams."""
        sequence = np.random.SeedSequence((self._recipe.seed, int(stream), number))
        return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))

    def seed_of_process(self, step: int) -> int:
        """Return the seed of what layers draw by themselves (dropout), which every process draws alone."""
        return self.seed(Stream.DROPOUT, step * self._processes.world + self._processes.rank)

    def _order(self, epoch: int) -> Tensor:
        generator = Generator().manual_seed(self.seed(Stream.ORDER, epoch))
        return torch.randperm(self._pictures, generator=generator)


def _steps_per_epoch(recipe: Recipe, pictures: int) -> int:
    if recipe.batch_size < 2:
        raise TrainingError(f"expected a batch_size of at least 2 (BatchNorm needs it), got {recipe.batch_size}")
    if pictures < recipe.batch_size:
        raise TrainingError(
            f"expected at least one batch of {recipe.batch_size} pictures, got {pictures:,}; give more pictures, "
            f"or --set batch_size={max(2, 2 ** int(math.log2(max(pictures, 2)) - 1))}"
        )
    return pictures // recipe.batch_size


def _shares(recipe: Recipe, processes: Processes) -> list[Share]:
    """Return a process's micro-batches: rank by rank, so that gathering in rank order restores the batch."""
    parts = processes.world * recipe.accumulate
    if recipe.batch_size % parts:
        raise RecipeError(
            f"expected a batch_size that divides by {processes.world} processes × {recipe.accumulate} "
            f"micro-batches, got {recipe.batch_size}; set batch_size={recipe.batch_size // parts * parts or parts}"
        )
    count = recipe.batch_size // parts
    first = processes.rank * recipe.accumulate
    return [Share(recipe.batch_size, (first + number) * count, count) for number in range(recipe.accumulate)]

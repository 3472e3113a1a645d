"""Random numbers that do not depend on who draws them.

A step's batch may be one process's, or be shared by several processes and micro-batches. Whoever computes a part
draws for the whole batch and keeps its own rows, so that a picture's view is a function of the seed, the step and
the picture's place in the batch, and n processes train what one would.

Shapes: B pictures of this part.
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor


@dataclass(frozen=True)
class Share:
    """A part of a step's batch.

    Attributes:
        total: pictures of the whole batch.
        start: place of the part's first picture.
        count: pictures of the part, B.
    """

    total: int
    start: int
    count: int

    @classmethod
    def whole(cls, count: int) -> "Share":
        """Return the part that is everything."""
        return cls(count, 0, count)

    def draw(self, seed: int, device: torch.device | str = "cpu") -> "Draw":
        """Return a stream of random numbers for this part, on a device; the numbers are the same on all devices."""
        return Draw(Generator().manual_seed(seed), self, torch.device(device))


class Draw:
    """A stream of random numbers, one row a picture. The sequence of calls matters."""

    def __init__(self, generator: Generator, share: Share, device: torch.device) -> None:
        self._generator, self._share, self.device = generator, share, device

    @property
    def count(self) -> int:
        """B, the rows of every answer."""
        return self._share.count

    def uniform(self, *shape: int) -> Tensor:
        """Return float32 (B, *shape) in [0, 1)."""
        return self._own(torch.rand((self._share.total, *shape), generator=self._generator))

    def integers(self, high: int, *shape: int) -> Tensor:
        """Return int64 (B, *shape) in [0, high)."""
        return self._own(torch.randint(high, (self._share.total, *shape), generator=self._generator))

    def common(self, high: int, count: int) -> Tensor:
        """Return int64 (count,) in [0, high): the same for every part of the batch."""
        return torch.randint(high, (count,), generator=self._generator).to(self.device)

    def _own(self, everyone: Tensor) -> Tensor:
        return everyone[self._share.start : self._share.start + self._share.count].to(self.device)

"""Momentum contrast, version 2 (He et al. 2020, arXiv:1911.05722; Chen et al. 2020, arXiv:2003.04297).

A query q, the embedding of one view, shall find the key k₊ of the other view among K keys of earlier batches:

    loss = -log exp(q · k₊ / τ) / (exp(q · k₊ / τ) + Σ_j exp(q · queue_j / τ))                 (§3.1, eq. 1)

Keys come from a second network that follows the trained one slowly, so that those in the queue agree with each
other: θ_k ← w θ_k + (1 - w) θ_q, w = `old_weight` (§3.2, eq. 2).

The first losses are low and then rise: the queue begins with random directions, from which anything is told
easily. The contrast gets hard once it is full of real keys, and only then is there something to learn.

Shapes: B pictures a process and micro-batch, D dimension, K queue, P processes.
"""

from collections.abc import Callable, Mapping
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from training import distributed
from training.augment import view
from training.backbone import Network, build
from training.draws import Draw
from training.methods.method import Batch, Loss, Method
from training.recipes import MocoV2, Recipe


class MoCoV2(Method):
    """MoCo v2.

    Attributes:
        key: the momentum network; no gradient reaches it. Its BatchNorm statistics are its own.

    Buffers: `queue` float32 (K, D) with unit rows, and `pointer` int64 (), the row of the oldest key.
    """

    note: ClassVar[str] = (
        "the loss rises at first, while real keys replace the random ones in the queue, and falls later: "
        "that is how MoCo begins"
    )
    queue: Tensor
    pointer: Tensor

    def __init__(self, network: Network, recipe: Recipe, pictures: int) -> None:
        super().__init__(network, recipe, pictures)
        self.options = cast("MocoV2", recipe.options)
        # Built anew and not deep-copied: a compiled method of a copy would still be bound to the original.
        self.key = build(recipe).requires_grad_(requires_grad=False)
        self.key.load_state_dict(network.state_dict())
        self.register_buffer("queue", F.normalize(torch.randn(self.options.queue, recipe.dim), dim=1))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))

    def views(self, images: Tensor, draw: Draw) -> tuple[Tensor, ...]:
        """Return two independent random views, each float32 (B, 3, H, W)."""
        size, augmentation = self.recipe.image_size, self.recipe.augment
        return tuple(view(images, size, augmentation, draw) for _ in range(2))

    def loss(self, batch: Batch) -> Loss:
        """Find each view's sibling among the keys in the queue; see the file's docstring."""
        first, second = batch.views
        pairs = [(first, second), (second, first)] if self.options.symmetric else [(first, second)]
        total = first.new_zeros(())
        queries, keys, ranks = [], [], []
        for direction, (asked, answered) in enumerate(pairs):
            query = self.network(asked)  # (B, D)
            key = self._keys(answered, batch.seed + direction)
            contrast, won = queue_contrast(query, key, self.queue, self.options.temperature)
            total = total + contrast
            queries.append(query.detach())
            keys.append(key)
            ranks.append(won.float().mean())
        metrics = {
            "contrast_accuracy": torch.stack(ranks).mean(),
            "alignment": (torch.cat(queries) - torch.cat(keys)).square().sum(dim=1).mean(),
        }
        return Loss(total, metrics, queries[0], {"keys": torch.cat(keys)})

    @torch.no_grad()
    def commit(self, pending: Mapping[str, Tensor]) -> None:
        """Let the key network follow, and put the step's keys into the queue."""
        follow(self.key, self.network, self.options.old_weight)
        enqueue(self.queue, self.pointer, pending["keys"])

    @torch.no_grad()
    def _keys(self, images: Tensor, seed: int) -> Tensor:
        """Return the keys (B, D) of views (B, 3, H, W)."""
        if self.options.shuffle:
            return shuffled(self.key, images, seed)
        return cast("Tensor", self.key(images))


def queue_contrast(queries: Tensor, keys: Tensor, queue: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """InfoNCE with a queue of negatives (arXiv:1911.05722, eq. 1).

    Args:
        queries: (B, D) unit rows, with gradient.
        keys: (B, D) unit rows, the positives.
        queue: (K, D) unit rows, the negatives.
        temperature: τ.

    Returns:
        The mean loss (), and bool (B,): whether a query's own key is nearer than the whole queue.
    """
    scaled = queries / temperature
    own = (scaled * keys).sum(dim=1)  # (B,)
    others = scaled @ queue.T  # (B, K)
    loss = torch.logaddexp(own, others.logsumexp(dim=1)) - own
    return loss.mean(), own.detach() > others.detach().amax(dim=1)


def enqueue(queue: Tensor, pointer: Tensor, keys: Tensor) -> None:
    """Replace the oldest keys by new ones, in place, around the end: any number n of keys into any K.

    Args:
        queue: (K, D).
        pointer: int64 (), the oldest row; moves on by n.
        keys: (n, D), the newest last. With n > K only the last K stay.
    """
    size, count = len(queue), len(keys)
    rows = (pointer + torch.arange(count, device=queue.device)) % size
    queue[rows[-size:]] = keys[-size:].to(queue.dtype)
    pointer.copy_((pointer + count) % size)


@torch.no_grad()
def follow(key: nn.Module, network: nn.Module, old_weight: float) -> None:
    """Move a network's parameters towards another's: θ_k ← w θ_k + (1 - w) θ_q. Buffers are left alone."""
    average = get_ema_multi_avg_fn(old_weight)  # type: ignore[no-untyped-call]
    average(list(key.parameters()), list(network.parameters()), torch.tensor(0))


def shuffled(encode: Callable[[Tensor], Tensor], images: Tensor, seed: int) -> Tensor:
    """Encode pictures in another order, in other processes, and put the result back in place (§3.3).

    All processes draw the same permutation of all pictures and each encodes its share of it. With one process the
    parts of SplitBatchNorm2d take the place of processes, and the keys are the same.

    Args:
        encode: pictures (B, 3, H, W) → keys (B, D).
        images: (B, 3, H, W), those of this process.
        seed: of the permutation; the same in all processes.

    Returns:
        (B, D), row for row those of `images`.
    """
    count, rank = len(images), distributed.rank()
    order = torch.randperm(distributed.world() * count, generator=Generator().manual_seed(seed)).to(images.device)
    mine = slice(rank * count, (rank + 1) * count)
    keys = encode(distributed.gather(images)[order[mine]])
    return distributed.gather(keys)[order.argsort()[mine]]

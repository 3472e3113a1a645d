"""Instance discrimination: every picture is its own class (Wu et al. 2018, arXiv:1805.01978).

    P(i | v) = exp(v · m_i / τ) / Σ_j exp(v · m_j / τ)                                    (§3.1, eq. 2)

There are no class weights: m_i is the instance memory, a running mean of picture i's own embeddings. The
denominator runs over all N pictures, exactly (the default) or estimated by noise contrast (§3.2).

Two options that the paper does not have are off by default: several views a picture and step, and a contrast
between the views of a batch (the NT-Xent of SimCLR, arXiv:2002.05709), which teaches while the memory is young.

Shapes: B pictures a batch, V views, D dimension, N pictures in all, m noise samples.
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from index.errors import RecipeError
from training.augment import view
from training.backbone import Network
from training.draws import Draw
from training.methods.method import Batch, Loss, Method
from training.recipes import Npid, Recipe

_CHUNK = 65_536  # columns of the (B, N) logits that exist at a time
_PARTITION_EMA = 0.99  # K. He's remedy for a Z estimated once (HobbitLong/CMC, issue 23)


class NPID(Method):
    """Non-parametric instance discrimination.

    Buffers: `memory` float32 (N, D) with unit rows, and `partition` (), NCE's Z, 0 until the first batch.
    """

    note: ClassVar[str] = (
        "the loss may rise for an epoch or two: the memory starts as random vectors, which are easier to tell "
        "apart than pictures"
    )
    memory: Tensor
    partition: Tensor

    def __init__(self, network: Network, recipe: Recipe, pictures: int) -> None:
        super().__init__(network, recipe, pictures)
        if not isinstance(recipe.options, Npid):
            raise RecipeError(f"expected options of npid, got those of {recipe.method}")
        self.options = recipe.options
        self.register_buffer("memory", initial_memory(pictures, recipe.dim))
        self.register_buffer("partition", torch.zeros(()))

    def views(self, images: Tensor, draw: Draw) -> tuple[Tensor, ...]:
        """Return V independent random views, each float32 (B, 3, H, W)."""
        size, augmentation = self.recipe.image_size, self.recipe.augment
        return tuple(view(images, size, augmentation, draw) for _ in range(self.options.views))

    def loss(self, batch: Batch) -> Loss:
        """Tell each picture from all others; see the file's docstring."""
        options, count = self.options, len(batch.views)
        embeddings = self.network(torch.cat(batch.views))  # (V·B, D)
        rows = batch.rows.repeat(count)
        value, partition = self._instance(embeddings, rows, batch)
        metrics = {"instance": value.detach()}
        value = options.instance * value
        distance = (embeddings - self.memory[rows]).square().sum(dim=1).mean()
        if options.proximal > 0:
            value = value + options.proximal * distance  # §3.3, eq. 10
        each = embeddings.unflatten(0, (count, -1))  # (V, B, D)
        if options.contrast > 0:
            contrast = view_contrast(each, options.contrast_temperature)
            value = value + options.contrast * contrast
            metrics["contrast"] = contrast.detach()
        alignment = distance if count == 1 else (each[0] - each[1]).square().sum(dim=1).mean()
        metrics["alignment"] = alignment.detach()
        new = F.normalize(each.detach().mean(dim=0), dim=1)
        pending = {"rows": batch.rows, "vectors": new, "partition": partition[None]}
        return Loss(value, metrics, each[0].detach(), pending)

    def commit(self, pending: Mapping[str, Tensor]) -> None:
        """Renew the memory of the batch: unit(old_weight · old + (1 - old_weight) · new).

        Args:
            pending: `rows` int64 (B,), `vectors` (B, D), `partition` (one estimate of Z a part of the batch).
        """
        weight, rows = self.options.old_weight, pending["rows"]
        mixed = weight * self.memory[rows] + (1 - weight) * pending["vectors"]
        self.memory[rows] = F.normalize(mixed, dim=1)
        self.partition.copy_(pending["partition"].mean())

    def _instance(self, embeddings: Tensor, rows: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the paper's term by the loss that the options name, and the Z to keep."""
        options, views = self.options, len(batch.views)
        draw = batch.share.draw(batch.seed, embeddings.device)
        if options.loss == "nce":
            # Uniform with replacement; one may be the picture itself, as published.
            noise = draw.integers(len(self.memory), views, options.negatives)  # (B, V, m)
            return self._noise_contrast(embeddings, rows, noise.transpose(0, 1).flatten(0, 1))
        if options.loss == "infonce":
            shared = draw.common(len(self.memory), options.negatives)
            return shared_contrast(embeddings, self.memory, rows, shared, options.temperature), self.partition
        return instance_softmax(embeddings, self.memory, rows, options.temperature), self.partition

    def _noise_contrast(self, embeddings: Tensor, rows: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return the NCE loss and the Z to keep, with noise samples (V·B, m)."""
        samples = torch.cat([rows[:, None], noise], dim=1)  # (V·B, 1 + m)
        logits = torch.einsum("bd,bmd->bm", embeddings, self.memory[samples]) / self.options.temperature
        estimate = estimate_partition(logits.detach(), len(self.memory))
        known = bool(self.partition > 0)
        used = self.partition if known else estimate
        kept = used
        if known and self.options.partition == "ema":
            kept = _PARTITION_EMA * self.partition + (1 - _PARTITION_EMA) * estimate
        return noise_contrast(logits, used, len(self.memory)), kept


def initial_memory(pictures: int, dim: int) -> Tensor:
    """Draw the memory (N, D): uniform in ±1/√(D/3), which gives about unit length, then made exactly unit."""
    bound = 1 / math.sqrt(dim / 3)
    return F.normalize(torch.empty(pictures, dim).uniform_(-bound, bound), dim=1)


def instance_softmax(embeddings: Tensor, memory: Tensor, rows: Tensor, temperature: float) -> Tensor:
    """Mean of -log P(row | embedding), the softmax running over the whole memory.

    Args:
        embeddings: (B, D) unit rows.
        memory: (N, D) unit rows, without gradient.
        rows: int64 (B,), each embedding's own instance.
        temperature: τ.
    """
    return cast("Tensor", _InstanceSoftmax.apply(embeddings, memory, rows, temperature))


class _InstanceSoftmax(torch.autograd.Function):
    """Cross-entropy over N columns in one pass that never holds more than (B, chunk) logits.

    The gradient of the loss by an embedding is (E_P[m] - m_row) / τ. The expectation is summed up along with the
    denominator, rescaled whenever a larger logit turns up, so nothing is computed twice or kept for backward.
    """

    @staticmethod
    def forward(ctx: Any, embeddings: Tensor, memory: Tensor, rows: Tensor, temperature: float) -> Tensor:  # noqa: ANN401
        count, dim = embeddings.shape
        largest = embeddings.new_full((count, 1), -math.inf)
        total = embeddings.new_zeros((count, 1))
        expected = embeddings.new_zeros((count, dim))
        for start in range(0, len(memory), _CHUNK):
            part = memory[start : start + _CHUNK]
            logits = embeddings @ part.T / temperature
            top = torch.maximum(largest, logits.amax(dim=1, keepdim=True))
            shrink = torch.exp(largest - top)
            weights = torch.exp(logits - top)
            total = total * shrink + weights.sum(dim=1, keepdim=True)
            expected = expected * shrink + weights @ part
            largest = top
        own = memory[rows]
        ctx.save_for_backward((expected / total - own) / (temperature * count))
        logit = (embeddings * own).sum(dim=1, keepdim=True) / temperature
        return (largest + total.log() - logit).mean()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:  # noqa: ANN401
        (slope,) = ctx.saved_tensors
        return gradients[0] * slope, None, None, None


def noise_contrast(logits: Tensor, partition: Tensor, pictures: int) -> Tensor:
    """NCE loss, §3.2 eq. 5-7: tell the instance (column 0) from m uniform noise samples.

    With P = exp(logit)/Z and noise 1/N the posterior is P/(P + m/N) = sigmoid(u), u = logit - ln Z - ln(m/N),
    so both terms are softplus and need no epsilon.

    Args:
        logits: (B, 1 + m), similarities / τ, the instance first.
        partition: (), Z.
        pictures: N.
    """
    noise = logits.shape[1] - 1
    odds = logits - partition.log() - math.log(noise / pictures)
    return (F.softplus(-odds[:, 0]) + F.softplus(odds[:, 1:]).sum(dim=1)).mean()


def shared_contrast(embeddings: Tensor, memory: Tensor, rows: Tensor, shared: Tensor, temperature: float) -> Tensor:
    """InfoNCE: a softmax over the instance and m samples that the whole batch shares, so that one product does.

    Args:
        embeddings: (B, D) unit rows.
        memory: (N, D) unit rows, without gradient.
        rows: int64 (B,), each embedding's own instance.
        shared: int64 (m,), samples; those that happen to be the embedding's own instance do not count for it.
        temperature: τ.
    """
    own = torch.einsum("bd,bd->b", embeddings, memory[rows])  # (B,)
    others = embeddings @ memory[shared].T  # (B, m)
    others = others.masked_fill(shared[None] == rows[:, None], -math.inf)
    logits = torch.cat([own[:, None], others], dim=1) / temperature
    return F.cross_entropy(logits, torch.zeros_like(rows))


def estimate_partition(logits: Tensor, pictures: int) -> Tensor:
    """Estimate Z = N · mean exp(logit) from sampled logits (B, 1 + m); § 3.2, eq. 8."""
    return logits.exp().mean() * pictures


def view_contrast(views: Tensor, temperature: float) -> Tensor:
    """NT-Xent: find a view's sibling among all other views of the batch.

    Args:
        views: (V, B, D) unit rows; the first two views are used.
        temperature: τ.
    """
    count = views.shape[1]
    both = views[:2].flatten(0, 1)  # (2B, D)
    logits = both @ both.T / temperature
    logits = logits.masked_fill(torch.eye(2 * count, dtype=torch.bool, device=views.device), -math.inf)
    siblings = torch.arange(2 * count, device=views.device).roll(count)
    return F.cross_entropy(logits, siblings)

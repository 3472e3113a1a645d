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

_CHUNK = 2**24  # of the B·N logits, how many exist at a time on a GPU
_CHUNK_CORE = 2**19  # ... and for each CPU thread: they stay in its cache between being made and being used
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
        half = self.recipe.precision != "float32"
        value = instance_softmax(embeddings, self.memory, rows, options.temperature, half=half)
        return value, self.partition

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


def instance_softmax(
    embeddings: Tensor, memory: Tensor, rows: Tensor, temperature: float, *, half: bool = False
) -> Tensor:
    """Mean of -log P(row | embedding), the softmax running over the whole memory.

    Args:
        embeddings: (B, D) unit rows.
        memory: (N, D) unit rows, without gradient.
        rows: int64 (B,), each embedding's own instance.
        temperature: τ.
        half: whether other instances are compared in bfloat16, twice as fast where the hardware has it. The own
            instance never is, so a loss near zero and its gradient stay right.
    """
    return cast("Tensor", _InstanceSoftmax.apply(embeddings, memory, rows, temperature, half))


class _InstanceSoftmax(torch.autograd.Function):
    """Cross-entropy over N columns in one pass that never holds more than a chunk of the (B, N) logits.

    The gradient of the loss by an embedding is (E_P[m] - m_row) / τ. The expectation is summed up along with the
    denominator, rescaled whenever a larger logit turns up, so nothing is computed twice or kept for backward.
    Logits are to the base 2, because exp2 takes a third of the time of exp on a CPU.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        embeddings: Tensor,
        memory: Tensor,
        rows: Tensor,
        temperature: float,
        half: bool,  # noqa: FBT001 - apply() takes no keywords
    ) -> Tensor:
        count, width = len(embeddings), _columns(embeddings)
        queries = embeddings / (temperature * math.log(2))
        own = memory[rows]  # (B, D)
        own_logit = (queries * own).sum(dim=1, keepdim=True)  # (B, 1)
        largest, total, expected = own_logit, torch.ones_like(own_logit), own.clone()
        exact = queries.new_empty(count * min(width, len(memory)))
        queries = queries.bfloat16() if half else queries
        rough = queries.new_empty(len(exact)) if half else exact
        for start in range(0, len(memory), width):
            part = memory[start : start + width].to(queries.dtype)
            shape = (count, len(part))
            products = torch.mm(queries, part.T, out=rough[: count * len(part)].view(shape))
            logits = exact[: count * len(part)].view(shape)
            if half:
                logits.copy_(products)
            _leave_out(logits, rows - start)
            top = torch.maximum(largest, logits.amax(dim=1, keepdim=True))
            shrink = (largest - top).exp2_()
            weights = logits.sub_(top).exp2_()
            total.mul_(shrink).add_(weights.sum(dim=1, keepdim=True))
            expected.mul_(shrink).add_((products.copy_(weights) if half else weights) @ part)
            largest = top
        ctx.save_for_backward((expected / total - own) / (temperature * count))
        return ((largest - own_logit + total.log2()) * math.log(2)).mean()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:  # noqa: ANN401
        (slope,) = ctx.saved_tensors
        return gradients[0] * slope, None, None, None, None


def _columns(embeddings: Tensor) -> int:
    """Return how many columns of the (B, N) logits to hold at a time."""
    chunk = _CHUNK_CORE * torch.get_num_threads() if embeddings.device.type == "cpu" else _CHUNK
    return max(1, chunk // len(embeddings))


def _leave_out(logits: Tensor, columns: Tensor) -> None:
    """Set logits (B, C) at (i, columns[i]) to -∞, in place; columns outside 0…C-1 mean nothing here.

    Without a boolean index, for which a GPU would have to wait.
    """
    inside = (columns >= 0) & (columns < logits.shape[1])
    at = columns.clamp(0, logits.shape[1] - 1)[:, None]
    logits.scatter_(1, at, torch.where(inside[:, None], -math.inf, logits.gather(1, at)))


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

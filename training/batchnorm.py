"""BatchNorm over parts of a batch: what several GPUs compute, on one.

A contrast between views leaks through BatchNorm when a query and its key are normalised with the same pictures:
the statistics alone give the pair away. MoCo therefore shuffles its keys among GPUs (He et al. 2020,
arXiv:1911.05722, §3.3). One process has the same remedy when its BatchNorm sees parts of the batch, as each of
several GPUs would.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from index.errors import RecipeError
from training.recipes import Recipe


class SplitBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d whose training statistics are those of each of `splits` contiguous equal parts of the batch.

    The running statistics move by the mean over the parts: they end where those of `splits` processes end that
    have a BatchNorm2d each and average their buffers. In evaluation mode, and in its state dict, it is a
    BatchNorm2d.

    Attributes:
        splits: number of parts.
    """

    splits: int = 1

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - named as in torch
        """Normalise maps (B, C, H, W), each part of the batch by itself.

        Raises:
            RecipeError: in training, B does not divide into parts of at least two pictures.
        """
        if self.splits == 1 or not self.training:
            return super().forward(input)
        count, channels = input.shape[:2]
        if count % self.splits or count < 2 * self.splits:
            raise RecipeError(
                f"expected batches that divide into bn_splits={self.splits} equal parts of at least two pictures, "
                f"got {count}; set batch_size to a multiple of {self.splits}, or bn_splits=1"
            )
        # With momentum 1 the "running" statistics of a part are its own, the variance unbiased.
        precision = torch.promote_types(input.dtype, torch.float32)
        means = torch.zeros(self.splits, channels, device=input.device, dtype=precision)
        variances = torch.zeros_like(means)
        parts = zip(input.chunk(self.splits), means, variances, strict=True)
        whole = torch.cat(
            [
                F.batch_norm(part, mean, variance, self.weight, self.bias, True, 1.0, self.eps)
                for part, mean, variance in parts
            ]
        )
        self._follow(means.mean(dim=0), variances.mean(dim=0))
        return whole

    def extra_repr(self) -> str:
        """Return the arguments, for printing."""
        plain = super().extra_repr()  # type: ignore[no-untyped-call]
        return f"{plain}, splits={self.splits}"

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics towards those of the batch, (C,) each."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        momentum = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance, momentum)


def split_batchnorm(module: nn.Module, splits: int) -> None:
    """Let every BatchNorm2d of a module compute over `splits` parts; its parameters and buffers stay."""
    for child in module.modules():
        if isinstance(child, nn.BatchNorm2d):
            child.__class__ = SplitBatchNorm2d
            cast("SplitBatchNorm2d", child).splits = splits


def arrange_batchnorm(module: nn.Module, recipe: Recipe, device: torch.device) -> None:
    """Give every BatchNorm2d below a module the statistics that the recipe asks for.

    Raises:
        RecipeError: both kinds at once, or statistics over all processes without GPUs.
    """
    if recipe.sync_bn and recipe.bn_splits > 1:
        raise RecipeError("expected sync_bn or bn_splits, got both; they ask for opposite statistics")
    if recipe.sync_bn and device.type != "cuda":
        raise RecipeError("expected GPUs for sync_bn=true, got none; set sync_bn=false")
    if recipe.sync_bn:
        nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call] # in place, names stay
    elif recipe.bn_splits > 1:
        split_batchnorm(module, recipe.bn_splits)

"""A fifth method, from outside: SimCLR (Chen et al. 2020, arXiv:2002.05709) without touching Lookalike.

    python examples/simclr.py pretrain simclr-demo --data examples/gallery --out runs/simclr-demo
    python examples/simclr.py export runs/simclr-demo --out encoder.onnx

Inside the package it would be the same: a file in training/recipes, one in training/methods, and two entries.
"""

import sys
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor

from training.__main__ import main
from training.augment import view
from training.draws import Draw
from training.methods import METHODS, Batch, Loss, Method
from training.methods.npid import view_contrast
from training.recipes import RECIPES, Options


@dataclass(frozen=True)
class SimClr(Options):
    """Options: the temperature τ. The head is an MLP, as in the paper."""

    method: ClassVar[str] = "simclr"
    temperature: float = 0.2
    projection: ClassVar[Literal["linear", "mlp", "none"]] = "mlp"


class SimCLR(Method):
    """Find a view's sibling among all views of the batch; nothing is remembered, so there is nothing to commit."""

    def views(self, images: Tensor, draw: Draw) -> tuple[Tensor, ...]:
        """Return two random views, each float32 (B, 3, H, W)."""
        return tuple(view(images, self.recipe.image_size, self.recipe.augment, draw) for _ in range(2))

    def loss(self, batch: Batch) -> Loss:
        """Return NT-Xent (§2.1, eq. 1)."""
        embeddings = self.network(torch.cat(batch.views)).unflatten(0, (2, -1))  # (2, B, D)
        value = view_contrast(embeddings, cast("SimClr", self.recipe.options).temperature)
        alignment = (embeddings[0] - embeddings[1]).square().sum(dim=1).mean()
        return Loss(value, {"alignment": alignment.detach()}, embeddings[0].detach())


METHODS["simclr"] = SimCLR
RECIPES["simclr-demo"] = replace(
    RECIPES["npid-demo"], name="simclr-demo", about="Clip art, as npid-demo.", options=SimClr()
)

if __name__ == "__main__":
    sys.exit(main())

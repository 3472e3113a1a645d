"""Rotation prediction: which way up is a picture? Gidaris, Singh, Komodakis 2018 (arXiv:1803.07728).

Every picture is shown turned by 0, 90, 180 and 270 degrees counter-clockwise, and a linear classifier on the pooled
features tells which (§3). Nobody can say that of a thing without knowing how it usually stands.

A view is cut and resized before it is turned, and turning by a right angle moves pixels without touching their
values: neither interpolation nor borders can give the answer away.

Shapes: B pictures a batch, F features.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.augment import view
from training.backbone import Network
from training.draws import Draw
from training.methods.method import Batch, Loss, Method
from training.recipes import Recipe

ROTATIONS = 4


class RotationPrediction(Method):
    """Rotation prediction. Nothing is remembered between steps, so there is nothing to commit."""

    note: ClassVar[str] = (
        "loss starts at ln 4 = 1.386 and accuracy, of rotations, at 0.25; the middle stages learn what a "
        "search can use, so look at the PCA head, which pools them"
    )

    def __init__(self, network: Network, recipe: Recipe, pictures: int) -> None:
        super().__init__(network, recipe, pictures)
        self.classifier = nn.Linear(network.feature_dim, ROTATIONS)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def views(self, images: Tensor, draw: Draw) -> tuple[Tensor, ...]:
        """Return a random view of each picture in four rotations, float32 (4·B, 3, H, W), picture by picture."""
        return (rotations(view(images, self.recipe.image_size, self.recipe.augment, draw)),)

    def loss(self, batch: Batch) -> Loss:
        """Cross-entropy over the four rotations, ln 4 at the start."""
        features = self.network.features(batch.views[0])  # (4·B, F)
        logits = self.classifier(features)  # (4·B, 4)
        labels = torch.arange(ROTATIONS, device=logits.device).repeat(len(logits) // ROTATIONS)
        metrics = {"accuracy": (logits.argmax(dim=1) == labels).float().mean()}
        upright = features.detach()[::ROTATIONS]
        return Loss(F.cross_entropy(logits, labels), metrics, F.normalize(upright, dim=1))


def rotations(images: Tensor) -> Tensor:
    """Turn pictures by 0, 90, 180 and 270 degrees counter-clockwise.

    Args:
        images: (B, C, S, S).

    Returns:
        (4·B, C, S, S), the four of the first picture first; row i is turned i mod 4 times.
    """
    turned = [images.rot90(turns, dims=(2, 3)) for turns in range(ROTATIONS)]
    return torch.stack(turned, dim=1).flatten(0, 1)

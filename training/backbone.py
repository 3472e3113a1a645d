"""From pixels to embeddings: a network of torchvision, its projection, nothing else.

    pixels → normalise → four stages → features (B, F) → projection → embeddings (B, D)
                              └ ─ ─ → descriptor, for the PCA head

The network that training optimises, the one that online kNN measures and the one that export writes are the
same object. Residual networks show their stages, and recipes change their stem and width (training.residual); any
other classification network of torchvision gives its features alone (training.torchvision_models).
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import ResNet

from index.errors import RecipeError
from training import residual, torchvision_models
from training.recipes import Recipe

# ImageNet's channel statistics, 0…1 RGB. Other pictures have others, but the first BatchNorm absorbs the rest.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class Network(nn.Module):
    """Backbone and projection.

    Attributes:
        backbone: the network without its classifier.
        projection: (B, F) → (B, D), not yet of unit length; None for a method that trains none.
        feature_dim: F.
        side: of pictures in pixels, where the backbone takes but one; else None.
        precision: "bfloat16" and "float16" run the backbone in that while training; evaluation is always float32,
            so that what is measured is what will be exported.
        compiled: whether torch.compile makes the backbone's kernels while training; state dicts do not show it.
    """

    def __init__(
        self,
        backbone: nn.Module,
        feature_dim: int,
        projection: nn.Module | None,
        *,
        side: int | None = None,
        precision: str = "float32",
        compiled: bool = False,
    ) -> None:
        super().__init__()
        self.side = side
        self.precision = precision
        self._low = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(precision)
        self.backbone = backbone
        self.projection = projection
        self.feature_dim = feature_dim
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)
        self.compiled = compiled
        self._kernels = torch.compile(self._run) if compiled else self._run

    def stages(self, images: Tensor) -> list[Tensor]:
        """Run the backbone on float pictures (B, 3, H, W) in 0…1.

        Returns:
            The maps of a residual network's four stages, each (B, C, h, w), or the features (B, F) of another.

        Raises:
            RecipeError: pictures of a size that the backbone does not take, or no compiler for `compile`.
        """
        if self.side not in (None, images.shape[-1]):
            raise RecipeError(
                f"expected views of {self.side} px, the one size that this backbone takes, got {images.shape[-1]}; "
                "take a convolutional backbone, e.g. resnet18"
            )
        if not self.training:
            return self._run(images)
        try:
            return self._kernels(images)
        except torch._dynamo.exc.BackendCompilerFailed as error:  # noqa: SLF001 - torch has no public name for it
            reason = str(error.inner_exception).partition("\n")[0]
            raise RecipeError(
                f"expected torch.compile to make kernels on this machine, got: {reason}; "
                "install a C++ compiler, or set compile=false"
            ) from error

    def _run(self, images: Tensor) -> list[Tensor]:
        low = self._low if self.training else None
        with torch.autocast(images.device.type, low or torch.bfloat16, enabled=low is not None):
            pixels = (images - cast("Tensor", self.mean)) / cast("Tensor", self.std)
            if isinstance(self.backbone, ResNet):
                return residual.stages(self.backbone, pixels)
            return [self.backbone(pixels)]

    def features(self, images: Tensor) -> Tensor:
        """Return the features, float32 (B, F), that the projection sees: the average of the last stage."""
        last = self.stages(images)[-1].float()
        return last.mean(dim=(2, 3)) if last.ndim == 4 else last

    def descriptor(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return what the PCA head sees, (B, …) each, the features last (see training.residual.describe)."""
        maps = [part.float() for part in self.stages(images)]
        return residual.describe(maps) if maps[-1].ndim == 4 else (maps[-1],)

    def project(self, features: Tensor) -> Tensor:
        """Return the unit embeddings, float32 (B, D), of pooled features (B, F)."""
        if self.projection is None:
            raise RecipeError("expected a method with a trained projection, got one without; use the PCA head")
        return F.normalize(self.projection(features), dim=1)

    def forward(self, images: Tensor) -> Tensor:
        """Return the unit embeddings, float32 (B, D), of float pictures (B, 3, H, W) in 0…1."""
        return self.project(self.features(images))


def build(recipe: Recipe) -> Network:
    """Build the network of a recipe with freshly drawn weights (torch's global generator).

    Raises:
        RecipeError: an unknown or unfit backbone, a stem or width that it does not have, or fewer features than the
            embedding has dimensions.
    """
    name, side = recipe.backbone, recipe.image_size
    backbone: nn.Module
    if name in residual.NAMES:
        backbone, features = residual.build(name, width=recipe.width, stem=recipe.stem)
        advice = "raise width"
    else:
        _refuse_changes(recipe)
        backbone, features = torchvision_models.build(name, side)
        advice = "lower dim"
    if features < recipe.dim:
        raise RecipeError(
            f"expected at least {recipe.dim} features for embeddings of that size, got {features} from "
            f"{name} at width {recipe.width:g}; {advice}"
        )
    whole = Network(
        backbone,
        features,
        _projection(recipe, features),
        side=side if torchvision_models.takes_one_size(name) else None,
        precision=recipe.precision,
        compiled=recipe.compile,
    )
    # channels_last is what convolutions want: 1.2 to 6 times faster on the CPUs tried, and on tensor cores.
    return whole.to(memory_format=torch.channels_last)


def _refuse_changes(recipe: Recipe) -> None:
    """Raise RecipeError for a stem or a width that only residual networks have, or an unknown name."""
    if recipe.backbone not in torchvision_models.names():
        raise torchvision_models.unknown(recipe.backbone)
    if recipe.stem != "imagenet" or recipe.width != 1:
        raise RecipeError(
            f"expected stem=imagenet and width=1 for {recipe.backbone}, got stem={recipe.stem} and "
            f"width={recipe.width:g}; only {', '.join(residual.NAMES)} have others"
        )


def _projection(recipe: Recipe, features: int) -> nn.Module | None:
    """Return the trained head: one layer (NPID, MoCo v1), or two with a ReLU between (MoCo v2, §3)."""
    kind = recipe.options.projection
    if kind == "none":
        return None
    if kind == "linear":
        return nn.Linear(features, recipe.dim)
    return nn.Sequential(nn.Linear(features, features), nn.ReLU(inplace=True), nn.Linear(features, recipe.dim))

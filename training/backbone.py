"""From pixels to embeddings: a torchvision residual network, its projection, nothing else.

    pixels → normalise → four stages → features (B, F) → projection → embeddings (B, D)
                              └ ─ ─ → descriptor, for the PCA head

The network that training optimises, the one that online kNN measures and the one that export writes are the
same object. Residual networks follow He et al. 2016 (arXiv:1512.03385), in torchvision's arrangement, so
that public weights load without renaming.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from index.errors import RecipeError
from training.recipes import Recipe

# ImageNet's channel statistics, 0…1 RGB. Other pictures have others, but the first BatchNorm absorbs the rest.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

_ARCHITECTURES: dict[str, tuple[type[BasicBlock | Bottleneck], list[int]]] = {
    "resnet18": (BasicBlock, [2, 2, 2, 2]),
    "resnet34": (BasicBlock, [3, 4, 6, 3]),
    "resnet50": (Bottleneck, [3, 4, 6, 3]),
}


class Network(nn.Module):
    """Backbone and projection.

    Attributes:
        backbone: the residual network without its classifier.
        projection: (B, F) → (B, D), not yet of unit length; None for a method that trains none.
        feature_dim: F.
        precision: "bfloat16" and "float16" run the convolutions of training in that; evaluation is always float32,
            so that what is measured is what will be exported.
    """

    def __init__(
        self, backbone: ResNet, feature_dim: int, projection: nn.Module | None, precision: str = "float32"
    ) -> None:
        super().__init__()
        self.precision = precision
        self._low = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(precision)
        self.backbone = backbone
        self.projection = projection
        self.feature_dim = feature_dim
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)

    def stages(self, images: Tensor) -> list[Tensor]:
        """Return the maps of the four stages, each (B, C, h, w), of float pictures (B, 3, H, W) in 0…1."""
        body = self.backbone
        low = self._low if self.training else None
        with torch.autocast(images.device.type, low or torch.bfloat16, enabled=low is not None):
            x = (images - cast("Tensor", self.mean)) / cast("Tensor", self.std)
            x = body.maxpool(body.relu(body.bn1(body.conv1(x))))
            maps = []
            for stage in (body.layer1, body.layer2, body.layer3, body.layer4):
                x = stage(x)
                maps.append(x)
        return maps

    def features(self, images: Tensor) -> Tensor:
        """Return the pooled features (B, F): the average of the last stage, what the projection sees."""
        return self.stages(images)[-1].float().mean(dim=(2, 3))

    def descriptor(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return all four stages pooled, (B, …) each, the last one being the features.

        The last stage tells what a picture's class is; the earlier ones tell colours, textures and, averaged over
        quarters instead of the whole, where in the picture they are. A neighbour search wants all of it.
        """
        first, second, third, last = self.stages(images)
        return _quarters(first), _quarters(second), third.mean(dim=(2, 3)), last.mean(dim=(2, 3))

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
        RecipeError: an unknown architecture or stem, or fewer features than the embedding has dimensions.
    """
    if recipe.backbone not in _ARCHITECTURES:
        raise RecipeError(f"expected a backbone among {', '.join(_ARCHITECTURES)}, got {recipe.backbone!r}")
    block, layers = _ARCHITECTURES[recipe.backbone]
    network = ResNet(block, layers)
    if recipe.width != 1.0:
        network = _narrow(block, layers, recipe.width)
    _change_stem(network, recipe.stem)
    feature_dim = network.fc.in_features
    if feature_dim < recipe.dim:
        raise RecipeError(
            f"expected at least {recipe.dim} features for embeddings of that size, got {feature_dim} from "
            f"{recipe.backbone} at width {recipe.width:g}; raise width"
        )
    network.fc = cast("nn.Linear", nn.Identity())  # the classifier: pretraining has no classes
    _initialise(network)
    # channels_last is what convolutions want: 1.2 to 6 times faster on the CPUs tried, and on tensor cores.
    whole = Network(network, feature_dim, _projection(recipe, feature_dim), recipe.precision)
    if recipe.compile:
        # The bound method, not the module: the state dict keeps its names.
        whole.stages = torch.compile(whole.stages)  # type: ignore[method-assign]
    return whole.to(memory_format=torch.channels_last)


def _projection(recipe: Recipe, features: int) -> nn.Module | None:
    """Return the trained head: one layer (NPID, MoCo v1), or two with a ReLU between (MoCo v2, §3)."""
    kind = recipe.options.projection
    if kind == "none":
        return None
    if kind == "linear":
        return nn.Linear(features, recipe.dim)
    return nn.Sequential(nn.Linear(features, features), nn.ReLU(inplace=True), nn.Linear(features, recipe.dim))


def _quarters(maps: Tensor) -> Tensor:
    """Average each quarter of maps (B, C, h, w): (B, 4·C). With odd sides the quarters share the middle."""
    height, width = maps.shape[-2:]
    low, left = (height + 1) // 2, (width + 1) // 2
    rows = (maps[:, :, :low], maps[:, :, height - low :])
    quarters = [part for row in rows for part in (row[..., :left], row[..., width - left :])]
    return torch.cat([quarter.mean(dim=(2, 3)) for quarter in quarters], dim=1)


def _narrow(block: type[BasicBlock | Bottleneck], layers: list[int], width: float) -> ResNet:
    """Return the network with every channel count multiplied by `width` (torchvision fixes 64, 128, 256, 512)."""
    channels = [max(8, round(width * c / 8) * 8) for c in (64, 128, 256, 512)]
    network = ResNet(block, layers)
    network.inplanes = channels[0]
    network.conv1 = nn.Conv2d(3, channels[0], 7, stride=2, padding=3, bias=False)
    network.bn1 = nn.BatchNorm2d(channels[0])
    for number, (count, depth) in enumerate(zip(channels, layers, strict=True), start=1):
        stride = 1 if number == 1 else 2
        setattr(network, f"layer{number}", network._make_layer(block, count, depth, stride=stride))  # noqa: SLF001
    network.fc = nn.Linear(channels[3] * block.expansion, 1)
    return network


def _change_stem(network: ResNet, stem: str) -> None:
    """Adapt the first layers to the picture size.

    imagenet  7×7 stride 2, max-pool: a quarter of the side, for 224 px
    quarter   3×3 stride 2, max-pool: a quarter of the side, for 64 to 128 px
    half      3×3 stride 2, no pool: half the side, for about 48 to 96 px
    full      3×3 stride 1, no pool: the CIFAR stem, for 32 px
    """
    channels = network.conv1.out_channels
    if stem == "imagenet":
        return
    if stem not in ("quarter", "half", "full"):
        raise RecipeError(f"expected a stem among imagenet, quarter, half, full, got {stem!r}")
    stride = 1 if stem == "full" else 2
    network.conv1 = nn.Conv2d(3, channels, 3, stride=stride, padding=1, bias=False)
    if stem != "quarter":
        network.maxpool = cast("nn.MaxPool2d", nn.Identity())


def _initialise(network: nn.Module) -> None:
    """He initialisation by fan-out, as in the papers' code; the replaced layers missed torchvision's."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

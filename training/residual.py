"""Residual networks in torchvision's arrangement, so that public weights load without renaming.

He et al. 2016 (arXiv:1512.03385); the wide ones, with bottlenecks of twice the channels, are those of Zagoruyko and
Komodakis 2016 (arXiv:1605.07146). A recipe may change their first layers (its stem) and their number of channels
(its width).
"""

import contextlib
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from index.errors import RecipeError

_Block = type[BasicBlock | Bottleneck]
_ARCHITECTURES: dict[str, tuple[_Block, list[int], dict[str, Any]]] = {
    "resnet18": (BasicBlock, [2, 2, 2, 2], {}),
    "resnet34": (BasicBlock, [3, 4, 6, 3], {}),
    "resnet50": (Bottleneck, [3, 4, 6, 3], {}),
    "resnet101": (Bottleneck, [3, 4, 23, 3], {}),
    "resnet152": (Bottleneck, [3, 8, 36, 3], {}),
    "wide_resnet50_2": (Bottleneck, [3, 4, 6, 3], {"width_per_group": 128}),
    "wide_resnet101_2": (Bottleneck, [3, 4, 23, 3], {"width_per_group": 128}),
}
NAMES = tuple(_ARCHITECTURES)


def build(name: str, *, width: float, stem: str) -> tuple[ResNet, int]:
    """Build one of NAMES with freshly drawn weights, without its classifier.

    Args:
        name: of the architecture.
        width: factor of every channel count.
        stem: see `_change_stem`.

    Returns:
        The network, and F, the channels of its last stage.

    Raises:
        RecipeError: an unknown stem.
    """
    block, layers, extras = _ARCHITECTURES[name]
    if width == 1.0:
        network = ResNet(block, layers, num_classes=1, **extras)
    else:
        with torch.device("meta"):  # an outline: every layer with weights is replaced
            network = ResNet(block, layers, num_classes=1, **extras)
        _widen(network, block, layers, width)
    _change_stem(network, stem)
    features = network.fc.in_features
    network.fc = cast("nn.Linear", nn.Identity())  # the classifier: pretraining has no classes
    _initialise(network)
    return network, features


def stages(network: ResNet, pixels: Tensor) -> list[Tensor]:
    """Return the maps of the four stages, each (B, C, h, w), of normalised pictures (B, 3, H, W)."""
    x = network.maxpool(network.relu(network.bn1(network.conv1(pixels))))
    maps = []
    for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
        # In bfloat16 a CPU leaves uninitialised memory in the gradient of a strided 3×3 kernel over one pixel, at
        # the taps that meet no pixel (torch 2.15): maps of one pixel go on in float32.
        single = x.device.type == "cpu" and max(x.shape[-2:]) == 1
        with torch.autocast("cpu", enabled=False) if single else contextlib.nullcontext():
            x = stage(x.float() if single else x)
        maps.append(x)
    return maps


def describe(maps: list[Tensor]) -> tuple[Tensor, ...]:
    """Pool the maps of the four stages, (B, …) each, the last one giving the features.

    The last stage tells what a picture's class is; the earlier ones tell colours, textures and, averaged over
    quarters instead of the whole, where in the picture they are. A neighbour search wants all of it.
    """
    first, second, third, last = maps
    return _quarters(first), _quarters(second), third.mean(dim=(2, 3)), last.mean(dim=(2, 3))


def _quarters(maps: Tensor) -> Tensor:
    """Average each quarter of maps (B, C, h, w): (B, 4·C). With odd sides the quarters share the middle."""
    height, width = maps.shape[-2:]
    low, left = (height + 1) // 2, (width + 1) // 2
    rows = (maps[:, :, :low], maps[:, :, height - low :])
    quarters = [part for row in rows for part in (row[..., :left], row[..., width - left :])]
    return torch.cat([quarter.mean(dim=(2, 3)) for quarter in quarters], dim=1)


def _widen(network: ResNet, block: _Block, layers: list[int], width: float) -> None:
    """Multiply every channel count by `width` (torchvision fixes 64, 128, 256, 512)."""
    channels = [max(8, round(width * c / 8) * 8) for c in (64, 128, 256, 512)]
    network.inplanes = channels[0]
    network.conv1 = nn.Conv2d(3, channels[0], 7, stride=2, padding=3, bias=False)
    network.bn1 = nn.BatchNorm2d(channels[0])
    for number, (count, depth) in enumerate(zip(channels, layers, strict=True), start=1):
        stride = 1 if number == 1 else 2
        setattr(network, f"layer{number}", network._make_layer(block, count, depth, stride=stride))  # noqa: SLF001
    network.fc = nn.Linear(channels[3] * block.expansion, 1)


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

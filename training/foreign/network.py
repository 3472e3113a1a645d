"""From recognised weights to our network: the shapes tell the architecture, and every tensor is accounted for."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from index.errors import CheckpointError
from training.backbone import Network, build
from training.foreign.layouts import Weights
from training.recipes import Recipe

_DEPTHS: dict[tuple[bool, tuple[int, ...]], str] = {
    (False, (2, 2, 2, 2)): "resnet18",
    (False, (3, 4, 6, 3)): "resnet34",
    (True, (3, 4, 6, 3)): "resnet50",
    (True, (3, 4, 23, 3)): "resnet101",
    (True, (3, 8, 36, 3)): "resnet152",
}


@dataclass(frozen=True)
class Architecture:
    """What the shapes say: arguments of `training.backbone.build`."""

    backbone: str
    width: float
    stem: str


def architecture_of(backbone: Mapping[str, Tensor]) -> Architecture:
    """Read the architecture from the shapes of a backbone under torchvision's names.

    A 7×7 stem is ImageNet's, a 3×3 one CIFAR's: the first at full resolution, no pooling.

    Raises:
        CheckpointError: none that torchvision has.
    """
    stem = backbone["conv1.weight"]
    channels, colours, side = stem.shape[:3]
    if colours != 3 or side not in (3, 7):
        raise CheckpointError(
            f"expected a first convolution of 7×7 or 3×3 pixels over 3 colours, got {side}×{side} over {colours}; "
            "only networks for RGB pictures can be imported"
        )
    bottleneck = "layer1.0.conv3.weight" in backbone
    depths = tuple(
        sum(f"layer{stage}.{block}.conv1.weight" in backbone for block in range(64)) for stage in range(1, 5)
    )
    name = _DEPTHS.get((bottleneck, depths))
    second = backbone.get("layer1.0.conv2.weight")
    if name is None or second is None or (bottleneck and second.shape[0] != second.shape[1]):
        raise CheckpointError(
            f"expected {', '.join(_DEPTHS.values())} or a wide one, got {'-'.join(map(str, depths))} "
            f"{'bottlenecks' if bottleneck else 'basic blocks'} of another kind; it cannot be imported"
        )
    wide = bottleneck and second.shape[0] == 2 * channels
    return Architecture(f"wide_{name}_2" if wide else name, channels / 64, "imagenet" if side == 7 else "full")


def network_of(weights: Weights, recipe: Recipe) -> tuple[Network, str]:
    """Build the network in evaluation mode, and say in a phrase what became of the head.

    Args:
        weights: of a file.
        recipe: with the architecture that `architecture_of` found.

    Raises:
        CheckpointError: weights that are missing, too many or of another shape.
    """
    network = build(replace(recipe, compile=False))
    _load(network.backbone, weights.backbone)
    network.projection, said = head_of(weights.head, network.feature_dim, recipe.dim)
    mean, deviation = weights.layout.small if recipe.stem == "full" else weights.layout.normalisation
    cast("Tensor", network.mean).copy_(torch.tensor(mean).view(1, 3, 1, 1))
    cast("Tensor", network.std).copy_(torch.tensor(deviation).view(1, 3, 1, 1))
    if not weights.layout.stem_relu:
        network.backbone.relu = cast("nn.ReLU", nn.Identity())  # its only use outside the blocks
    return network.eval(), said


def head_of(head: Mapping[str, Tensor], features: int, dim: int) -> tuple[nn.Module | None, str]:
    """Return the trained head (B, F) → (B, D) if there is one of that size, and what was found.

    Numbers are places in a sequence: matrices are linear layers, running means BatchNorms, and what has no weights,
    which leaves a number out, is a ReLU.
    """
    if not head:
        return None, "no head in the file"
    layers: list[nn.Module] = []
    following = 0
    outputs = inputs = 0
    for place in sorted({int(key.split(".", maxsplit=1)[0]) for key in head}):
        own = {key.partition(".")[2]: t.float() for key, t in head.items() if key.startswith(f"{place}.")}
        if place > following and layers:
            layers.append(nn.ReLU())
        following = place + 1
        matrix, mean = own.get("weight"), own.get("running_mean")
        if mean is not None:
            layers.append(nn.BatchNorm1d(len(mean), affine=matrix is not None))
        elif matrix is not None and matrix.ndim == 2:
            outputs = matrix.shape[0]
            inputs = inputs or matrix.shape[1]
            layers.append(nn.Linear(matrix.shape[1], outputs, bias="bias" in own))
        else:
            return None, "a head of an unknown kind"
        layers[-1].load_state_dict(own, strict=mean is None)
    depth = sum(isinstance(layer, nn.Linear) for layer in layers)
    kind = f"{'linear head' if depth == 1 else f'head of {depth} linear layers'}, {inputs} → {outputs}"
    if (inputs, outputs) != (features, dim):
        return None, f"{kind}, which is no projection of {features} features to {dim}"
    return nn.Sequential(*layers).eval(), kind


def _load(backbone: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load every weight, or raise CheckpointError with the first that does not fit."""
    own = backbone.state_dict()
    # BatchNorm counts its batches for a cumulative average only; files from before 2018 have no count.
    needed = {key for key in own if not key.endswith("num_batches_tracked")}
    missing, foreign = sorted(needed - weights.keys()), sorted(weights.keys() - own.keys())
    if missing or foreign:
        got = f"none of {missing[0]}" if missing else f"{foreign[0]} as well"
        raise CheckpointError(
            f"expected exactly the weights of torchvision's network, got {got} "
            f"({len(missing)} missing, {len(foreign)} too many); give the right --backbone"
        )
    fitting = {key: _merge_splits(tensor, own[key]) for key, tensor in weights.items()}
    for key, tensor in fitting.items():
        if tensor.shape != own[key].shape:
            raise CheckpointError(
                f"expected {key} of shape {tuple(own[key].shape)}, got {tuple(tensor.shape)}; "
                "give the right --backbone"
            )
    backbone.load_state_dict({**own, **fitting})


def _merge_splits(tensor: Tensor, own: Tensor) -> Tensor:
    """Average running statistics that were kept for each of several parts of the batch: (S·C,) → (C,)."""
    if tensor.ndim == own.ndim == 1 and len(tensor) > len(own) and len(tensor) % len(own) == 0:
        return tensor.view(-1, len(own)).mean(dim=0)
    return tensor

"""Any classification network of torchvision, without its classifier.

Residual networks have stages to describe pictures by, stems and widths (training.residual). Of every other network
only the features before the classifier are used: (B, F), whatever it does inside.
"""

import difflib
from typing import Any, cast

import torch
from torch import nn
from torchvision import models

from index.errors import RecipeError

# Where torchvision's networks keep their classifiers.
_CLASSIFIERS = ("classifier", "fc", "head", "heads")
_BYTES = 2_000_000_000  # a protobuf, and so an encoder.onnx, ends at 2 GiB
_MOMENTUM = 0.1  # of BatchNorm's running statistics: torch's own, and that of the residual networks
_EXTRAS: dict[str, dict[str, Any]] = {  # the second and third classifier are aids of supervised training
    "googlenet": {"aux_logits": False, "init_weights": True},
    "inception_v3": {"aux_logits": False, "init_weights": True},
}


def names() -> list[str]:
    """Return the names of all of torchvision's classification networks."""
    return cast("list[str]", models.list_models(module=models))


def unknown(name: str) -> RecipeError:
    """Return the error for a backbone that does not exist, with the nearest that does."""
    near = difflib.get_close_matches(name, names(), 1)
    hint = (
        f"did you mean {near[0]}?" if near else "any classification network of torchvision will do, e.g. resnet18"
    )
    return RecipeError(f"expected a backbone that torchvision has, got {name!r}; {hint}")


def takes_one_size(name: str) -> bool:
    """Return whether a network has weights for the positions of a picture: it works at one side only."""
    return name.startswith(("vit_", "maxvit"))


def build(name: str, side: int) -> tuple[nn.Module, int]:
    """Build one of `names` with freshly drawn weights for pictures of `side` pixels, without its classifier.

    Returns:
        (B, 3, side, side) → (B, F), and F.

    Raises:
        RecipeError: one that is too large for an encoder, or cannot work at this side.
    """
    try:
        network, features = _without_classifier(name, side)
        _try(network, side)
    except (AssertionError, RuntimeError, ValueError) as error:
        raise _unfit(name, side) from error
    weights = sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())
    if weights > _BYTES:
        raise RecipeError(
            f"expected weights of at most {_BYTES / 1e9:g} GB, which is what an encoder.onnx can hold, "
            f"got {weights / 1e9:.1f} GB from {name}; take a smaller backbone"
        )
    return network, features


def _try(network: nn.Module, side: int) -> None:
    """Run a network on a picture of `side` pixels for the sake of its errors, without arithmetic."""
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    shapes = {name: tensor.detach().to("meta") for name, tensor in tensors.items()}
    network.eval()
    torch.func.functional_call(network, shapes, (torch.empty(1, 3, side, side, device="meta"),))
    network.train()


def _without_classifier(name: str, side: int) -> tuple[nn.Module, int]:
    extras = dict(_EXTRAS.get(name, {}))
    if name.startswith("vit_"):
        extras["image_size"] = side
    if name.startswith("maxvit"):
        extras["input_size"] = (side, side)
    network = cast("nn.Module", models.get_model(name, weights=None, num_classes=1, **extras))
    path, layer = [
        (path, layer)
        for path, layer in network.named_modules()
        if path.split(".")[0] in _CLASSIFIERS and isinstance(layer, nn.Linear | nn.Conv2d)
    ][-1]
    network.set_submodule(path, nn.Identity())
    # Mobile networks follow their statistics at 0.01, mnasnet at 0.0003: after an epoch of a small set the network
    # that is measured would still see those of its first day, and its features would be nearly constant.
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = _MOMENTUM
    return network, layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels


def _unfit(name: str, side: int) -> RecipeError:
    step = int(name.rpartition("_")[2]) if name.startswith("vit_") else 0
    if step:
        near = max(step, round(side / step) * step)
        return RecipeError(
            f"expected image_size to be a multiple of the {step} px patches of {name}, got {side}; "
            f"set image_size={near}"
        )
    return RecipeError(f"expected an image_size that {name} can work with, got {side}; set image_size=224")

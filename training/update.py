"""How gradients move the weights: optimiser, clipping, and the loss scale that float16 needs."""

from typing import Any

import torch
from torch import Tensor, nn

from training.recipes import Recipe


class Update:
    """One optimiser step, from the losses of its micro-batches."""

    def __init__(self, parameters: list[nn.Parameter], recipe: Recipe, device: torch.device) -> None:
        self._parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self._clip = recipe.clip
        self._parts = recipe.accumulate
        self._optimizer = optimizer(self._parameters, recipe)
        # float16 loses small gradients; bfloat16 and float32 have the range (Micikevicius 2018, §3.2).
        self._scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "float16")

    def backward(self, value: Tensor) -> None:
        """Add the gradient of a micro-batch's mean loss, so that the step's is that of the whole batch."""
        self._scaler.scale(value / self._parts).backward()  # type: ignore[no-untyped-call]

    def step(self, rate: float) -> bool:
        """Move the weights; False when float16 overflowed and they stayed."""
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        if self._clip > 0:
            self._scaler.unscale_(self._optimizer)
            nn.utils.clip_grad_norm_(self._parameters, self._clip)
        self._scaler.step(self._optimizer)
        scale = self._scaler.get_scale()
        self._scaler.update()
        self._optimizer.zero_grad(set_to_none=True)
        return self._scaler.get_scale() >= scale

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint holds of this."""
        return {"optimizer": self._optimizer.state_dict(), "scaler": self._scaler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` returned."""
        self._optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])


def optimizer(parameters: list[nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
    """Return the recipe's optimiser; biases and BatchNorm (vectors) are decayed only where the recipe says so."""
    if recipe.decay_all:
        groups = [{"params": parameters, "weight_decay": recipe.weight_decay}]
    else:
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
    # A first step that float16 skips leaves the momentum of fused SGD uninitialised (torch 2.15 and before).
    fused = recipe.precision != "float16"
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.learning_rate, fused=fused)
    return torch.optim.SGD(
        groups, lr=recipe.learning_rate, momentum=recipe.momentum, nesterov=recipe.nesterov, fused=fused
    )

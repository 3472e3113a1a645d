"""The learning rate as a function of the step: nothing to save, nothing to resume."""

import math

from training.recipes import Recipe


def learning_rate(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """Return the rate of a step (from 0): linear warm-up, then cosine to zero, or a step down at each milestone."""
    epoch = step / steps_per_epoch
    if epoch < recipe.warmup:
        return recipe.learning_rate * (step + 1) / (recipe.warmup * steps_per_epoch)
    if recipe.schedule == "step":
        passed = sum(epoch >= milestone for milestone in recipe.milestones)
        return recipe.learning_rate * recipe.step_factor**passed
    share = (epoch - recipe.warmup) / max(recipe.epochs - recipe.warmup, 1e-9)
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))

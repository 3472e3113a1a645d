"""The pretext tasks, one file each. A further one is a file here and a line in METHODS."""

from collections.abc import Callable

from index.errors import RecipeError
from training.backbone import Network
from training.methods.method import Batch, Loss, Method
from training.methods.npid import NPID
from training.recipes import Recipe

__all__ = ["METHODS", "Batch", "Loss", "Method", "create"]

METHODS: dict[str, Callable[[Network, Recipe, int], Method]] = {
    "npid": NPID,
}


def create(network: Network, recipe: Recipe, pictures: int) -> Method:
    """Build the recipe's method around a network, for N `pictures`."""
    if recipe.method not in METHODS:
        raise RecipeError(f"expected a method among {', '.join(METHODS)}, got {recipe.method!r}")
    return METHODS[recipe.method](network, recipe, pictures)

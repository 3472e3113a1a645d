"""The pretext tasks, one file each. A further one is a file here, a line in METHODS, and its recipes."""

from index.errors import RecipeError
from training.backbone import build
from training.methods.method import Batch, Loss, Method
from training.methods.moco_v2 import MoCoV2
from training.methods.npid import NPID
from training.methods.relative_location import RelativeLocationPrediction
from training.methods.rotation import RotationPrediction
from training.recipes import Recipe

__all__ = ["METHODS", "Batch", "Loss", "Method", "create"]

METHODS: dict[str, type[Method]] = {
    "npid": NPID,
    "moco_v2": MoCoV2,
    "rotation": RotationPrediction,
    "relative_location": RelativeLocationPrediction,
}


def create(recipe: Recipe, pictures: int) -> Method:
    """Build the recipe's method and its network, for N `pictures`, with freshly drawn weights.

    Raises:
        RecipeError: an unknown method, or a network that cannot be built.
    """
    if recipe.method not in METHODS:
        raise RecipeError(f"expected a method among {', '.join(METHODS)}, got {recipe.method!r}")
    return METHODS[recipe.method](build(recipe), recipe, pictures)

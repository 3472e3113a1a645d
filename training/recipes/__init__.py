"""Named recipes, one file a method. The difference of two recipes is the list of their scientific differences.

`training.overrides` changes single values from the command line.
"""

from typing import Any

from training.recipes import moco_v2, npid, relative_location, rotation
from training.recipes.moco_v2 import MocoV2
from training.recipes.npid import Npid
from training.recipes.recipe import Augmentation, Options, Recipe
from training.recipes.relative_location import RelativeLocation
from training.recipes.rotation import Rotation

__all__ = [
    "RECIPES",
    "Augmentation",
    "MocoV2",
    "Npid",
    "Options",
    "Recipe",
    "RelativeLocation",
    "Rotation",
    "from_json",
]

_METHODS = (npid, moco_v2, rotation, relative_location)
RECIPES: dict[str, Recipe] = {recipe.name: recipe for method in _METHODS for recipe in method.RECIPES}


def from_json(values: dict[str, Any]) -> Recipe:
    """Return the recipe that `Recipe.to_json` wrote."""
    options = {recipe.method: type(recipe.options) for recipe in RECIPES.values()}
    parts = {
        "options": options[values["method"]](**values["options"]),
        "augment": Augmentation(**values["augment"]),
        "milestones": tuple(values["milestones"]),
    }
    return Recipe(**{key: value for key, value in {**values, **parts}.items() if key != "method"})

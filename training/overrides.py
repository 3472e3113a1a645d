"""`--set key=value`: single values of a recipe, typed by its annotations. No key is silently ignored."""

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from index.errors import RecipeError
from training.recipes import RECIPES, Recipe

Part = TypeVar("Part")


def override(recipe: Recipe, settings: Mapping[str, str]) -> Recipe:
    """Return the recipe with some values replaced.

    Args:
        recipe: to start from.
        settings: key → text; keys of a part are written `augment.hue`, `options.temperature`, tuples `120,160`.

    Raises:
        RecipeError: an unknown key (with the nearest known one) or a value of the wrong type.
    """
    for key, text in settings.items():
        if key not in (known := keys(recipe)):
            raise _unknown(key, known)
        recipe = _replace(recipe, key, key.split("."), text)
    return recipe


def keys(recipe: Recipe) -> list[str]:
    """Return every key that `override` knows for a recipe; those of its options depend on its method."""
    plain, nested = [], []
    for entry in dataclasses.fields(recipe):
        value = getattr(recipe, entry.name)
        if dataclasses.is_dataclass(value):
            nested += [f"{entry.name}.{part.name}" for part in dataclasses.fields(value)]
        elif entry.name not in ("name", "about"):
            plain.append(entry.name)
    return plain + nested


def _replace(part: Part, key: str, path: list[str], text: str) -> Part:
    name = path[0]
    if len(path) > 1:
        value = _replace(getattr(part, name), key, path[1:], text)
    else:
        value = _parse(get_type_hints(type(part))[name], key, text)
    return dataclasses.replace(part, **{name: value})  # type: ignore[type-var]


def _parse(kind: Any, key: str, text: str) -> Any:  # noqa: ANN401 - the field's annotation decides
    if get_origin(kind) is Literal:
        if text in get_args(kind):
            return text
        raise RecipeError(f"expected {key} to be one of {', '.join(get_args(kind))}, got {text!r}")
    if kind is bool:
        if text.lower() in ("true", "false"):
            return text.lower() == "true"
        raise RecipeError(f"expected {key} to be true or false, got {text!r}")
    try:
        if get_origin(kind) is tuple:
            return tuple(int(part) for part in text.split(",") if part)
        return kind(text)
    except ValueError as error:
        name = "a list of integers" if get_origin(kind) is tuple else f"a value of type {kind.__name__}"
        raise RecipeError(f"expected {key} to be {name}, got {text!r}") from error


def _unknown(key: str, known: list[str]) -> RecipeError:
    tails = {name.rpartition(".")[2]: name for name in known}
    near = difflib.get_close_matches(key, known, 1) or [
        tails[tail] for tail in difflib.get_close_matches(key.rpartition(".")[2], tails, 1)
    ]
    hint = f"did you mean {near[0]}?" if near else f"the keys are {', '.join(known)}"
    raise RecipeError(f"expected a key of the recipe, got {key!r}; {hint}")


def find(name: str) -> Recipe:
    """Return a recipe by name.

    Raises:
        RecipeError: there is none; the message names the nearest.
    """
    if name in RECIPES:
        return RECIPES[name]
    near = difflib.get_close_matches(name, RECIPES, 1)
    hint = f"did you mean {near[0]}?" if near else f"the recipes are {', '.join(RECIPES)}"
    raise RecipeError(f"expected a recipe, got {name!r}; {hint}")

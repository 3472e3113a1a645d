"""Recipes, their overrides, and what a wrong key is told."""

import pytest

from index.errors import RecipeError
from training.methods import METHODS
from training.overrides import find, keys, override
from training.recipes import RECIPES, from_json
from training.schedules import learning_rate


def test_a_recipe_survives_json_with_every_value():
    for recipe in RECIPES.values():
        assert from_json(recipe.to_json()) == recipe


def test_every_recipe_says_its_command_and_names_a_method_that_exists():
    for name, recipe in RECIPES.items():
        assert f"-m training pretrain {name} " in recipe.about
        assert recipe.method in METHODS


def test_an_override_is_typed_by_the_field_it_changes():
    changed = override(
        RECIPES["npid-demo"],
        {"epochs": "3", "width": "0.25", "augment.hue": "0.1", "milestones": "5,7", "options.loss": "nce"},
    )
    assert (changed.epochs, changed.width, changed.augment.hue) == (3, 0.25, 0.1)
    assert (changed.milestones, changed.options.loss) == ((5, 7), "nce")
    assert RECIPES["npid-demo"].epochs != 3


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("epoch", "3", "did you mean epochs"),
        ("hue", "3", r"did you mean augment\.hue"),
        ("options.tau", "3", "expected a key"),
        ("options", "3", "expected a key"),
        ("name", "x", "expected a key"),
        ("epochs.x", "3", "expected a key"),
        ("epochs", "many", "type int, got 'many'"),
        ("options.loss", "hinge", "one of softmax, nce, infonce, got 'hinge'"),
        ("milestones", "a", "a list of integers, got 'a'"),
        ("epochs", "0", "epochs at least 1, got 0"),
        ("learning_rate", "nan", "learning_rate at least 1e-09, got nan"),
        ("augment.hue", "0.7", "hue from 0 to 0.5, got 0.7"),
        ("options.temperature", "0", "temperature from 0.001 to 100, got 0"),
    ],
)
def test_a_wrong_override_is_told_what_was_expected(key, value, sentence):
    with pytest.raises(RecipeError, match=sentence):
        override(RECIPES["npid-demo"], {key: value})


def test_an_unknown_recipe_is_told_the_nearest():
    with pytest.raises(RecipeError, match="did you mean npid-demo"):
        find("npid-dem")


def test_every_key_can_be_set_to_its_own_value():
    recipe = RECIPES["npid-demo"]
    for key in keys(recipe):
        value = recipe
        for part in key.split("."):
            value = getattr(value, part)
        text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        assert override(recipe, {key: text}) == recipe


def test_cosine_rises_linearly_then_falls_to_zero():
    changes = {"epochs": "10", "warmup": "2", "learning_rate": "1", "schedule": "cosine"}
    recipe = override(RECIPES["npid-demo"], changes)
    rates = [learning_rate(recipe, step, 5) for step in range(50)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert rates[10] == pytest.approx(1.0)
    assert rates[30] == pytest.approx(0.5)
    assert 0 < rates[49] < 0.01
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_step_falls_by_ten_at_each_milestone():
    recipe = override(
        RECIPES["npid-demo"],
        {"schedule": "step", "milestones": "2,4", "warmup": "0", "learning_rate": "1", "epochs": "6"},
    )
    rates = [learning_rate(recipe, step, 3) for step in range(18)]
    assert rates == pytest.approx([1.0] * 6 + [0.1] * 6 + [0.01] * 6)

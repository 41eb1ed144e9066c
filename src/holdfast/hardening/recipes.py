"""Recipes: how to train, whole and versioned. Literals, not code; a change of one raises its
version."""

from __future__ import annotations

import functools
from collections.abc import Callable

from holdfast import spec
from holdfast.hardening import objectives, regularizers
from holdfast.training.objective import Objective, Regularizer
from holdfast.training.recipe import Recipe

RECIPES: dict[str, tuple[int, str, dict[str, object]]] = {
    "fast": (
        1,
        "two steps of ascent: a third of the passes, a few points short",
        {"objective": "pgd(steps=2, step_size=0.6)", "epochs": 40},
    ),
    "standard": (
        1,
        "ten steps of ascent: the usual choice",
        {"objective": "pgd", "epochs": 60, "rate": 0.2},
    ),
    "strong": (
        1,
        (
            "TRADES with perturbed weights, trained for long: the most robust, at some cost in "
            "clean accuracy"
        ),
        {"objective": "trades", "epochs": 120, "steps": 16_000, "awp": 0.005},
    ),
    "finetune": (
        1,
        "ten epochs without a warm-up, for a network that is trained already",
        {"objective": "pgd", "epochs": 10, "warmup": 0.0, "ema": 0.98},
    ),
}


def parse(text: str) -> Recipe:
    """The recipe that a name, or a call such as `standard(epochs=30, rate=0.05)`, spells."""
    makers: dict[str, Callable[..., Recipe]] = {
        name: functools.partial(Recipe, name=name, version=version, **fields)  # pyright: ignore[reportArgumentType]
        for name, (version, _, fields) in RECIPES.items()
    }
    recipe = spec.build(text, makers, "recipe")
    parts(recipe)  # refuses unknown ones
    return recipe


def parts(recipe: Recipe) -> tuple[Objective, list[Regularizer]]:
    """The objective and the regularisers that a recipe names."""
    return objectives.parse(recipe.objective), regularizers.parse(recipe.regularize)

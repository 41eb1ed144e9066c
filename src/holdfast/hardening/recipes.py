"""Recipes: how to train, whole and versioned. Literals, not code; a change of one raises its
version."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, overload

from holdfast import spec
from holdfast.errors import SpecError
from holdfast.hardening import objectives, regularizers
from holdfast.training.estimator import Refit
from holdfast.training.objective import Objective, Regularizer
from holdfast.training.recipe import Recipe

RECIPES: dict[str, tuple[int, str, dict[str, Any]]] = {  # of networks, and one of estimators
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
    "certified": (
        2,
        "new weights, and bounds over all of the threat: for networks that are to be proved robust",
        {
            "objective": "ibp(reach=1.2)",
            "start": "ibp",
            "epochs": 80,
            "optimiser": "adam",
            "rate": 0.01,  # new weights for bounds are small, and a lower one leaves them so
            "warmup": 0.0,
            "decay": 0.0,
            "clip": 10.0,
            "ramp": 0.5,
            "judge": "",
        },
    ),
    "augment": (
        1,
        "for estimators, trees among them: fitted again with changed rows; their `standard`",
        {},
    ),
}
Kind = TypeVar("Kind", bound=Recipe | Refit)
KINDS = {"augment": Refit}  # what else than a `Recipe` one is


_WRONG_KIND: dict[type, str] = {
    Refit: "fits an estimator again, and the model is a network, which is trained step by step: "
    "give standard.",
    Recipe: "trains a network step by step, and the model is an estimator, which is fitted: give "
    "augment.",
}


@overload
def parse(recipe: Recipe | Refit | str) -> Recipe: ...
@overload
def parse(recipe: Recipe | Refit | str, kind: type[Kind]) -> Kind: ...
def parse(recipe: Recipe | Refit | str, kind: type = Recipe) -> Any:
    """The recipe that a name, or a call such as `standard(epochs=30, rate=0.05)`, spells: of a
    network, or, where `kind` is `Refit`, of an estimator, whose `standard` is `augment`.

    Raises:
        SpecError: there is none such, or it is one of the other kind.
    """
    if kind is Refit and recipe == "standard":
        recipe = "augment"
    found = _spelled(recipe) if isinstance(recipe, str) else recipe
    if not isinstance(found, kind):
        raise SpecError(f"recipe {found.name} {_WRONG_KIND[type(found)]}")
    return found


def _spelled(text: str) -> Recipe | Refit:
    makers: dict[str, Callable[..., Recipe | Refit]] = {
        name: functools.partial(KINDS.get(name, Recipe), name=name, version=version, **fields)
        for name, (version, _, fields) in RECIPES.items()
    }
    recipe = spec.build(text, makers, "recipe")
    if isinstance(recipe, Recipe):
        parts(recipe)  # refuses unknown ones
    return recipe


def parts(recipe: Recipe) -> tuple[Objective, list[Regularizer]]:
    """The objective and the regularisers that a recipe names."""
    return objectives.parse(recipe.objective), regularizers.parse(recipe.regularize)

"""Attacks: one file each, found by its name. `CATALOGUE` maps every name to its maker.

Editors and type checkers read `__init__.pyi`, which `make docs` writes.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable
from typing import Any

from holdfast import spec
from holdfast.attacks.attack import Attack, perturb, run
from holdfast.attacks.autoattack import AutoAttack
from holdfast.attacks.result import AttackResult, Outcome, SearchResult
from holdfast.attacks.trial import Trial, trial_maker


class _Named(functools.partial[Attack]):
    """An attack class under another name, with fields of its own."""

    name: str

    def __call__(self, *values: Any, **options: Any) -> Attack:
        made = super().__call__(*values, **options)
        object.__setattr__(made, "called", self.name)  # which is no field: the attack is the same
        return made


def _discover() -> dict[str, Callable[..., Attack]]:
    found: dict[str, Callable[..., Attack]] = {}
    for module in pkgutil.walk_packages(__path__, f"{__name__}."):
        for item in vars(importlib.import_module(module.name)).values():
            if isinstance(item, type) and issubclass(item, Attack) and not inspect.isabstract(item):
                globals()[item.__name__] = item
                found[item.__name__.lower()] = item
                for name, fields in item.also.items():  # FGSM, BIM, ...
                    made = _Named(item, **fields)
                    made.name = name
                    made.__doc__ = f"{name.upper()}, which is {item(**fields)!r}."
                    found[name] = globals()[name.upper()] = made
    return dict(sorted(found.items()))


CATALOGUE = _discover()


def parse(text: str) -> Attack:
    """The attack that a spec such as `pgd(steps=100, loss="dlr")` spells."""
    return spec.build(text, CATALOGUE, "attack")


def parse_trial(text: str) -> Trial:
    """The trial that a spec such as `apgd(loss="dlr", restarts=2, targets=9)` spells."""
    return spec.build(text, {name: trial_maker(made) for name, made in CATALOGUE.items()}, "attack")


__all__ = [
    "CATALOGUE", "Attack", "AttackResult", "AutoAttack", "Outcome", "SearchResult", "Trial",
    "parse", "parse_trial", "perturb", "run",
]  # fmt: skip

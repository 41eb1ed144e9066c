"""Every attack of the catalogue, in a form that runs fast, and the values that its fields may take.

A new file in `attacks/` is covered as it is: nothing here names an attack, but for those in
`LATE`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from typing import Any

import pytest

from holdfast.attacks import CATALOGUE, Attack
from holdfast.errors import SpecError
from holdfast.losses import LOSSES
from holdfast.targets import Access


def _reads(maker: Any) -> bool:
    """Whether an attack reads the model: tests/attacks/test_treeexact.py and test_bab.py try
    these."""
    return maker.of_trees or maker.of_networks


CLASSES: list[type[Attack]] = [
    maker for maker in CATALOGUE.values() if isinstance(maker, type) and not _reads(maker)
]


def short(name: str, steps: int = 6, **fields: Any) -> Attack:
    """The attack of that name, in few steps; one that seeks the smallest d, or sees no gradients,
    gets more.

    Where a step is an estimate by probes and asks many questions in turn, steps are fewer, and so
    are the probes.
    """
    maker = CATALOGUE[name]
    if "probes" in fields_of(name):
        steps = max(steps // 2, 1)
    else:
        steps *= (1 if bounded(name) else 3) + (class_of(name).needs < Access.GRADIENTS)
    fixed = maker.keywords if isinstance(maker, functools.partial) else {}
    known = fields_of(name)
    cheap = {"steps": steps} | {
        field: min(few, known[field].default) for field, few in FEW.items() if field in known
    }
    return maker(**{field: value for field, value in cheap.items() if field not in fixed} | fields)


def brief(name: str, steps: int = 6, **fields: Any) -> Attack:
    """The attack of that name, in few steps, but in as many as break some rows of a small
    network."""
    return short(name, LATE.get(name, 1) * steps, **fields)


# these break their first row late
LATE = dict.fromkeys(("boundary", "ddn", "patchrs", "pdpgd"), 2) | {"cw": 3}
OF_TWO = {"cw": 100, "square": 200}  # steps, where a small network has two classes alone
# Fields that say how many points a step asks about.
FEW = {"probes": 8, "samples": 8, "draws": 3, "copies": 2, "neighbours": 2}


def bounded(name: str) -> bool:
    return class_of(name).bounded


def class_of(name: str) -> Any:
    maker = CATALOGUE[name]
    return maker.func if isinstance(maker, functools.partial) else maker


def every(turn: int) -> pytest.MarkDecorator:
    """Parametrise over every attack and every norm that it supports: arguments `name` and
    `norm`."""
    return _in_turn(turn, {n: sorted(short(n).norms) for n in CATALOGUE if not _reads(class_of(n))})


def _in_turn(turn: int, norms: dict[str, list[str]]) -> pytest.MarkDecorator:
    """One norm of each attack in every run; the others are slow (make test-all). Neighbours in the
    catalogue are tried in different norms, and so is one attack by laws of different turns."""
    pairs = []
    for place, (name, all_) in enumerate(norms.items(), turn):
        pairs += [
            pytest.param(name, n, marks=() if i == place % len(all_) else pytest.mark.slow)
            for i, n in enumerate(all_)
        ]
    return pytest.mark.parametrize(("name", "norm"), pairs)


def each(
    turn: int, *, needs: tuple[Access, ...] = tuple(Access), kinds: tuple[bool, ...] = (True, False)
) -> pytest.MarkDecorator:
    """Parametrise over the classes alone (other names only preset fields), and their norms; `kinds`
    of `bounded`."""
    chosen = [c for c in CLASSES if c.needs in needs and c.bounded in kinds]
    return _in_turn(turn, {c.__name__.lower(): sorted(c.norms) for c in chosen})


each_blind = functools.partial(each, needs=(Access.LABELS, Access.SCORES))
each_gradient = functools.partial(each, needs=(Access.GRADIENTS,))
each_bounded = functools.partial(each_gradient, kinds=(True,))
each_smallest = functools.partial(each_gradient, kinds=(False,))


def losses_of(name: str) -> list[dict[str, str]]:
    """The fields that set each loss of an attack; one empty set where it has none."""
    return [{"loss": loss} for loss in LOSSES] if "loss" in fields_of(name) else [{}]


def fields_of(name: str) -> dict[str, dataclasses.Field[Any]]:
    return {field.name: field for field in dataclasses.fields(class_of(name))}


@functools.cache
def values(name: str, field: str) -> list[Any]:
    """Values worth trying for a field: for text its choices, or the words of its help that the
    attack accepts."""
    default = getattr(short(name), field)
    if isinstance(default, bool):
        return [False, True]
    if isinstance(default, int):
        tries: list[Any] = [default, default + 1, default * 2, max(1, default // 3), 1]
    elif isinstance(default, float):
        tries = [default, default / 2, default * 2, 0.5, 0.0, 1.0]
    elif isinstance(default, str):
        words = re.findall(r"[\w-]+", help_of(name, field))
        tries = [default, *(fields_of(name)[field].metadata["choices"] or words)]
    else:
        tries = [default]
    return [v for v in dict.fromkeys(tries) if accepts(name, field, v)]


def help_of(name: str, field: str) -> str:
    return fields_of(name)[field].metadata["help"]


def accepts(name: str, field: str, value: Any) -> bool:
    if isinstance(value, float) and not math.isfinite(value):
        return False
    try:
        short(name, **{field: value})
    except SpecError:
        return False
    return True

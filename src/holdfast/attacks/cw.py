"""Carlini and Wagner's attacks: Adam on size plus c times the margin, in a space that has no box.

All three measure the margin in units of the clean one and lengths in units of the box's width, so that c and the
rate mean the same for every scale of the logits and of the inputs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from holdfast.attacks.attack import Attack
from holdfast.attacks.problem import Problem
from holdfast.errors import SpecError
from holdfast.norms import wide
from holdfast.targets.target import Access

_EDGE = 0.9  # the box's edges lie at tanh = ±0.9, where the slope is a fifth of the middle's


class Walk(NamedTuple):
    """Adam in the space where d = box(tanh w), per row."""

    d: Tensor  # the current point, [n, *shape]
    w: Tensor  # the same point in tanh space
    mean: Tensor  # running means of the gradient in w and of its square
    square: Tensor
    age: Tensor  # steps since this search began, [n]
    c: Tensor  # weight of the margin, [n]
    unit: Tensor  # the clean margin, [n]


class Search(NamedTuple):
    d: Tensor
    w: Tensor
    mean: Tensor
    square: Tensor
    age: Tensor
    c: Tensor
    unit: Tensor
    factor: Tensor  # by which the next search changes c, [n]
    rose: Tensor  # whether it rose after the last search, [n] bool
    met: Tensor  # whether the goal was met since the last check, [n] bool
    checked: Tensor  # the objective then


@dataclass(frozen=True)
class CW(Attack):
    """Carlini and Wagner's L2 attack (2017, arXiv:1608.04644, sections V-C and VI-A, confidence 0).

    Cost: one forward and one backward a step and row, and one forward for the last point.
    Differs from the paper: the margin is measured in units of the clean one; the box's edges lie at finite points
    of the tanh space; a search goes on from the point where the last one ended, and starts early, for its row alone,
    where the last one stalled (the steps saved serve more searches); no step is longer than a tenth of the smallest
    size found; c is not bracketed, since a success by chance would close the bracket for good, but multiplied or
    divided by a factor, at first 10, of which each change of direction takes the root, down to 1.2. The paper runs 9
    searches of 10,000 steps, that is `cw(steps=90000, searches=9)`; with few steps more and shorter searches do better.
    """

    needs = Access.GRADIENTS
    norms: ClassVar = frozenset({"l2"})
    bounded: ClassVar = False
    random: ClassVar = False

    steps: int = 1000  # gradient steps of all searches
    searches: int = 20  # searches for c; more where some end early
    c: float = 1e-3  # first weight of the margin
    rate: float = 0.01  # Adam's, in tanh space

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self, self.searches, self.c, self.rate)

    def start(self, p: Problem) -> Search:
        walk = _start(p, self.c)
        no = walk.age > 0
        return Search(*walk, factor=walk.age + 10, rose=~no, met=no, checked=walk.age + torch.inf)

    def step(self, p: Problem, s: Search, t: int) -> Search:
        span = max(self.steps // self.searches, 1)
        loss, g, unit = _hinge(p, s, t)
        u = s.d / p.width
        loss = loss + u.flatten(1).square().sum(1)
        met = s.met | p.met
        check = s.age % max(span // 10, 1) == 0
        over = (s.age + 1 >= span) | (check & (loss > 0.9999 * s.checked))
        turned = over & (met == s.rose)
        factor = torch.where(turned, s.factor.sqrt().clamp_min(1.2), s.factor)
        s = s._replace(
            c=torch.where(over, torch.where(met, s.c / factor, s.c * factor), s.c),
            unit=unit,
            factor=factor,
            rose=torch.where(over, ~met, s.rose),
            met=met & ~check & ~over,
            checked=torch.where(over, torch.inf, torch.where(check, loss, s.checked)),
        )
        return s._replace(**_descend(p, s, 2 * u + g, self.rate, over))


def _check(attack: Attack, searches: int, c: float, rate: float) -> None:
    if searches < 1:
        raise SpecError(f"{attack!r} divides its steps by {searches} searches, but needs at least 1.")
    if not (0 < c < math.inf and 0 < rate < math.inf):
        raise SpecError(f"{attack!r} has c {c} and rate {rate}; both lie above 0.")


def _start(p: Problem, c: float) -> Walk:
    d = torch.zeros_like(p.x)
    none = torch.zeros_like(p.eps.flatten())
    w = (_EDGE * (-2 * p.lo / p.width - 1)).atanh()
    return Walk(d, w, d, d, none, none + c, none)


def _hinge(p: Problem, s: Walk | Search, t: int) -> tuple[Tensor, Tensor, Tensor]:
    """c max(margin, 0) in clean margins, its gradient in widths, and the clean margin itself."""
    gap, g = p.gradient(s.d, "margin")
    unit = s.unit if t else gap.abs()  # the first question is about x
    pull = torch.where(gap < 0, s.c / torch.where(unit > 0, unit, 1), 0)
    return -pull * gap, -wide(pull, g) * g * p.width, unit


def _descend(p: Problem, s: Walk | Search, g: Tensor, rate: float, over: Tensor) -> dict[str, Tensor]:
    """One step of Adam against the gradient g by d / width; it forgets its past where a search is over."""
    bend = (1 - s.w.tanh().square()) / (2 * _EDGE)
    g = g * bend
    age = s.age + 1
    mean, square = 0.9 * s.mean + 0.1 * g, 0.999 * s.square + 0.001 * g.square()
    step = rate * (mean / wide(1 - 0.9**age, g)) / ((square / wide(1 - 0.999**age, g)).sqrt() + 1e-8)
    length, known = p.norm.size(step * bend) * p.width, p.best()[1]
    step = step * wide(torch.where(10 * length > known, known / (10 * length), 1), step)
    far = math.atanh(_EDGE)
    w = (s.w - step).clamp(-far, far)
    d = (p.lo + (p.hi - p.lo) * (w.tanh() / _EDGE + 1) / 2).clamp(p.lo, p.hi)
    again = wide(over, w)
    return {
        "d": d,
        "w": w,
        "mean": torch.where(again, 0, mean),
        "square": torch.where(again, 0, square),
        "age": torch.where(over, 0, age),
    }

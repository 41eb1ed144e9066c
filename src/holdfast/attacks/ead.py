"""EAD: elastic-net attack, by accelerated shrinkage and thresholding."""

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


class Search(NamedTuple):
    d: Tensor  # where the gradient is asked: ahead of the iterate, [n, *shape]
    at: Tensor  # the iterate
    age: Tensor  # steps since this search began, [n]
    c: Tensor  # weight of the margin, [n]
    unit: Tensor  # the clean margin, [n]
    factor: Tensor  # by which the next search changes c, [n]
    rose: Tensor  # whether it rose after the last search, [n] bool
    met: Tensor  # whether this search met the goal, [n] bool
    checked: Tensor


@dataclass(frozen=True)
class EAD(Attack):
    """x"""

    needs = Access.GRADIENTS
    norms: ClassVar = frozenset({"l1"})
    bounded: ClassVar = False
    random: ClassVar = False

    steps: int = 1000  # gradient steps of all searches
    searches: int = 9  # searches for c
    c: float = 1e-3  # first weight of the margin
    beta: float = 0.01  # what every step takes off the size of an entry
    rate: float = 0.001  # first step
    warm: int = 1
    stall: int = 1

    def start(self, p: Problem) -> Search:
        d = torch.zeros_like(p.x)
        none = torch.zeros_like(p.eps.flatten())
        no = none > 0
        return Search(d, d, none, none + self.c, none, none + 10, ~no, no, none + torch.inf)

    def step(self, p: Problem, s: Search, t: int) -> Search:
        span = max(self.steps // self.searches, 1)
        gap, g = p.gradient(s.d, "margin")
        unit = s.unit if t else gap.abs()
        pull = torch.where(gap < 0, s.c / torch.where(unit > 0, unit, 1), 0)
        rate = wide(self.rate * (1 - s.age / span).sqrt(), g)
        ahead = s.d - rate * (2 * s.d - wide(pull, g) * g * p.width**2)
        at = p.norm.prox(ahead, torch.full_like(rate, self.beta * p.width)).clamp(p.lo, p.hi)
        d = (at + wide(s.age / (s.age + 3), at) * (at - s.at)).clamp(p.lo, p.hi)
        met = s.met | p.met
        u = (s.d / p.width).flatten(1)
        loss = -pull * gap + u.square().sum(1) + self.beta * u.abs().sum(1) * (1 if self.stall == 1 else 1 / rate.flatten())
        check = s.age % max(span // 10, 1) == 0
        over = (s.age + 1 >= span) | ((check & (loss > 0.9999 * s.checked)) if self.stall else check & False)
        turned = over & (met == s.rose)
        factor = torch.where(turned, s.factor.sqrt().clamp_min(1.2), s.factor)
        c = torch.where(over, torch.where(met, s.c / factor, s.c * factor), s.c)
        if not self.warm:
            d, at = (torch.where(wide(over, d), 0, v) for v in (d, at))
        else:
            d = torch.where(wide(over, d), at, d)
        return Search(d, at, torch.where(over, 0, s.age + 1), c, unit, factor, torch.where(over, ~met, s.rose), met & ~over, torch.where(over, torch.inf, torch.where(check, loss, s.checked)))

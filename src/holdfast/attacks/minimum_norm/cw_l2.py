"""Carlini and Wagner's attack in L2."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from holdfast.attacks.attack import Problem
from holdfast.attacks.shared.tanh_space import Descent, begin, descend, hinge, margin


class Weighing(NamedTuple):
    descent: Descent
    factor: Tensor  # by which the next search changes c, [n]
    rose: Tensor  # whether it rose after the last search, [n] bool
    met: Tensor  # whether the goal was met since the last check, [n] bool
    checked: Tensor  # the objective then


class WeightSearch:
    """L2: the square of the size, and a search for c.

    Differs from the paper: no step is longer than a tenth of the smallest size found; c is not
    bracketed, since a success by chance would close the bracket for good, but multiplied or divided
    by a factor, at first 10, of which each change of direction takes the root, down to 1.2.
    """

    def start(self, a: Any, p: Problem) -> Weighing:
        descent = begin(p, a.c)
        none = descent.age
        return Weighing(
            descent, factor=none + 10, rose=none == 0, met=none > 0, checked=none + torch.inf
        )

    def step(self, a: Any, p: Problem, s: Weighing, t: int) -> Weighing:
        gap, g, descent = margin(p, s.descent, t)
        loss, g = hinge(p, descent, gap, g)
        u = descent.d / p.width
        loss = loss + u.flatten(1).square().sum(1)
        met = s.met | p.met
        check = descent.age % max(a.span // 10, 1) == 0
        over = (descent.age + 1 >= a.span) | (check & (loss > 0.9999 * s.checked))
        turned = over & (met == s.rose)
        factor = torch.where(turned, s.factor.sqrt().clamp_min(1.2), s.factor)
        descent = descent._replace(
            c=torch.where(over, torch.where(met, descent.c / factor, descent.c * factor), descent.c)
        )
        return Weighing(
            descend(p, descent, 2 * u + g, a.rate, over, p.smallest / 10),
            factor=factor,
            rose=torch.where(over, ~met, s.rose),
            met=met & ~check & ~over,
            checked=torch.where(over, torch.inf, torch.where(check, loss, s.checked)),
        )

"""EAD: elastic-net attack, by accelerated shrinkage and thresholding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from holdfast.attacks.attack import Access, Attack, Problem, from_first, option, wide


class Search(NamedTuple):
    d: Tensor  # where the gradient is asked: ahead of the iterate, [n, *shape]
    at: Tensor  # the iterate
    age: Tensor  # steps since this search began, [n]
    c: Tensor  # weight of the margin, [n]
    unit: Tensor  # the clean margin, [n]
    factor: Tensor  # by which the next search changes c, [n]
    rose: Tensor  # whether it rose after the last search, [n] bool
    met: Tensor  # whether this search has met the goal, [n] bool
    checked: Tensor  # the objective when it was last checked, [n]


@dataclass(frozen=True)
class EAD(Attack):
    """Elastic-net attack (Chen et al. 2018, arXiv:1709.04114, algorithm 1 in its accelerated form,
    confidence 0).

    Cost: one forward and one backward a step and row, and one forward for the last point.
    Differs from the paper: of what met the goal the smallest in L1 is kept, not in the elastic net;
    success is seen where the gradient is asked, which saves the second forward of a step, and that
    point stays in the box; the margin is measured in units of the clean one, lengths in the box's
    width; a search goes on from the point where the last one ended, and starts early, for its row
    alone, where the last one stalled; c is multiplied or divided by a factor, at first 10, of which
    each change of direction takes the root, down to 1.2; where the smallest size found is under a
    third of the width, rate and beta are in proportion smaller. Every step takes beta off each
    entry, as in the paper, so that beta / rate weighs L1 against L2: the first step is a twentieth
    of the paper's, since only the size in L1 counts here.
    """

    needs = Access.GRADIENTS
    norms = frozenset({"l1"})
    bounded = False
    random = False

    steps: int = option(1000, "gradient steps of all searches")
    searches: int = option(9, "searches for c; more where some end early", at_least=1)
    c: float = option(1e-3, "first weight of the margin", above=0)
    beta: float = option(0.01, "what a step takes off the size of every entry", above=0)
    rate: float = option(
        0.0005, "first step of a search; falls with the root of the steps left", above=0
    )

    def start(self, p: Problem) -> Search:
        d = torch.zeros_like(p.x)
        none = torch.zeros_like(p.eps.flatten())
        no = none > 0
        return Search(d, d, none, none + self.c, none, none + 10, ~no, no, none + torch.inf)

    def step(self, p: Problem, s: Search, t: int) -> Search:
        span = max(self.steps // self.searches, 1)
        gap, g = p.gradient(s.d, "margin")
        unit = from_first(t, gap.abs(), s.unit)
        pull = torch.where(gap < 0, s.c / torch.where(unit > 0, unit, 1), 0)
        u = s.d / p.width
        loss = -pull * gap + (u.square() + self.beta * u.abs()).flatten(1).sum(1)
        fine = (3 * p.smallest / p.width).clamp_max(1)
        rate = wide(fine * self.rate * (1 - s.age / span).sqrt(), u)
        thinner = p.norm.prox(
            u - rate * (2 * u - wide(pull, g) * g * p.width), wide(fine * self.beta, u)
        )
        at = (thinner * p.width).clamp(p.lo, p.hi)
        d = (at + wide(s.age / (s.age + 3), at) * (at - s.at)).clamp(p.lo, p.hi)
        met = s.met | p.met
        check = s.age % max(span // 10, 1) == 0
        over = (s.age + 1 >= span) | (check & (loss > 0.9999 * s.checked))
        factor = torch.where(over & (met == s.rose), s.factor.sqrt().clamp_min(1.2), s.factor)
        return Search(
            d=torch.where(wide(over, d), at, d),
            at=at,
            age=torch.where(over, 0, s.age + 1),
            c=torch.where(over, torch.where(met, s.c / factor, s.c * factor), s.c),
            unit=unit,
            factor=factor,
            rose=torch.where(over, ~met, s.rose),
            met=met & ~over,
            checked=torch.where(over, torch.inf, torch.where(check, loss, s.checked)),
        )

"""Constrained adaptive PGD: gradient ascent over the legal rows of a table."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from holdfast.attacks.attack import LOSSES, Access, Attack, Problem, option, wide
from holdfast.attacks.shared.checkpoints import Climb, check


@dataclass(frozen=True)
class CAPGD(Attack):
    """CAPGD (Simonetto et al. 2024, arXiv:2406.00775): Auto-PGD that repairs its point after every
    step, so that it satisfies the schema of a table.

    The first run begins at x, others within the ball. Every second run goes on from the
    point before its repair, which small steps need to get past rounding and totals.

    Cost: one forward and one backward a step and row, and as many for the start.
    Differs from the paper: relations are no part of the loss, since a repaired point satisfies
    them; and every second run.
    """

    needs = Access.GRADIENTS
    norms = frozenset({"linf", "l2"})

    steps: int = option(50, "gradient steps")
    loss: str = option("margin", "loss that is ascended", choices=LOSSES)
    rho: float = option(
        0.75, "halve where at most this share of steps raised the loss", at_least=0, at_most=1
    )

    def start(self, p: Problem) -> Climb:
        d = self._legal(p, p.after_first(p.random_start))
        return Climb.at(d, *p.gradient(d, self.loss), size=2)

    def step(self, p: Problem, s: Climb, t: int) -> Climb:
        ahead = p.project(s.d + wide(s.size, s.d) * p.eps * p.steepest(s.g))
        pull = 0.75 if t else 1.0
        d = self._legal(p, p.project(s.d + pull * (ahead - s.d) + (1 - pull) * (s.d - s.before)))
        return check(s.advanced(d, *p.gradient(d, self.loss)), self.steps, t, self.rho)[1]

    def _legal(self, p: Problem, d: Tensor) -> Tensor:
        odd = p.restart % 2 == 1
        return d if bool(odd.all()) else torch.where(wide(odd, d), d, p.repair(d))

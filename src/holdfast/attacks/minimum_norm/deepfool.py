"""DeepFool: steps onto the nearest of the linearised boundaries, until one is crossed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from holdfast.attacks.attack import Access, Attack, Problem, option, wide
from holdfast.attacks.shared.nearest_boundary import nearest


@dataclass(frozen=True)
class DeepFool(Attack):
    """DeepFool (Moosavi-Dezfooli et al. 2016, arXiv:1511.04599, algorithm 2 and section 3.3).

    Cost: one forward and a backward for each of the `rivals` a step and row, up to the first
    success.
    Differs from the paper: each step overshoots, not only their sum, and by twice as much as the
    last, up to 128 times the first: where the box clips half of a step it would else come near the
    boundary and never cross it. Of many classes only the best few are looked at, as in the authors'
    code.
    """

    needs = Access.GRADIENTS
    norms = frozenset({"linf", "l2"})
    bounded = False
    random = False

    steps: int = option(50, "most points at which the boundaries are linearised")
    overshoot: float = option(
        0.02, "share of its length by which the first step goes beyond the boundary", at_least=0
    )
    rivals: int = option(9, "best wrong classes whose boundaries are compared", at_least=1)

    def step(self, p: Problem, s: Tensor, t: int) -> Tensor:
        gap, g = nearest(p, s, self.rivals)
        p.stop_asking(p.met)
        step = p.norm.across(g, torch.where(p.met, 0, -gap))
        more = self.overshoot * (t + 1) * (p.norm.size(s) + p.norm.size(step))
        return (s + step + wide(torch.where(p.met, 0, more), s) * p.steepest(g)).clamp(p.lo, p.hi)

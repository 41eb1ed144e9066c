"""Carlini and Wagner's attack in Linf."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from holdfast.attacks.attack import Problem, wide
from holdfast.attacks.shared.tanh_space import Descent, begin, descend, hinge, margin


class Cutting(NamedTuple):
    descent: Descent
    share: Tensor  # of the smallest size found, above which an entry costs, [n]
    met: Tensor  # whether this search has met the goal, at any size, [n] bool


class FallingLimit:
    """Linf: what exceeds a limit, which follows the smallest size found.

    Differs from the paper: any smaller size is a success; a failure takes the root of the limit's
    share of the size found, at first 0.9, and makes c 10 times as large where the goal was never
    met, else a tenth; no step exceeds what the limit is short.
    """

    def start(self, a: Any, p: Problem) -> Cutting:
        descent = begin(p, a.c)
        return Cutting(descent, share=descent.age + 0.9, met=descent.age > 0)

    def step(self, a: Any, p: Problem, s: Cutting, t: int) -> Cutting:
        known = p.smallest
        gap, g, descent = margin(p, s.descent, t)
        _, g = hinge(p, descent, gap, g)
        best = p.smallest
        won, late, met = best < known, descent.age + 1 >= a.span, s.met | p.met
        over = won | late
        failed = late & ~won
        share = torch.where(failed, s.share.sqrt().clamp_max(0.998), s.share)
        descent = descent._replace(
            c=torch.where(failed, torch.where(met, descent.c / 10, descent.c * 10), descent.c)
        )
        above = descent.d.abs() > wide(share * best, descent.d)
        descent = descend(
            p, descent, descent.d.sign() * above + g, a.rate, over, (1 - share) * best
        )
        return Cutting(descent, share, met & ~over)

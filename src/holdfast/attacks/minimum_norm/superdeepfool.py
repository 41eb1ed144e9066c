"""SuperDeepFool: DeepFool whose every crossing is turned back onto the boundary's normal through
x."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from holdfast.attacks.attack import Access, Attack, Problem, option, wide
from holdfast.attacks.shared.nearest_boundary import nearest

SHRINK = 0.8  # of a turned point that meets the goal


class Turning(NamedTuple):
    d: Tensor  # the current point, [n, *shape]
    turned: Tensor  # the point of the last turn, from which this crossing began
    tries: Tensor  # [n]: steps since then


@dataclass(frozen=True)
class SuperDeepFool(Attack):
    """SuperDeepFool, the variant SDF(inf, 1) (Abdollahpour et al. 2023, arXiv:2303.12481, algorithm
    2).

    Cost: one forward and a backward for each of the `rivals` a step and row, and one forward for
    the last point.
    Differs from the paper: both moves are the smallest within the box, not clipped to it; a turn is
    added to the point where its crossing began, and not to x, which on masked gradients finds far
    smaller ones; a turned point that meets the goal shrinks by a fifth, and the search goes on
    instead of ending; of many classes only the best few are looked at.
    """

    needs = Access.GRADIENTS
    norms = frozenset({"l2"})
    bounded = False
    random = False

    steps: int = option(50, "steps and turns")
    overshoot: float = option(
        0.02, "share of the gap by which a step goes on beyond the boundary", at_least=0
    )
    rivals: int = option(9, "best wrong classes whose boundaries are compared", at_least=1)

    def start(self, p: Problem) -> Turning:
        none = torch.zeros_like(p.x)
        return Turning(none, none, torch.zeros_like(p.eps.flatten()))

    def step(self, p: Problem, s: Turning, t: int) -> Turning:
        gap, g = nearest(p, s.d, self.rivals)
        step = p.norm.across(g, -gap)
        more = self.overshoot * (s.tries + 1) * (p.norm.size(s.d) + p.norm.size(step))
        ahead = s.d + step + wide(more, g) * p.steepest(g)
        turn = s.turned + p.norm.across(g, (g * s.d).flatten(1).sum(1))
        back = torch.where(wide(s.tries == 0, g), SHRINK * s.d, turn).clamp(p.lo, p.hi)
        met = wide(p.met, g)
        d = torch.where(met, back, ahead.clamp(p.lo, p.hi))
        return Turning(d, torch.where(met, back, s.turned), torch.where(p.met, 0, s.tries + 1))

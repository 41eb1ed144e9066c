"""HopSkipJump: from the boundary along its estimated normal, and back to it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from holdfast.attacks.attack import L2, Access, Attack, Problem, option, wide
from holdfast.attacks.shared import boundary_search as search

HALVINGS = 15  # of a step, before the row stays where it is


class BoundaryPoint(NamedTuple):
    d: Tensor  # a point just past the boundary, [n, *shape]
    length: Tensor  # [n]: the L2 length of the point from which it was pulled there


@dataclass(frozen=True)
class HopSkipJump(Attack):
    """HopSkipJump (Chen et al. 2020, arXiv:1904.02144, algorithm 2).

    Cost: a step t from 1 asks min(probes sqrt(t), most) forwards for the normal, 1 to 15 for its
    length and log2(f^1.5 / gamma) of f features for the way back (in Linf log2(f^2 / gamma)), at
    most 20 in float32; the start 2 to 100 and one way back. 5,000 forwards are about 16 steps.
    Differs from the paper: probes are uniform in direction in Linf too, and their radius is a share
    of the point's L2 length in both norms; neither it nor the gap to the boundary falls below what
    floats resolve; a step is given up after 15 halvings.
    """

    needs = Access.LABELS
    norms = frozenset({"linf", "l2"})
    bounded = False

    steps: int = option(64, "estimates of the normal")
    probes: int = option(100, "of the first estimate; step t has sqrt(t) times as many", at_least=1)
    most: int = option(10000, "probes of one estimate", at_least=1)
    gamma: float = option(1.0, "scale of the probes' radius and the gap to the boundary", above=0)
    start_at: str = search.start_option()

    def start(self, p: Problem) -> BoundaryPoint:
        d = search.nearer(p, search.find_start(p, self.start_at), self.gap(p))
        return BoundaryPoint(d, p.x.new_full((len(d),), 0.1 * p.width * p.features))

    def step(self, p: Problem, s: BoundaryPoint, t: int) -> BoundaryPoint:
        f, m = p.features, min(int(self.probes * math.sqrt(t + 1)), self.most)
        radius = (self.gamma * s.length / f).clamp_min(search.finest(p) * math.sqrt(f))
        direction = p.steepest(search.normal(p, s.d, radius, m))
        length = p.norm.size(s.d) / math.sqrt(t + 1)
        d, waiting = s.d, torch.ones_like(p.live)
        for _ in range(HALVINGS):
            ahead = (s.d + wide(length, direction) * direction).clamp(p.lo, p.hi)
            met = p.adversarial(ahead, waiting)
            d, waiting, length = torch.where(wide(met, d), ahead, d), waiting & ~met, length / 2
        return BoundaryPoint(search.nearer(p, d, self.gap(p), ~waiting), L2.size(d))

    def gap(self, p: Problem) -> Tensor:
        """The share of a point that may lie between it and the boundary, [n]."""
        slope = p.norm.dual(torch.ones_like(p.x))  # sqrt(f) in L2, f in Linf
        return (self.gamma / (p.features * slope)).clamp(search.finest(p) / p.width, 0.5)

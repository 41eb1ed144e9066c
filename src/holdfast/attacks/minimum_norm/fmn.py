"""FMN: ascend the margin within a ball whose radius follows the distance to the boundary."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from holdfast.attacks.attack import L2, Access, Attack, Problem, option, wide

TRUST = 3  # steps in which the linearised boundary is believed
FAR = 100.0  # scales a point out of its ball: its projection is about the farthest that way


class Ball(NamedTuple):
    d: Tensor  # the current point, [n, *shape], in the ball and the box
    radius: Tensor  # [n]


@dataclass(frozen=True)
class FMN(Attack):
    """Fast minimum-norm attack (Pintor et al. 2021, arXiv:2102.12827, algorithm 1).

    Cost: one forward and one backward a step and row, and one forward for the last point.
    Differs from the paper: the projection is onto ball and box at once. Until a first success the
    radius follows the linearised boundary within the box, in L0 too, but starts no larger than the
    first step and at most doubles, and after three steps the point goes as far in its direction as
    ball and box allow: inside a large ball, gradients of nets trained against attacks lead to a
    maximum short of the boundary. Lengths are multiples of the box's width.
    """

    needs = Access.GRADIENTS
    norms = frozenset({"linf", "l2", "l1", "l0"})
    groups = True
    bounded = False
    random = False

    steps: int = option(100, "gradient steps")
    alpha: float = option(1.0, "first L2 length of a step; the last is a hundredth", above=0)
    gamma: float = option(0.05, "first change of the radius, as a share", above=0, below=1)

    def start(self, p: Problem) -> Ball:
        return Ball(torch.zeros_like(p.x), torch.zeros_like(p.eps.flatten()))

    def step(self, p: Problem, s: Ball, t: int) -> Ball:
        value, g = p.gradient(s.d, "margin")
        fade = (1 + math.cos(math.pi * t / self.steps)) / 2
        alpha, gamma = self.alpha * (0.01 + 0.99 * fade), self.gamma * (0.02 + 0.98 * fade)
        ahead = L2.steepest(g).mul_(alpha * p.width).add_(s.d)
        best = p.smallest
        shrunk = torch.minimum(s.radius * (1 - gamma), s.radius - p.norm.grain).minimum(best)
        grown = torch.maximum(s.radius * (1 + gamma), s.radius + p.norm.grain)
        most = 2 * s.radius if t else p.norm.size(ahead)
        lost = ~p.met & best.isinf()
        rows = lost.nonzero()[:, 0]
        if len(rows):
            edge = _edge(p, s.d, value, g, rows) * (1 + gamma)
            grown[rows] = grown[rows].maximum(edge.minimum(most[rows]))
        radius = torch.where(p.met, shrunk, grown)
        if t >= TRUST:
            # that a feature moves farther costs nothing in L0
            astray = lost if p.norm.scales else ~p.met
            ahead.mul_(wide(torch.where(astray, FAR, 1.0), ahead))
        return Ball(p.norm.project(ahead, wide(radius, ahead), p.lo, p.hi), radius)


def _edge(p: Problem, d: Tensor, value: Tensor, g: Tensor, rows: Tensor) -> Tensor:
    """The size at which the linearised boundary is met within the box, of these rows [m]."""
    at, lo, hi = (column.index_select(0, rows) for column in (d, p.lo, p.hi))
    reach = p.norm.reach(g.index_select(0, rows), -value[rows], lo - at, hi - at)
    return p.norm.size(at + reach)

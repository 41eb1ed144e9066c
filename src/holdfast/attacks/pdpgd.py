"""PDPGD: descend a loss and the size at once, by a proximal step, while a dual variable weighs one against the other."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from holdfast.attacks.attack import Attack
from holdfast.attacks.problem import Problem
from holdfast.norms import wide
from holdfast.targets.target import Access

C = 10.0
LIMIT = math.log(1e6)


class Saddle(NamedTuple):
    d: Tensor  # the current point, [n, *shape], in the box
    mean: Tensor  # Adam's running means of the gradient and of its square
    square: Tensor
    unit: Tensor  # the margin at x, by which margins are measured, [n]
    dual: Tensor  # logarithm of the loss's weight over the size's, [n]
    share: Tensor  # running mean of the loss's share of the weights, [n]


@dataclass(frozen=True)
class PDPGD(Attack):
    """Primal-dual proximal gradient descent (Matyasko and Chau 2021, arXiv:2106.01538, algorithm 2).

    Cost: one forward and one backward a step and row, and one forward for the last point.
    """

    needs = Access.GRADIENTS
    norms: ClassVar = frozenset({"linf", "l2", "l1"})
    bounded: ClassVar = False
    random: ClassVar = False

    steps: int = 500  # gradient steps
    rate: float = 0.1  # first step of a feature, as a share of the box's width; the last is a hundredth
    dual_rate: float = 0.1  # first step of the dual variable; the last is a tenth
    ratio: float = 0.01  # first weight of the size over that of the loss

    def start(self, p: Problem) -> Saddle:
        d, none = torch.zeros_like(p.x), torch.zeros_like(p.eps.flatten())
        return Saddle(d, d, d, none, none - math.log(self.ratio), none + 1 / (1 + self.ratio))

    def step(self, p: Problem, s: Saddle, t: int) -> Saddle:
        value, g = p.gradient(s.d, "margin")
        unit = value.abs().clamp_min(torch.finfo(value.dtype).tiny) if t == 0 else s.unit
        g = -g * wide(torch.sigmoid(-value / unit * C) / unit, g)
        mean, square = s.mean.lerp(g, 0.1), s.square.lerp(g.square(), 0.001)
        steep = (square / (1 - 0.999 ** (t + 1))).sqrt() + 1e-8
        rate = self.rate * p.width * 0.01 ** (t / self.steps)
        ahead = (s.d - rate / (1 - 0.9 ** (t + 1)) * mean / steep).clamp(p.lo, p.hi)
        most = wide(steep.flatten(1).amax(1), steep)
        weight = wide((1 - s.share) / s.share, steep) * rate / most
        d, bend = ahead, steep / most
        for _ in range(5):
            d = p.norm.prox(d - bend * (d - ahead), weight).clamp(p.lo, p.hi)
        left = (self.steps - 1 - t) / max(self.steps - 1, 1)
        dual_rate = self.dual_rate * (0.1 + 0.9 * left)
        dual = (s.dual + torch.where(p.met, -dual_rate, dual_rate)).clamp(-LIMIT, LIMIT)
        return Saddle(d, mean, square, unit, dual, s.share.lerp(dual.sigmoid(), 0.1))

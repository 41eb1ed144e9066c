"""ALMA: descend the size plus a penalty on not yet meeting the goal, whose weight learns itself."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from holdfast.attacks.attack import Access, Attack, Problem, from_first, option, wide

CHECK = 10  # steps between checks of progress


class Balance(NamedTuple):
    d: Tensor  # the current point, [n, *shape], in the box
    pull: Tensor  # momentum of the scaled gradients
    square: Tensor  # running mean of the gradient's square
    unit: Tensor  # a length of margins: 0.7 of it is the margin at x, [n]
    rate: Tensor  # first step length, [n]
    mu: Tensor  # the multiplier, [n]
    rho: Tensor  # how steeply the penalty rises, [n]
    checked: Tensor  # the margin when progress was last checked, [n]
    found: Tensor  # the step of the first success, [n]


@dataclass(frozen=True)
class ALMA(Attack):
    """Augmented Lagrangian attack (Rony et al. 2021, arXiv:2011.11857, algorithm 2, penalty P2).

    Cost: one forward and one backward a step and row, and one forward for the last point.
    Differs from the paper: the loss is the margin, scaled to 0.7 at x, which is about what the DLR
    is there; it bends no more than the margin does, and is free of the logits' scale with any
    number of classes. The first step has one size in both norms, and is no random one where the
    gradient is zero. Half of the past is kept with any number of steps, as there with 100; 0.9, as
    there with 1,000, found larger ones in L1. Lengths are shares of the box's width.
    """

    needs = Access.GRADIENTS
    norms = frozenset({"l2", "l1"})
    bounded = False
    random = False

    steps: int = option(1000, "gradient steps")
    first: float = option(0.5, "size of the first step", above=0)
    memory: float = option(
        0.5, "share of the past in the momentum and the means", at_least=0, below=1
    )

    def start(self, p: Problem) -> Balance:
        d, one = torch.zeros_like(p.x), torch.ones_like(p.eps.flatten())
        return Balance(d, d, torch.ones_like(d), one, one, one, one, one, self.steps * one)

    def step(self, p: Problem, s: Balance, t: int) -> Balance:
        value, g = p.gradient(s.d, "margin")
        least = torch.finfo(value.dtype).tiny
        unit = from_first(t, value.abs().clamp_min(least) / 0.7, s.unit)
        y = -value / unit  # above 0 until the goal is met
        found = torch.where(p.met, s.found.clamp_max(t), s.found)
        mu, rho, checked = s.mu, s.rho, s.checked
        if (t + 1) % CHECK == 0:
            rho = torch.where((found == self.steps) & (y >= 0.95 * checked), 1.2 * rho, rho)
            checked = y
        if t:
            mu = mu.lerp(_slope(y, rho, mu), 1 - self.memory).clamp(1e-6, 1e12)
        steep = wide(_slope(y, rho, mu) * p.width / unit, g) * g
        g = p.norm.polar.steepest(s.d).sub_(steep)
        rate = s.rate
        if not t:
            loose = g * (torch.where(g > 0, p.lo, p.hi) != 0)  # where the box lets x move
            rate = self.first / p.norm.size(loose).clamp_min(1e-9)
        square = s.square.lerp(g.square(), 1 - self.memory)
        pull = g.div_(square.sqrt().add_(1e-8)).add_(self.memory * s.pull)
        fade = (math.log(0.01) * (t - found).clamp_min(0) / (self.steps - found).clamp_min(1)).exp()
        d = (pull * -wide(fade * rate * p.width, pull)).add_(s.d).clamp_(p.lo, p.hi)
        return Balance(d, pull, square, unit, rate, mu, rho, checked, found)


def _slope(y: Tensor, rho: Tensor, mu: Tensor) -> Tensor:
    """The derivative in y of the penalty P2: cubic above 0, levelling off below."""
    above = mu + 2 * mu * rho * y + (rho * y).square() / 2
    return torch.where(y > 0, above, mu / (1 - rho * y.clamp_max(0)).square())

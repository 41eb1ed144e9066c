"""DDN: direction and norm apart; the norm shrinks while the point is adversarial and grows while it
is not."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from holdfast.attacks.attack import LOSSES, Access, Attack, Problem, option, wide


class Ray(NamedTuple):
    d: Tensor  # the current point, [n, *shape]
    radius: Tensor  # [n]


@dataclass(frozen=True)
class DDN(Attack):
    """Decoupled direction and norm (Rony et al. 2019, arXiv:1811.09600, algorithm 1).

    Cost: one forward and one backward a step and row, and one forward for the last point.
    Differs from the paper: no rounding to 256 levels; lengths are multiples of the box's width.
    """

    needs = Access.GRADIENTS
    norms = frozenset({"l2"})
    bounded = False
    random = False

    steps: int = option(100, "gradient steps")
    gamma: float = option(0.05, "share by which the norm shrinks or grows", at_least=0, below=1)
    radius: float = option(1.0, "first norm", above=0)
    loss: str = option("ce", "loss that is ascended", choices=LOSSES)

    def start(self, p: Problem) -> Ray:
        return Ray(torch.zeros_like(p.x), torch.full_like(p.eps.flatten(), self.radius * p.width))

    def step(self, p: Problem, s: Ray, t: int) -> Ray:
        _, g = p.gradient(s.d, self.loss)
        fade = 0.01 + 0.99 * (1 + math.cos(math.pi * t / self.steps)) / 2
        ahead = p.steepest(g).mul_(fade * p.width).add_(s.d)
        radius = torch.where(p.met, s.radius * (1 - self.gamma), s.radius * (1 + self.gamma))
        d = p.norm.steepest(ahead).mul_(wide(radius, ahead))
        return Ray(d.clamp_(p.lo, p.hi), radius)

"""Sigma-zero: Adam on a smooth count of the changed features, and a threshold that sets small
changes to zero."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from holdfast.attacks.attack import LOSSES, Access, Attack, Problem, option
from holdfast.norms import scaled, wide


class Sparse(NamedTuple):
    d: Tensor  # the current point, [n, *shape]
    m: Tensor  # Adam's averages of the gradient and of its square
    v: Tensor
    tau: Tensor  # changes below this are set to zero; a share of the box's width, [n]


@dataclass(frozen=True)
class SigmaZero(Attack):
    """Sigma-zero (Cinà et al. 2024, arXiv:2402.01879, algorithm 1).

    Cost: one forward and one backward a step and row, and one forward for the last point.
    Differs from the paper: a step lowers the count where the goal is met, and raises the loss where
    it is not; the paper adds the count's gradient there too, and the scale of the logits decides
    what that weighs.
    """

    needs = Access.GRADIENTS
    norms = frozenset({"l0"})
    groups = True
    bounded = False
    random = False

    steps: int = option(1000, "gradient steps")
    eta: float = option(
        1.0, "first step of Adam, a share of the box's width; the last is a tenth of it", above=0
    )
    sigma: float = option(
        0.001, "the smooth count of a change d (in widths) is d^2 / (d^2 + sigma)", above=0
    )
    tau: float = option(0.3, "first threshold, a share of the box's width", at_least=0)
    tau_step: float = option(0.01, "step of the threshold, a share of Adam's", at_least=0)
    loss: str = option("margin", "loss that is ascended where the goal is not met", choices=LOSSES)

    def start(self, p: Problem) -> Sparse:
        zero = torch.zeros_like(p.x)
        return Sparse(zero, zero, zero, torch.full_like(p.eps.flatten(), self.tau))

    def step(self, p: Problem, s: Sparse, t: int) -> Sparse:
        _, g = p.gradient(s.d, self.loss)
        u = s.d / p.width
        flat = (p.norm.pooled(u.square()) + self.sigma).square()
        count = 2 * self.sigma * u / flat / u[0].numel()
        g = scaled(torch.where(wide(p.met, g), -count, g))
        m, v = 0.9 * s.m + 0.1 * g, 0.999 * s.v + 0.001 * g.square()
        ascent = m / (1 - 0.9 ** (t + 1)) / ((v / (1 - 0.999 ** (t + 1))).sqrt() + 1e-8)
        eta = self.eta * (0.1 + 0.9 * (1 + math.cos(math.pi * t / self.steps)) / 2)
        d = (s.d + eta * p.width * ascent).clamp(p.lo, p.hi)
        tau = (s.tau + self.tau_step * eta * torch.where(p.met, 1, -1)).clamp(0, 1)
        small = p.norm.pooled(d.abs()) < wide(tau, d) * p.width
        return Sparse(torch.where(small, 0, d), m, v, tau)

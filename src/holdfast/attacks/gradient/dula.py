"""DULA: random flips between the corners of the ball, more likely where the gradient promises
more."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from holdfast.attacks.attack import EVERY_LOSS, Access, Attack, Problem, option, wide

RETURN = 10  # steps after which the chain goes on from its best point


class Chain(NamedTuple):
    d: Tensor  # the point of the chain, [n, *shape]
    best: Tensor  # the point of the highest loss so far, its gradient and its loss [n]
    best_g: Tensor
    best_value: Tensor


@dataclass(frozen=True)
class DULA(Attack):
    """Discrete unadjusted Langevin algorithm (Zhang, Liu and Liu 2022, arXiv:2206.09914, equation 6
    and algorithm 1 without its adjustment) on the corners of the ball.

    From x, or between its ends, a feature goes to the end of ascent. One at an end jumps to the
    other, each for itself, with probability 1 / (1 + exp(b - u / 2T)), where u is what the gradient
    promises of the jump, in units of the root mean square of what all jumps promise. For models
    whose inputs or units are rounded or thresholded, with gradients that go straight through the
    steps: small moves change nothing there, and a feature that cannot cross a threshold jumps at no
    cost.

    Cost: one forward and one backward a step and row, and a forward for the last point.
    Differs from the paper: the temperature T falls, the units of u follow the gradient, and every
    ten steps the chain goes on from its best point.
    """

    needs = Access.GRADIENTS
    norms = frozenset({"linf"})

    steps: int = option(100, "gradient steps")
    heat: float = option(0.5, "temperature of the first step; that of the last is a third", above=0)
    moves: float = option(
        0.16, "share of features that jump where nothing is promised", above=0, below=1
    )
    loss: str = option("margin", "loss that is ascended", choices=EVERY_LOSS)
    start_at: str = option(
        "zero", "where the chain starts: at x, or at the best point found", choices=("zero", "best")
    )

    def start(self, p: Problem) -> Chain:
        d = p.random_start(self.start_at)
        return Chain(d, d, torch.zeros_like(d), torch.full_like(p.eps.flatten(), -torch.inf))

    def step(self, p: Problem, s: Chain, t: int) -> Chain:
        value, g = p.gradient(s.d, self.loss)
        up = value > s.best_value
        best, best_g = (
            torch.where(wide(up, g), new, old) for new, old in ((s.d, s.best), (g, s.best_g))
        )
        s = Chain(s.d, best, best_g, torch.where(up, value, s.best_value))
        d, g = (best, best_g) if (t + 1) % RETURN == 0 else (s.d, g)
        heat = self.heat * 3 ** (-t / max(self.steps - 1, 1))
        return s._replace(d=self._jumped(p, d, g, heat))

    def _jumped(self, p: Problem, d: Tensor, g: Tensor, heat: float) -> Tensor:
        lo, hi = p.norm.hull(p.eps, p.lo, p.hi)
        lo, hi = lo.expand_as(d), hi.expand_as(d)
        at = (d - lo) / (hi - lo).clamp_min(torch.finfo(d.dtype).tiny)
        other = torch.where(at < 0.5, hi, lo)
        rises = (at - 0.5).abs() < 0.499  # what rounding leaves of an end is one
        if p.t == 1 and self.start_at == "zero":
            rises = torch.ones_like(rises)
        ascent = torch.where(g > 0, hi, lo)
        gain = g * (other - d)
        movable = (hi > lo).flatten(1).sum(1).clamp_min(1)
        unit = (gain.flatten(1).square().sum(1) / movable).sqrt()
        gain = gain / wide(unit, gain).clamp_min(torch.finfo(gain.dtype).tiny)
        chance = torch.sigmoid(gain / (2 * heat) + math.log(self.moves / (1 - self.moves)))
        jump = p.noise("jumps").uniform(d.shape[1:], d.dtype) < chance
        return torch.where(rises, ascent, torch.where(jump, other, d))

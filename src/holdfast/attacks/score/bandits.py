"""Bandits: ascent along a guess of the gradient, which lives on a coarse grid and is bettered by
every two queries."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from holdfast.attacks.attack import L2, Access, Attack, Problem, from_first, option, wide
from holdfast.attacks.shared.image_shape import ImageShape


class Guess(NamedTuple):
    d: Tensor  # the current point, [n, *shape]
    prior: Tensor  # what the guess of the gradient is read from, on the grid: [n, c, rows, columns]
    unit: Tensor  # the clean margin, [n]


class Rule(NamedTuple):
    """The authors' settings for a norm."""

    rate: float  # of the guess
    explore: float  # how far it is varied, as a length on the grid
    # how far from the current point the margin is asked: an L2 length, a share of the box's width
    reach: float
    # the guess itself; in Linf its log-odds are kept (exponentiated gradients)
    read: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Bandits(Attack):
    """Bandits with time and data priors (Ilyas et al. 2019, arXiv:1807.07978, algorithms 2 and 3).

    The guess is kept from step to step (the prior in time) and is constant on tiles (the prior in
    the data). Its rates and lengths are those of the authors' settings, per norm.

    Cost: three forwards a step and row (the current point is asked about too), one for the last
    point.
    Differs from the paper: the loss is the margin in units of the clean one; the two points
    on either side of the current one are clipped to the box, and may lie outside the ball; the step
    is a share of eps (the authors': 0.2 in Linf, 0.1 in L2).
    """

    needs = Access.SCORES
    variants: ClassVar = {
        "linf": Rule(100.0, 1.0, 0.1, torch.tanh),
        "l2": Rule(0.1, 0.01, 0.01, torch.clone),
    }

    steps: int = option(3333, "of three queries")
    grid: int = option(
        50,
        "cells along each side of the grid of the guess; where an image has fewer pixels, these",
        at_least=1,
    )
    step_size: float = option(0.2, "fraction of eps", above=0)

    def start(self, p: Problem) -> Guess:
        shape = ImageShape.of(p)
        cells = (shape.c, min(self.grid, shape.h), min(self.grid, shape.w))
        return Guess(
            torch.zeros_like(p.x), p.x.new_zeros(len(p.x), *cells), p.x.new_zeros(len(p.x))
        )

    def step(self, p: Problem, s: Guess, t: int) -> Guess:
        rule: Rule = self.variant(p)
        cells, read = tuple(s.prior.shape[1:]), rule.read(s.prior)
        u = (
            rule.explore
            / math.sqrt(math.prod(cells))
            * p.noise("vary").normal(cells, s.prior.dtype)
        )
        up, down = (
            rule.reach * p.width * L2.steepest(self.spread(p, v)) for v in (read + u, read - u)
        )
        found = p.probes(torch.stack([s.d, s.d + up, s.d + down], 1), "margin")
        unit = from_first(t, found[:, 0].abs(), s.unit)
        slope = (found[:, 1] - found[:, 2]) / (rule.reach * rule.explore)
        prior = s.prior + rule.rate * wide(torch.where(unit > 0, slope / unit, 0), u) * u
        d = p.project(s.d + p.stride(self.spread(p, rule.read(prior)), self.step_size))
        return Guess(d, prior, unit)

    def spread(self, p: Problem, v: Tensor) -> Tensor:
        """The guess [n, c, rows, columns] on all features that may move, each tile alike."""
        shape = ImageShape.of(p)
        down, across = (
            torch.arange(pixels, device=v.device) * cells // pixels
            for pixels, cells in ((shape.h, v.shape[2]), (shape.w, v.shape[3]))
        )
        return shape.join(v[:, :, down][..., across], p.x) * (p.hi > p.lo)

"""Boundary: a random walk along the decision boundary, drawn towards x."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from holdfast.attacks.attack import L2, Access, Attack, Problem, option, wide
from holdfast.attacks.shared import boundary_search as search

GAIN = 0.5  # share of the adaptation that one answer brings
AROUND, TOWARDS = 0.5, 0.25  # shares of successes at which the lengths stay


class Sphere(NamedTuple):
    d: Tensor  # the present point, [n, *shape], which meets the goal
    around: Tensor  # [n]: next step on the sphere, a share of the distance to x
    towards: Tensor  # [n]: next step towards x, a share of that distance


@dataclass(frozen=True)
class Boundary(Attack):
    """Boundary attack (Brendel et al. 2018, arXiv:1712.04248, algorithm 1 and section 2).

    A step goes to a random point as far from x, and where that meets the goal on towards x.

    Cost: one or two forwards a step and row; the start 2 to 100 and 14.
    Differs from the paper: the lengths adapt a little at every answer, not after windows of them;
    those towards x stay where a quarter succeed, as in the authors' code; the random walk begins
    at the boundary.
    """

    needs = Access.LABELS
    norms = frozenset({"l2"})
    bounded = False

    steps: int = option(25000, "proposals")
    step_size: float = option(0.01, "first steps, shares of the distance to x", above=0, below=1)
    adaptation: float = option(1.5, "how fast steps follow successes; 1: not at all", above=0)
    start_at: str = search.start_option()

    def start(self, p: Problem) -> Sphere:
        one = torch.ones_like(p.eps.flatten())
        d = search.nearer(p, search.find_start(p, self.start_at), search.GAP * one)
        return Sphere(d, self.step_size * one, self.step_size * one)

    def step(self, p: Problem, s: Sphere, t: int) -> Sphere:
        v = search.across(p.noise("direction").normal(p.x.shape[1:], p.x.dtype), s.d)
        orthogonal = s.d + wide(s.around * L2.size(s.d), v) * v
        orthogonal = (orthogonal / wide((1 + s.around.square()).sqrt(), v)).clamp(p.lo, p.hi)
        stays = p.adversarial(orthogonal)
        ahead = orthogonal * wide(1 - s.towards, v)
        closer = p.adversarial(ahead, stays)
        towards = torch.where(stays, self._adapted(s.towards, closer, TOWARDS), s.towards)
        d = torch.where(wide(closer, v), ahead, torch.where(wide(stays, v), orthogonal, s.d))
        return Sphere(d, self._adapted(s.around, stays, AROUND), towards)

    def _adapted(self, length: Tensor, met: Tensor, share: float) -> Tensor:
        """The next length: on average the same where this share of the answers are successes."""
        longer, shorter = (self.adaptation ** (GAIN * (hit - share)) for hit in (1, 0))
        return (length * torch.where(met, longer, shorter)).clamp_max(0.9)

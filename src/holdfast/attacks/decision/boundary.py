"""Boundary: a random walk along the decision boundary, drawn towards x."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from holdfast.attacks.attack import Access, Attack, Problem, option
from holdfast.attacks.shared.boundary_search import across, foothold, nearer, start_option
from holdfast.norms import L2, wide

GAP = 1e-4  # between the walk's first point and the boundary, a share of the point
PACE = 0.5  # share of the adaptation that one answer brings
AROUND, TOWARDS = 0.5, 0.25  # shares of successes at which the lengths stay


class Stroll(NamedTuple):
    d: Tensor  # the present point, [n, *shape], which meets the goal
    around: Tensor  # [n]: next step on the sphere, a share of the distance to x
    towards: Tensor  # [n]: next step towards x, a share of that distance


@dataclass(frozen=True)
class Boundary(Attack):
    """Boundary attack (Brendel et al. 2018, arXiv:1712.04248, algorithm 1 and section 2).

    A step goes to a random point at the same distance from x, and if that meets the goal, on
    towards x.

    Cost: one or two forwards a step and row; the start 2 to 100 and 14.
    Differs from the paper: the lengths adapt a little at every answer, not after windows of them;
    those towards x stay where a quarter of them succeed, as in the authors' code; the walk begins
    at the boundary, not in the noise.
    """

    needs = Access.LABELS
    norms: ClassVar = frozenset({"l2"})
    bounded: ClassVar = False

    steps: int = option(25000, "proposals")
    step_size: float = option(
        0.01,
        "first lengths of steps on the sphere and towards x, as shares of the distance to x",
        above=0,
        below=1,
    )
    adaptation: float = option(
        1.5, "how fast both lengths follow their successes; 1: not at all", above=0
    )
    start_at: str = start_option()

    def start(self, p: Problem) -> Stroll:
        one = torch.ones_like(p.eps.flatten())
        d = nearer(p, foothold(p, self.start_at), GAP * one)
        return Stroll(d, self.step_size * one, self.step_size * one)

    def step(self, p: Problem, s: Stroll, t: int) -> Stroll:
        v = across(p.noise("direction").normal(p.x.shape[1:], p.x.dtype), s.d)
        aside = s.d + wide(s.around * L2.size(s.d), v) * v
        aside = (aside / wide((1 + s.around.square()).sqrt(), v)).clamp(p.lo, p.hi)
        stays = p.adversarial(aside)
        ahead = aside * wide(1 - s.towards, v)
        nears = p.adversarial(ahead, stays)
        around = self._adapted(s.around, stays, AROUND)
        towards = torch.where(stays, self._adapted(s.towards, nears, TOWARDS), s.towards)
        return Stroll(
            torch.where(wide(nears, v), ahead, torch.where(wide(stays, v), aside, s.d)),
            around,
            towards,
        )

    def _adapted(self, length: Tensor, met: Tensor, share: float) -> Tensor:
        """The next length after this answer: on average the same, where this share of the answers
        are successes."""
        longer, shorter = (self.adaptation ** (PACE * (hit - share)) for hit in (1, 0))
        return (length * torch.where(met, longer, shorter)).clamp_max(0.9)

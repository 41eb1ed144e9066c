"""Brendel-Bethge: along the decision boundary towards x, within a trust region that shrinks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from holdfast.attacks.attack import L2, NORMS, Access, Attack, Problem, option, wide

# how far past the boundary a step aims at least, a share of the point's length: no success is
# rounding's
INSIDE = 1e-5


class BoundaryPoint(NamedTuple):
    d: Tensor  # the current point, near the boundary, [n, *shape]
    normal: Tensor  # of the boundary there: the running mean of the margin's gradients


@dataclass(frozen=True)
class BrendelBethge(Attack):
    """Brendel and Bethge's attack (Brendel et al. 2019, arXiv:1907.01003, section 3).

    A step takes the current point towards x as far as the trust region allows, and from there by
    the smallest move to the linearised boundary within the box. For L2 that is the form of the
    exact solution of the paper's problem. In L0 the region is a share of the changed features:
    those that lead least far fall to 0, the others move to the boundary, and where they do not
    suffice as few more as it takes.

    Cost: one forward and one backward a step and row, 6 more forwards for every walk but the first
    (up to 10 where noise seldom meets the goal), and one for the last point.
    Differs from the paper: but for L2 the problem is not solved jointly, but in these halves, each
    exactly; the radius is a share of the current point's L2 length (in L0 of its count), not of the
    number of features; the first walk begins at x, whose first step itself leads to the boundary; a
    step aims past the boundary by a hundred-thousandth of the point's length at least, where
    rounding would decide.
    """

    needs = Access.GRADIENTS
    bounded = False
    norms = frozenset(NORMS)
    groups = True

    steps: int = option(1000, "gradient steps")
    walks: int = option(
        2,
        "which share the steps; the first begins at x, others at noise that meets the goal",
        at_least=1,
    )
    radius: float = option(
        0.5, "first radius of the trust region, a share of the point's length", above=0
    )
    last: float = option(0.001, "last radius of a walk, a share of the first", above=0)
    overshoot: float = option(
        0.1, "how far past the boundary a step aims, a share of the way to it", at_least=0
    )
    momentum: float = option(0.8, "share of the past gradients kept", at_least=0, at_most=1)
    close: float = option(
        0.0,
        "after k walks, go on with rows whose smallest change is at most 1 + close / k eps; 0: all",
        at_least=0,
    )

    @property
    def expected_passes(self) -> float:
        share = min(0.4 * self.close, 1) if self.close else 1  # as measured with close=1
        return share * (2 * self.steps + 6 * (self.walks - 1)) + 1

    def start(self, p: Problem) -> BoundaryPoint:
        zero = torch.zeros_like(p.x)
        return BoundaryPoint(zero, zero)

    def step(self, p: Problem, s: BoundaryPoint, t: int) -> BoundaryPoint:
        walk, of = divmod(t, -(-self.steps // self.walks))
        if self.close and walk and not of:
            p.stop_asking(p.beyond(1 + self.close / walk))
        before = self._boundary(p) if walk and not of else s.d
        value, g = p.gradient(before, "margin")
        keep = self.momentum if of else 0
        normal = (1 - keep) * g + keep * s.normal
        share = torch.full_like(value, self.radius * self.last ** (of * self.walks / self.steps))
        least = INSIDE * L2.size(normal) * L2.size(before)
        rise = (self.overshoot * value.abs()).maximum(least) - value
        return BoundaryPoint(p.norm.along(before, normal, rise, share, p.lo, p.hi), normal)

    def _boundary(self, p: Problem) -> Tensor:
        """The point of the boundary between x and noise that meets the goal; x where none of it
        does."""
        far, without = torch.zeros_like(p.x), torch.ones_like(p.live)
        for draw in range(5):
            noise = p.lo + (p.hi - p.lo) * p.noise(f"start {draw}").uniform(
                p.x.shape[1:], p.x.dtype
            )
            met = p.adversarial(noise, without)
            far, without = torch.where(wide(met, far), noise, far), without & ~met
        low, high = torch.zeros_like(p.eps.flatten()), torch.ones_like(p.eps.flatten())
        for _ in range(5):  # the first step itself goes to the boundary
            share = (low + high) / 2
            met = p.adversarial(p.norm.shrink(far, share))
            low, high = torch.where(met, low, share), torch.where(met, share, high)
        return p.norm.shrink(far, high)

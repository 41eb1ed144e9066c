"""Auto-PGD's algorithm in L1 (Croce and Hein 2021, arXiv:2103.01208, algorithm 1)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from holdfast.attacks.attack import Problem
from holdfast.attacks.shared.checkpoints import Climb, stage
from holdfast.norms import sparse, wide


class SparseSteps:
    """L1: steps of few features, fewer as the best point grows sparser, in a ball that shrinks.

    Differs from the authors' code: the radius is 3 eps for the first 0.3 of the steps, 2 eps for
    the next and eps for the last 0.4; the step that shrinks it asks about the best point,
    projected. Sparsity counts the features that moved but not to the box, and rounds down; features
    at the box that are steeper than those that step stay there.
    """

    def start(self, a: Any, p: Problem) -> Climb:
        far = p.width * p.noise("start").normal(tuple(p.x.shape[1:]), p.x.dtype)
        d = p.norm.project(far, stage(a.steps, 0)[2] * p.eps, p.lo, p.hi)
        return Climb.at(d, *a.ask(p, d), size=1)._replace(checked=_inside(p, d))

    def step(self, a: Any, p: Problem, s: Climb, t: int) -> Climb:
        first, length, radius = stage(a.steps, t)
        eps = radius * p.eps
        if t == first and t:
            d = p.norm.project(s.best, eps, p.lo, p.hi)
            s = s._replace(best_value=torch.full_like(s.value, -torch.inf))
            s = s.advanced(d, *a.ask(p, d))
            return s._replace(checked=_inside(p, s.d), size=torch.ones_like(s.size))
        room = torch.where(s.g > 0, p.hi - s.d, s.d - p.lo)
        stride = wide(s.size, s.g) * eps * sparse(s.g, s.checked / 1.5, room)
        d = p.norm.project(s.d + stride, eps, p.lo, p.hi)
        s = s.advanced(d, *a.ask(p, d))
        if (t + 1 - first) % max(int(0.04 * length), 1):
            return s
        entries = _inside(p, s.best)
        sparser = entries < 0.95 * s.checked
        size = torch.where(sparser, 1, (s.size / 1.5).clamp_min(0.1))
        return s._replace(checked=entries, size=size).back(sparser)


def _inside(p: Problem, d: Tensor) -> Tensor:
    """How many features have moved, but not to the box: [n]."""
    return ((d != 0) & (d > p.lo) & (d < p.hi)).flatten(1).sum(1).to(d)

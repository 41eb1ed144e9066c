"""Sweep: try points of the ball without asking for any direction; the baseline that every attack
must beat."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from holdfast.attacks.attack import Access, Attack, Problem, option


@dataclass(frozen=True)
class Sweep(Attack):
    """Random or exhaustive search: one point a step, labels only.

    In random order (worst of k), extreme points of the ball and uniform points in it take turns. In
    exhaustive order the corners of the ball are walked one by one: with 2^f steps (Linf) or 2f (L1)
    on f features it is an exact search over them. A grid is the finest even one over [-eps, eps]^f
    that has no more points than there are steps; it is for few features, such as the angle and the
    shift of Engstrom et al. 2019 (arXiv:1712.02779).
    """

    needs = Access.LABELS

    steps: int = option(100, "points tried")
    order: str = option("random", "how points are chosen", choices=("random", "exhaustive", "grid"))

    def step(self, p: Problem, s: Tensor, t: int) -> Tensor:
        if self.order == "exhaustive":
            unit = p.norm.corner(t, p.x)
        elif self.order == "grid":
            unit = self._knot(p.x, t)
        elif t % 2:
            unit = p.norm.sample(p.noise("inside"), p.x)
        else:
            unit = p.norm.extreme(p.noise("extreme"), p.x)
        d = p.project(p.eps * unit)
        p.adversarial(d)
        return d

    def _knot(self, x: Tensor, t: int) -> Tensor:
        """Point t of the grid, in [-1, 1]: [n, *shape]."""
        features = x[0].numel()
        fine = max(2, int(self.steps ** (1 / features) + 1e-9))
        places = []
        for _ in range(features):
            t, place = divmod(t, fine)
            places.append(2 * place / (fine - 1) - 1)
        return torch.tensor(places).to(x).view(1, *x.shape[1:]).expand_as(x)

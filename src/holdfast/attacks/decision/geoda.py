"""GeoDA: from x along the boundary's normal to the boundary, and again with a better estimate of
it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from holdfast.attacks.attack import Access, Attack, Problem, option, wide
from holdfast.attacks.shared import boundary_search as search

# how fast the sizes are taken to converge: each estimate has RATE^(-2/3) times the last one's
# probes
RATE = 0.6


@dataclass(frozen=True)
class GeoDA(Attack):
    """Geometric decision-based attack (Rahmati et al. 2020, arXiv:2003.06468, algorithm 1).

    Cost: steps x probes forwards for the normals in all, and a step and row 1 forward, after a
    success also about log2 of the point's size over a quarter of the probes' radius; the start 2 to
    100 and one such search.
    Differs from the paper: probes are uniform in direction, at one radius, and never in the space
    of low frequencies; a normal along which no point as near as the last meets the goal is dropped.
    """

    needs = Access.LABELS
    norms = frozenset({"linf", "l2"})
    bounded = False

    steps: int = option(20, "estimates of the normal")
    probes: int = option(200, "of one estimate, on average: the later, the more", at_least=1)
    radius: float = option(
        0.0002, "of the probes, in each feature, a share of the box's width", above=0, below=1
    )
    start_at: str = search.start_option()

    def start(self, p: Problem) -> Tensor:
        return search.ball_start(p, self.start_at, self.radius)

    def step(self, p: Problem, s: Tensor, t: int) -> Tensor:
        radius = torch.full_like(p.eps.flatten(), search.ball(p, self.radius))
        direction = p.steepest(search.normal(p, s, radius, self.share(t)))
        size = p.norm.size(s)

        def along(share: Tensor) -> Tensor:
            return (wide(share * size, s) * direction).clamp(p.lo, p.hi)

        one = torch.ones_like(size)
        met = p.adversarial(along(one))
        share = search.bisect(p, along, one, search.within(p, s, search.ball(p, self.radius)), met)
        return torch.where(wide(met, s), along(share), s)

    def share(self, t: int) -> int:
        """The probes of step t."""
        parts = [RATE ** (2 / 3 * (self.steps - 1 - i)) for i in range(self.steps)]
        return max(1, round(self.steps * self.probes * parts[t] / sum(parts)))

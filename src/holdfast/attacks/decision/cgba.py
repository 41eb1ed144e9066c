"""CGBA: the circle from a boundary point to x in the plane of the boundary's normal, and where it
crosses back."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from holdfast.attacks.attack import Access, Attack, Problem, option, wide
from holdfast.attacks.shared import boundary_search as search


@dataclass(frozen=True)
class CGBA(Attack):
    """Curvature-aware geometric black-box attack (Reza et al. 2023, arXiv:2308.03163, algorithm 1).

    Cost: a step t from 1 asks probes sqrt(t) forwards for the normal and about log2 of the point's
    size over a quarter of the probes' radius to find the crossing, at most 20 in float32; the start
    2 to 100 and one such search. 5,000 forwards are about 38 steps.
    Differs from the paper: probes are uniform in direction, at one radius; they are never in the
    space of low frequencies. There is no CGBA-H, its variant for goals whose boundaries bend much.
    """

    needs = Access.LABELS
    norms = frozenset({"l2"})
    bounded = False

    steps: int = option(60, "estimates of the normal")
    probes: int = option(
        30, "of the first estimate; that of step t has sqrt(t) times as many", at_least=1
    )
    radius: float = option(
        0.0002, "of the probes, in each feature, a share of the box's width", above=0, below=1
    )
    start_at: str = search.start_option()

    def start(self, p: Problem) -> Tensor:
        return search.ball_start(p, self.start_at, self.radius)

    def step(self, p: Problem, s: Tensor, t: int) -> Tensor:
        radius = torch.full_like(p.eps.flatten(), search.ball(p, self.radius))
        v = search.across(search.normal(p, s, radius, int(self.probes * math.sqrt(t + 1))), s)

        def along(share: Tensor) -> Tensor:
            return search.arc(p, s, v, (1 - share) * math.pi / 2)

        one = torch.ones_like(radius)
        share = search.bisect(
            p, along, one, search.within(p, s, search.ball(p, self.radius)), one.bool()
        )
        return torch.where(wide(share < 1, s), along(share), s)

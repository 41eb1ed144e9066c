"""SurFree: circles from the best point to x in random planes, and along each as far as the goal is
met."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from holdfast.attacks.attack import Access, Attack, Problem, option, wide
from holdfast.attacks.shared import boundary_search as search

TRIES = 3  # angles on each side, before a direction is given up
# of the way between two tries: how exactly the last angle that meets the goal is found
FINE = 1 / 32


class Circles(NamedTuple):
    d: Tensor  # the best point, [n, *shape], just past the boundary
    past: Tensor  # the last directions, [n, memory, *shape], each of L2 length 1
    angle: Tensor  # [n]: the largest angle that is tried, in radians


@dataclass(frozen=True)
class SurFree(Attack):
    """SurFree (Maho et al. 2021, arXiv:2011.12807, algorithm 1).

    Cost: 1 to 6 forwards a step and row, and 5 more after a success; the start 2 to 100 and 14.
    Differs from the paper: directions are uniform in the space of the features, not of their cosine
    transform; at most half as many are remembered as there are features; a success at the first
    angle is followed to twice it.
    """

    needs = Access.LABELS
    norms = frozenset({"l2"})
    bounded = False

    steps: int = option(1000, "directions")
    angle: float = option(30.0, "first angle that is tried, in degrees", above=0)
    growth: float = option(
        0.02, "share by which it grows after a success, and shrinks after none", above=-1, below=1
    )
    memory: int = option(100, "last directions to which a new one is orthogonal", at_least=0)
    start_at: str = search.start_option()

    def start(self, p: Problem) -> Circles:
        share = torch.full_like(p.eps.flatten(), search.GAP)
        d = search.nearer(p, search.find_start(p, self.start_at), share)
        angle = math.radians(min(self.angle, 90))
        memory = min(self.memory, p.features // 2)
        return Circles(
            d, p.x.new_zeros(len(d), memory, *p.x.shape[1:]), torch.full_like(share, angle)
        )

    def step(self, p: Problem, s: Circles, t: int) -> Circles:
        v = p.noise("direction").normal(p.x.shape[1:], p.x.dtype)
        axes = tuple(range(2, s.past.ndim))
        v = search.across(v - ((s.past * v[:, None]).sum(axes, keepdim=True) * s.past).sum(1), s.d)

        def along(angle: Tensor) -> Tensor:
            return search.arc(p, s.d, v, angle)

        found, waiting = torch.zeros_like(s.angle), torch.ones_like(p.live)
        for j in range(TRIES):
            for sign in (1, -1):
                angle = sign * (1 - j / TRIES) * s.angle
                met = p.adversarial(along(angle), waiting)
                found, waiting = torch.where(met, angle, found), waiting & ~met
        hit = ~waiting
        wider = found.abs() + torch.where(found.abs() == s.angle, s.angle, s.angle / TRIES)
        beyond = found.sign() * wider.clamp_max(math.pi / 2)

        def between(share: Tensor) -> Tensor:
            return along(beyond + share * (found - beyond))

        one = torch.ones_like(found)
        d = torch.where(wide(hit, v), between(search.bisect(p, between, one, FINE * one, hit)), s.d)
        angle = s.angle * torch.where(hit, 1 + self.growth, 1 - self.growth)
        return Circles(d, torch.cat([s.past, v[:, None]], 1)[:, 1:], angle.clamp_max(math.pi / 2))

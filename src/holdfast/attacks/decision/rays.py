"""RayS: flip blocks of a sign vector, and keep what lets the ray along it meet the goal sooner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from holdfast.attacks.attack import Access, Attack, Problem, option, wide
from holdfast.attacks.shared.boundary_search import bisect
from holdfast.attacks.shared.sign_blocks import block


class Ray(NamedTuple):
    d: Tensor  # the point of the ray that meets the goal, [n, *shape]; 0 where none is known
    signs: Tensor  # the ray's direction, of -1 and 1
    radius: Tensor  # [n]: how far along it; the box's width where no point is known


@dataclass(frozen=True)
class RayS(Attack):
    """RayS (Chen and Gu 2020, arXiv:2006.12792, algorithms 2 and 3).

    Cost: one forward a step and row; one that is a success takes log2(1 / tolerance) more to find
    the new radius.
    Differs from the paper: the tolerance is a share of the radius, not a length.
    """

    needs = Access.LABELS
    norms = frozenset({"linf"})
    bounded = False
    random = False

    steps: int = option(10000, "blocks tried, each level with twice as many as the last")
    tolerance: float = option(
        0.001, "share of the radius within which the boundary is found", above=0, below=1
    )

    def start(self, p: Problem) -> Ray:
        ray = Ray(
            torch.zeros_like(p.x), torch.ones_like(p.x), p.norm.size(torch.full_like(p.x, p.width))
        )
        return self._try(p, ray, ray.signs)

    def step(self, p: Problem, s: Ray, t: int) -> Ray:
        first, last = block(t, p.features, again=False)
        flip = torch.ones_like(p.x[0]).flatten()
        flip[first:last] = -1
        return self._try(p, s, s.signs * flip.view_as(p.x[0]))

    def _try(self, p: Problem, s: Ray, signs: Tensor) -> Ray:
        """The ray along these signs, in rows where it meets the goal at the known radius."""

        def along(radius: Tensor) -> Tensor:
            return (wide(radius, signs) * p.steepest(signs)).clamp(p.lo, p.hi)

        met = p.adversarial(along(s.radius))
        radius = bisect(p, along, s.radius, self.tolerance * s.radius, met)
        hit = wide(met, signs)
        return Ray(torch.where(hit, along(radius), s.d), torch.where(hit, signs, s.signs), radius)

"""Sign-OPT: descend the distance to the boundary as a function of the direction, by the signs of
its differences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from holdfast.attacks.attack import Access, Attack, Problem, option, wide
from holdfast.attacks.shared import boundary_search as search

TRIES = 12  # lengths of one line search, in each sense
LEAST = 1e-4  # step length below which the probes were too coarse, and are drawn nearer
NEAREST = 1e-4  # their least distance


class Ray(NamedTuple):
    d: Tensor  # the point of the ray just past the boundary, [n, *shape]
    direction: Tensor  # the ray's direction, of size 1
    radius: Tensor  # [n]: how far along it
    alpha: Tensor  # [n]: length of the next step of the direction
    beta: Tensor  # [n]: size of the probes' change of the direction


@dataclass(frozen=True)
class SignOPT(Attack):
    """Sign-OPT (Cheng et al. 2020, arXiv:1909.10773, algorithm 1).

    A probe tells whether a direction a little to the side meets the goal at the present distance.
    The step is the steepest one by the mean of these signs, and its length that of a line search,
    doubled or cut while that helps.

    Cost: a step asks `probes` forwards, 1 to 24 for its length, and for each length that helps
    about 14 to find the boundary (17 once the probes draw nearer); the start 3 to 101 and 14.
    Differs from the paper: the first direction is one that the common start found, not the best of
    100; a length is first asked about at the present distance, and costs no search where it does
    not help; beta stays at 1e-4 or above. In L2 alone: in Linf the ray saturates, and the search
    stalls.
    """

    needs = Access.LABELS
    norms = frozenset({"l2"})
    bounded = False

    steps: int = option(100, "gradient steps of the direction")
    probes: int = option(200, "signs for one step", at_least=1)
    alpha: float = option(0.2, "first length of a step, of a direction of size 1", above=0)
    beta: float = option(0.001, "first size of the probes' change of the direction", above=0)
    start_at: str = search.start_option()

    def start(self, p: Problem) -> Ray:
        d = search.find_start(p, self.start_at)
        size = p.norm.size(d)
        s = Ray(
            d, unit(p, d), size, torch.full_like(size, self.alpha), torch.full_like(size, self.beta)
        )
        return self._try(p, s, s.direction, torch.ones_like(p.live))

    def step(self, p: Problem, s: Ray, t: int) -> Ray:
        pull, best, trying = p.steepest(self._descent(p, s)), s, torch.ones_like(p.live)
        for _ in range(TRIES):  # twice as long while it helps
            if not bool((trying & p.live).any()):
                break
            last, best = (
                best,
                self._try(p, best, turned(p, s.direction, wide(best.alpha, pull) * pull), trying),
            )
            trying = trying & (best.radius < last.radius)
            best = best._replace(alpha=torch.where(trying, 2 * best.alpha, best.alpha))
        helped = best.radius < s.radius
        best = best._replace(alpha=torch.where(helped, best.alpha / 2, best.alpha))
        for _ in range(TRIES):  # else a quarter as long, until it does
            trying = (best.radius == s.radius) & (best.alpha >= LEAST)
            if not bool((trying & p.live).any()):
                break
            best = best._replace(alpha=torch.where(trying, best.alpha / 4, best.alpha))
            best = self._try(p, best, turned(p, s.direction, wide(best.alpha, pull) * pull), trying)
        coarse = best.alpha < LEAST
        beta = torch.where(coarse, (best.beta / 10).clamp_min(NEAREST), best.beta)
        return best._replace(alpha=torch.where(coarse, 1, best.alpha), beta=beta)

    def _descent(self, p: Problem, s: Ray) -> Tensor:
        """The direction in which the distance to the boundary falls, by the mean of the probes'
        signs."""
        g, radius, beta = (
            torch.zeros_like(s.d),
            wide(s.radius, s.d)[:, None],
            wide(s.beta, s.d)[:, None],
        )
        for u in search.directions(p, self.probes):
            u = unit(p, u.flatten(0, 1)).view_as(u)
            direction = turned(
                p, s.direction[:, None].expand_as(u).flatten(0, 1), (beta * u).flatten(0, 1)
            ).view_as(u)
            answers = (
                p.probes((radius * direction).clamp(p.lo[:, None], p.hi[:, None])).to(u) * 2 - 1
            )
            g = g + (answers.view(*answers.shape, *[1] * (s.d.ndim - 1)) * u).sum(1)
        return g

    def _try(self, p: Problem, s: Ray, direction: Tensor, among: Tensor) -> Ray:
        """Take this direction in rows where it meets the goal at the present distance, and find the
        boundary there."""

        def along(radius: Tensor) -> Tensor:
            return (wide(radius, direction) * direction).clamp(p.lo, p.hi)

        met = p.adversarial(along(s.radius), among)
        radius = search.bisect(p, along, s.radius, s.radius * s.beta / 20, met)
        d, direction = (
            torch.where(wide(met, direction), new, old)
            for new, old in ((along(radius), s.d), (direction, s.direction))
        )
        return s._replace(d=d, direction=direction, radius=radius)


def turned(p: Problem, v: Tensor, by: Tensor) -> Tensor:
    """The direction of size 1 nearest to v + by."""
    far = torch.full_like(v, torch.inf)
    return unit(p, p.norm.project(v + by, wide(torch.ones_like(p.norm.size(v)), v), -far, far))


def unit(p: Problem, d: Tensor) -> Tensor:
    """d at size 1; 0 where it is 0."""
    size = p.norm.size(d)
    return d / wide(torch.where(size > 0, size, 1), d)

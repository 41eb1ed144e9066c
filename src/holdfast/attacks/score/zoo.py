"""ZOO: Carlini and Wagner's L2 objective, descended coordinate by coordinate from differences of
scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from holdfast.attacks.attack import Access, Attack, Problem, from_first, option


class Search(NamedTuple):
    d: Tensor  # the current point, [n, *shape]
    mean: Tensor  # Adam's running means of each feature's slope and of its square
    square: Tensor
    age: Tensor  # how often each feature was moved
    c: Tensor  # weight of the margin, [n]
    factor: Tensor  # by which the next search changes c, [n]
    rose: Tensor  # whether it rose after the last search, [n] bool
    met: Tensor  # whether the goal was met in this search, [n] bool
    unit: Tensor  # the clean margin, [n]


@dataclass(frozen=True)
class ZOO(Attack):
    """Zeroth-order optimisation, ZOO-ADAM (Chen et al. 2017, arXiv:1708.03999, algorithms 1 and 2).

    Each step measures the slope of the objective size^2 + c max(-margin, 0) along a few random
    features, by a point on either side, and moves these features by one step of Adam each.

    Cost: 2 `samples` + 1 forwards a step and row, and one for the last point.
    Differs from the paper: the margin is one of scores, in units of the clean one, not of
    log-probabilities; the size's slope is taken exactly; a search goes on from where the last one
    ended, and c is multiplied or divided by a factor, at first 10, of which each change of
    direction takes the root. No attack-space reduction, no importance sampling.
    """

    needs = Access.SCORES
    norms = frozenset({"l2"})
    bounded = False

    steps: int = option(3000, "steps of all searches")
    samples: int = option(128, "features measured and moved a step", at_least=1)
    searches: int = option(9, "searches for c", at_least=1)
    c: float = option(0.01, "first weight of the margin", above=0)
    rate: float = option(0.01, "Adam's, a share of the box's width", above=0)
    h: float = option(
        0.0001, "how far the points on either side lie, a share of the box's width", above=0
    )

    def start(self, p: Problem) -> Search:
        zero, none = torch.zeros_like(p.x), torch.zeros_like(p.eps.flatten())
        return Search(zero, zero, zero, zero, none + self.c, none + 10, none == 0, none > 0, none)

    def step(self, p: Problem, s: Search, t: int) -> Search:
        draws = p.noise("features").uniform((p.features,), torch.float64) + (p.hi <= p.lo).flatten(
            1
        )
        at = draws.topk(min(self.samples, p.features), 1, largest=False).indices
        move = self.h * p.width * (p.hi > p.lo)
        side = torch.zeros_like(draws, dtype=move.dtype)[:, None].expand(-1, at.shape[1], -1)
        side = side.scatter(2, at[:, :, None], move.flatten(1).gather(1, at)[:, :, None]).unflatten(
            2, p.x.shape[1:]
        )
        d = s.d[:, None]
        found = p.probes(torch.cat([d, d + side, d - side], 1), "margin")
        up, down = found[:, 1:].chunk(2, 1)
        unit = from_first(t, found[:, 0].abs(), s.unit)
        pull = torch.where((found[:, 0] < 0) & (unit > 0), s.c / unit, 0)
        u = (s.d / p.width).flatten(1).gather(1, at)
        g = 2 * u - pull[:, None] * (up - down) / (2 * self.h)
        s = s._replace(unit=unit, met=s.met | (found[:, 0] > 0))
        return self.weigh(self.descend(p, s, at, g), t)

    def descend(self, p: Problem, s: Search, at: Tensor, g: Tensor) -> Search:
        """One step of Adam against the slopes g of the features `at` [n, m]."""
        mean, square, age = (part.flatten(1).gather(1, at) for part in (s.mean, s.square, s.age))
        mean, square, age = 0.9 * mean + 0.1 * g, 0.999 * square + 0.001 * g.square(), age + 1
        step = mean / (1 - 0.9**age) / ((square / (1 - 0.999**age)).sqrt() + 1e-8)
        d = (
            s.d.flatten(1)
            .scatter_add(1, at, -self.rate * p.width * step)
            .view_as(s.d)
            .clamp(p.lo, p.hi)
        )
        kept = (
            old.flatten(1).scatter(1, at, new).view_as(d)
            for old, new in ((s.mean, mean), (s.square, square), (s.age, age))
        )
        return s._replace(d=d, **dict(zip(("mean", "square", "age"), kept, strict=True)))

    def weigh(self, s: Search, t: int) -> Search:
        """At the end of a search less weight where the goal was met, more where it was not; Adam
        forgets."""
        if (t + 1) % max(self.steps // self.searches, 1):
            return s
        turned = s.met == s.rose
        factor = torch.where(turned, s.factor.sqrt().clamp_min(1.2), s.factor)
        zero = torch.zeros_like(s.d)
        c = torch.where(s.met, s.c / factor, s.c * factor)
        return s._replace(
            c=c, factor=factor, rose=~s.met, met=s.met & False, mean=zero, square=zero, age=zero
        )

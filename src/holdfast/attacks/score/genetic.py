"""A genetic search over the legal rows of a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from holdfast.attacks.attack import Access, Attack, Problem, option


class Population(NamedTuple):
    d: Tensor  # the best member, [n, *shape]
    members: Tensor  # [n, m, *shape], the best first
    fitness: Tensor  # their losses, [n, m]


@dataclass(frozen=True)
class Genetic(Attack):
    """A genetic search like MoEvA2 (Simonetto et al. 2022, arXiv:2112.01156).

    A generation draws as many children as there are members. Each has two parents, the better of
    two members each; every feature is one parent's, or all lie between both; a few features change
    at random. The best of members and children stay.

    Cost: `population` forwards a generation and row, as many for the first, and one for the last
    point.
    Differs from the paper: one aim, the margin, since members lie within eps and are repaired
    before the model is asked, where the paper weighs three.
    """

    needs = Access.SCORES
    norms = frozenset({"linf", "l2", "l1"})

    steps: int = option(100, "generations")
    population: int = option(40, "members", at_least=4)
    mutated: float = option(0.1, "share of features that change at random", above=0, at_most=1)
    scale: float = option(0.3, "of the largest such changes, a share of eps", above=0)

    def start(self, p: Problem) -> Population:
        size = (self.population, *p.x.shape[1:])
        some = p.noise("some").uniform(size, p.x.dtype) < 0.3
        members = _within(p, p.eps[:, None] * some * p.noise("start").normal(size, p.x.dtype))
        members[:, 0] = 0
        return Population(members[:, 0], members, p.probes(members, "margin"))

    def step(self, p: Problem, s: Population, t: int) -> Population:
        children = self._children(p, s)
        members = torch.cat([s.members, children], 1)
        fitness, order = torch.cat([s.fitness, p.probes(children, "margin")], 1).topk(
            self.population, 1
        )
        members = _picked(members, order)
        return Population(members[:, 0], members, fitness)

    def _children(self, p: Problem, s: Population) -> Tensor:
        """[n, m, *shape], legal but for the repair."""
        m, size, kind = self.population, s.members.shape[1:], p.x.dtype
        one = (m, *[1] * (p.x.ndim - 1))
        drawn = (p.noise("pairs").uniform((4, m), torch.float64) * m).long()
        left, right = drawn[:, :2], drawn[:, 2:]
        fitter = s.fitness.gather(1, left.flatten(1)) >= s.fitness.gather(1, right.flatten(1))
        chosen = torch.where(fitter, left.flatten(1), right.flatten(1))
        a, b = _picked(s.members, chosen[:, :m]), _picked(s.members, chosen[:, m:])
        child = torch.where(p.noise("cross").uniform(size, kind) < 0.5, a, b)
        share = p.noise("between").uniform(one, kind)
        between = p.noise("kind").uniform(one, kind) < 0.3
        child = torch.where(between, a + share * (b - a), child)
        length = self.scale * p.eps[:, None] * 10 ** (-2 * p.noise("length").uniform(one, kind))
        change = length * p.noise("change").normal(size, kind)
        return _within(p, child + change * (p.noise("where").uniform(size, kind) < self.mutated))


def _picked(members: Tensor, at: Tensor) -> Tensor:
    """Members [n, m, *shape] at places [n, k]."""
    return members[torch.arange(len(at), device=at.device)[:, None], at]


def _within(p: Problem, d: Tensor) -> Tensor:
    """The nearest of several points a row, d [n, m, *shape], within eps and the box."""
    sides = (side.repeat_interleave(d.shape[1], 0) for side in (p.eps, p.lo, p.hi))
    return p.norm.project(d.flatten(0, 1), *sides).view_as(d)

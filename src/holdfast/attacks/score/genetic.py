"""A genetic search over the legal rows of a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from holdfast.attacks.attack import Access, Attack, Problem, option
from holdfast.rng import Keys

MOST = 2**21  # numbers of the members of the rows that are bred together


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
        members = torch.cat([self._first(p, rows) for rows in self._parts(p)])
        return Population(members[:, 0], members, p.probes(members, "margin"))

    def step(self, p: Problem, s: Population, t: int) -> Population:
        children = torch.cat([self._children(p, s, rows) for rows in self._parts(p)])
        fitness, order = torch.cat([s.fitness, p.probes(children, "margin")], 1).topk(
            self.population, 1
        )
        both = ((rows, torch.cat([s.members[rows], children[rows]], 1)) for rows in self._parts(p))
        members = torch.cat([_picked(some, order[rows]) for rows, some in both])
        return Population(members[:, 0], members, fitness)

    def _parts(self, p: Problem) -> tuple[Tensor, ...]:
        """The rows, in parts whose members hold so many numbers at most."""
        few = max(1, MOST // (self.population * p.x[:1].numel() or 1))
        return torch.arange(len(p.x), device=p.x.device).split(few)

    def _first(self, p: Problem, rows: Tensor) -> Tensor:
        """The first members of these rows."""
        size, kind = (self.population, *p.x.shape[1:]), p.x.dtype
        some = p.noise("some").take(rows).uniform(size, kind) < 0.3
        drawn = p.noise("start").take(rows).normal(size, kind)
        members = _within(p, rows, p.eps[rows, None] * some * drawn)
        members[:, 0] = 0
        return members

    def _children(self, p: Problem, s: Population, rows: Tensor) -> Tensor:
        """Of these rows, [n, m, *shape], legal but for the repair."""
        m, size, kind = self.population, s.members.shape[1:], p.x.dtype
        one, members, fitness = (m, *[1] * (p.x.ndim - 1)), s.members[rows], s.fitness[rows]

        def noise(name: str) -> Keys:
            return p.noise(name).take(rows)

        drawn = (noise("pairs").uniform((4, m), torch.float64) * m).long()
        left, right = drawn[:, :2], drawn[:, 2:]
        fitter = fitness.gather(1, left.flatten(1)) >= fitness.gather(1, right.flatten(1))
        chosen = torch.where(fitter, left.flatten(1), right.flatten(1))
        a, b = _picked(members, chosen[:, :m]), _picked(members, chosen[:, m:])
        child = torch.where(noise("cross").uniform(size, kind) < 0.5, a, b)
        share = noise("between").uniform(one, kind)
        between = noise("kind").uniform(one, kind) < 0.3
        child = torch.where(between, a + share * (b - a), child)
        length = self.scale * p.eps[rows, None] * 10 ** (-2 * noise("length").uniform(one, kind))
        change = length * noise("change").normal(size, kind)
        child = child + change * (noise("where").uniform(size, kind) < self.mutated)
        return _within(p, rows, child)


def _picked(members: Tensor, at: Tensor) -> Tensor:
    """Members [n, m, *shape] at places [n, k]."""
    return members[torch.arange(len(at), device=at.device)[:, None], at]


def _within(p: Problem, rows: Tensor, d: Tensor) -> Tensor:
    """The nearest of several points a row, d [n, m, *shape], within eps and the box."""
    sides = (side[rows].repeat_interleave(d.shape[1], 0) for side in (p.eps, p.lo, p.hi))
    return p.norm.project(d.flatten(0, 1), *sides).view_as(d)

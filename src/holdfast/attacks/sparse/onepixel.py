"""One pixel: differential evolution of which few features change, and to what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from holdfast.attacks.attack import Access, Attack, Problem, option
from holdfast.attacks.shared.image_shape import ImageShape


class Population(NamedTuple):
    d: Tensor  # the point last asked about, [n, *shape]
    members: (
        Tensor  # [n, m, e, 4]: per feature its channel, row, column and new value, each from 0 to 1
    )
    fitness: Tensor  # their losses, [n, m]


@dataclass(frozen=True)
class OnePixel(Attack):
    """One pixel attack (Su et al. 2019, arXiv:1710.08864, section III-B: differential evolution
    without crossover).

    Cost: one forward a step and row, and one for the last point.
    Differs from the paper: eps counts features, so a member holds channels, rows, columns and
    values, not whole pixels; a child takes its parent's place at once, not at the end of a
    generation; what leaves the range is drawn anew; changes of one feature add up; the loss is
    the margin. The paper's run is `onepixel(steps=40000, population=400)`.
    """

    needs = Access.SCORES
    norms = frozenset({"l0"})

    steps: int = option(10000, "members tried")
    population: int = option(50, "members; a child has three others for parents", at_least=4)
    scale: float = option(0.5, "of the difference of two members that a third is moved by")

    def start(self, p: Problem) -> Population:
        widest = min(max(p.eps.flatten().tolist(), default=0), p.features)
        # Features come first, so that how many of them other rows have changes no draw.
        size = (max(int(widest), 1), self.population, 4)
        place, value = (
            p.noise("place").uniform(size, p.x.dtype),
            p.noise("value").normal(size, p.x.dtype),
        )
        value = (0.5 + 0.5 * value[..., 3:]).clamp(0, 1)
        members = torch.cat([place[..., :3], value], -1).transpose(1, 2)
        return Population(
            torch.zeros_like(p.x), members, p.x.new_full(members.shape[:2], -torch.inf)
        )

    def step(self, p: Problem, s: Population, t: int) -> Population:
        i = t % self.population
        child = s.members[:, i] if t < self.population else self.cross(p, s, i)
        d = self.paint(p, child)
        value = p.value(d, "margin")
        mine = torch.arange(self.population, device=d.device) == i
        up = mine & (value > s.fitness[:, i])[:, None]
        return Population(
            d,
            torch.where(up[..., None, None], child[:, None], s.members),
            torch.where(up, value[:, None], s.fitness),
        )

    def cross(self, p: Problem, s: Population, i: int) -> Tensor:
        """One member moved by the difference of two others, all three not the i-th: [n, e, 4]."""
        draws = p.noise("parents").uniform((self.population,), torch.float64)
        mine = torch.arange(self.population, device=draws.device) == i
        parents = draws.masked_fill(mine, torch.inf).topk(3, 1, largest=False).indices
        a, b, c = (
            s.members[torch.arange(len(draws), device=draws.device), parents[:, j]]
            for j in range(3)
        )
        child = a + self.scale * (b - c)
        return torch.where(
            (child < 0) | (child > 1),
            p.noise("anew").uniform(tuple(child.shape[1:]), a.dtype),
            child,
        )

    def paint(self, p: Problem, member: Tensor) -> Tensor:
        """The perturbation that a member [n, e, 4] describes, of its first eps features."""
        shape = ImageShape.of(p)
        sides = member.new_tensor([shape.c, shape.h, shape.w])
        place = (member[..., :3] * sides).long().minimum(sides.long() - 1)
        at = (place * place.new_tensor(shape.strides)).sum(-1)
        lo, hi = (part.flatten(1).gather(1, at) for part in (p.lo, p.hi))
        counts = torch.arange(at.shape[1], device=at.device) < p.eps.flatten().floor()[:, None]
        change = torch.where(counts, lo + member[..., 3] * (hi - lo), 0)
        d = torch.zeros_like(p.x).flatten(1).scatter_add(1, at, change).view_as(p.x)
        return d.clamp(p.lo, p.hi)  # no more features than eps: the nearest legal d

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
    # [n, m, e, 4]: per feature its channel, row, column and new value, each from 0 to 1; or
    # [n, m, e, 2 + c]: per pixel its row, column and new values
    members: Tensor
    fitness: Tensor  # their losses, [n, m]


@dataclass(frozen=True)
class OnePixel(Attack):
    """One pixel attack (Su et al. 2019, arXiv:1710.08864, section III-B: differential evolution
    without crossover).

    Cost: one forward a step and row, and one for the last point.
    Differs from the paper: unless the threat counts pixels, a member holds channels, rows, columns
    and values of features; a child takes its parent's place at once, not at the end of a
    generation; what leaves the range is drawn anew; changes of one feature add up; the loss is
    the margin. The paper's run is `onepixel(steps=40000, population=400)`.
    """

    needs = Access.SCORES
    norms = frozenset({"l0"})
    groups = True

    steps: int = option(10000, "members tried")
    population: int = option(50, "members; a child has three others for parents", at_least=4)
    scale: float = option(0.5, "of the difference of two members that a third is moved by")

    def start(self, p: Problem) -> Population:
        widest = min(max(p.eps.flatten().tolist(), default=0), p.features)
        axes, values = len(_axes(p)), 1 if not p.norm.group else ImageShape.of(p).c
        # Features come first, so that how many of them other rows have changes no draw.
        size = (max(int(widest), 1), self.population, axes + values)
        place, value = (
            p.noise("place").uniform(size, p.x.dtype),
            p.noise("value").normal(size, p.x.dtype),
        )
        value = (0.5 + 0.5 * value[..., axes:]).clamp(0, 1)
        members = torch.cat([place[..., :axes], value], -1).transpose(1, 2)
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
        """One member moved by the difference of two others, all three not the i-th."""
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
        """The perturbation that a member describes, of its first eps features or pixels."""
        axes = _axes(p)
        sides, strides = (member.new_tensor(part) for part in zip(*axes, strict=True))
        place = (member[..., : len(axes)] * sides).long().minimum(sides.long() - 1)
        first, value = (place * strides.long()).sum(-1), member[..., len(axes) :]
        channel = ImageShape.of(p).strides[0] * torch.arange(value.shape[-1], device=first.device)
        at = (first[..., None] + channel).flatten(1)
        lo, hi = (part.flatten(1).gather(1, at) for part in (p.lo, p.hi))
        counts = torch.arange(value.shape[1], device=at.device) < p.eps.flatten().floor()[:, None]
        counts = counts.repeat_interleave(value.shape[-1], 1)
        change = torch.where(counts, lo + value.flatten(1) * (hi - lo), 0)
        d = torch.zeros_like(p.x).flatten(1).scatter_add(1, at, change).view_as(p.x)
        return d.clamp(p.lo, p.hi)  # no more features than eps: the nearest legal d


def _axes(p: Problem) -> list[tuple[int, int]]:
    """The sides of an image that a place is chosen along, and how far features lie apart there:
    channels, rows and columns, or of whole pixels the last two."""
    shape = ImageShape.of(p)
    axes = list(zip((shape.c, shape.h, shape.w), shape.strides, strict=True))
    return axes[1:] if p.norm.group else axes

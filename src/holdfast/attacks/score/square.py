"""Square: random search that sets one square of the perturbation a query and keeps what lowers the
margin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from holdfast.attacks.attack import LOSSES, Attack, option
from holdfast.attacks.problem import Problem
from holdfast.attacks.shared.image_planes import Planes, halved
from holdfast.errors import SpecError
from holdfast.norms import wide
from holdfast.targets.target import Access


class Kept(NamedTuple):
    d: Tensor  # the best point so far, [n, *shape]
    value: Tensor  # its loss, [n]


@dataclass(frozen=True)
class Corners:
    """Linf: every feature stands at +eps or -eps, or where the box stops it."""

    least: ClassVar = 1
    odd: ClassVar = False

    def start(self, p: Problem, planes: Planes) -> Tensor:
        """Vertical stripes: one sign a plane and column."""
        signs = p.noise("stripes").signs((planes.c, 1, planes.w), p.x.dtype)
        return p.project(p.eps * p.steepest(planes.join(signs.expand(-1, -1, planes.h, -1), p.x)))

    def propose(self, p: Problem, planes: Planes, d: Tensor, rows: int, columns: int) -> Tensor:
        """One sign a plane in the window; where that changes nothing, the opposite."""
        u = p.noise("square").uniform((2 + planes.c,))
        at = planes.at(rows, columns, u[:, :2]).flatten(1)
        most = p.eps * p.steepest(torch.ones_like(d))
        lo, hi, most, old = (part.flatten(1).gather(1, at) for part in (p.lo, p.hi, most, d))
        pull = torch.where(u[:, 2:] < 0.5, -1, 1).repeat_interleave(rows * columns, 1) * most
        new = pull.clamp(lo, hi)
        idle = (new == old).all(1, keepdim=True)
        return d.flatten(1).scatter(1, at, torch.where(idle, (-pull).clamp(lo, hi), new)).view_as(d)


@dataclass(frozen=True)
class Bumps:
    """L2 and L1: two mounds of opposite sign in a window, paid for by what stood there and in a
    second window."""

    power: int  # of the norm
    fade: int  # how fast a mound falls off
    over: float = option(1.0, "how far a proposal exceeds the ball; the projection makes it sparse")

    least: ClassVar = 3
    odd: ClassVar = True

    def start(self, p: Problem, planes: Planes) -> Tensor:
        """A grid of five by five bumps."""
        a, b = max(planes.h // 5, 1), max(planes.w // 5, 1)
        m, n = planes.h // a, planes.w // b
        tiles = self.shapes(a, b, p.x).view(2, a, b)[
            p.noise("turns").uniform((1, m, n)).mul(2).long()
        ]
        tiles = tiles * p.noise("signs").signs((planes.c, m, n), p.x.dtype)[..., None, None]
        top, left = planes.h - m * a, planes.w - n * b
        sides = (left // 2, left - left // 2, top // 2, top - top // 2)
        image = pad(tiles.transpose(3, 4).reshape(-1, planes.c, m * a, n * b), sides)
        unit = normalize(planes.join(image, p.x).flatten(1), self.power)
        return p.project(p.eps * unit.view_as(p.x))

    def propose(self, p: Problem, planes: Planes, d: Tensor, rows: int, columns: int) -> Tensor:
        u = p.noise("square").uniform((5 + planes.c,))
        at, away = (planes.at(rows, columns, u[:, i : i + 2]).flatten(1) for i in (0, 2))
        flat = d.flatten(1)
        old = flat.gather(1, at)
        rest = flat.scatter(1, at, 0)
        paid = self.mass(old, planes) + self.mass(rest.gather(1, away), planes)
        free = (p.eps.flatten() ** self.power - self.mass(flat, planes).sum(1)).clamp_min(0)
        bump = self.shapes(rows, columns, d)[(u[:, 4] * 2).long()][:, None]
        bump = torch.where(u[:, 5:, None] < 0.5, -bump, bump)
        new = normalize(
            bump + normalize(old.view(len(d), planes.c, -1), self.power, -1), self.power, -1
        )
        new = self.over * new * (free[:, None] / planes.c + paid).pow(1 / self.power)[..., None]
        return p.project(rest.scatter(1, away, 0).scatter(1, at, new.flatten(1)).view_as(d))

    def mass(self, v: Tensor, planes: Planes) -> Tensor:
        """The power of the norm of each plane's part of v [n, c * k]: [n, c]."""
        return v.view(len(v), planes.c, -1).abs().pow(self.power).sum(2)

    def shapes(self, rows: int, columns: int, like: Tensor) -> Tensor:
        """A bump of norm 1 whose halves lie one above the other, and one whose halves lie side by
        side: [2, cells]."""
        upright, lying = self.halves(rows, columns, like), self.halves(columns, rows, like).T
        return normalize(torch.stack([upright.flatten(), lying.flatten()]), self.power)

    def halves(self, rows: int, columns: int, like: Tensor) -> Tensor:
        upper = self.mound(rows // 2, columns, like)
        return torch.cat([upper, -self.mound(rows - rows // 2, columns, like)])

    def mound(self, rows: int, columns: int, like: Tensor) -> Tensor:
        """Rings around the middle, each lower than the one within by its distance to the power
        -fade."""
        i, j = (torch.arange(k, device=like.device) for k in (rows, columns))
        ring = torch.maximum((i - rows // 2).abs()[:, None], (j - columns // 2).abs())
        falls = (
            torch.arange(max(rows, columns) // 2 + 1, 0, -1, device=like.device).to(like)
            ** -self.fade
        )
        return normalize(falls.cumsum(0).flip(0)[ring].flatten(), self.power, 0).view(rows, columns)


_RULES = {"linf": Corners(), "l2": Bumps(power=2, fade=2), "l1": Bumps(power=1, fade=4, over=3.0)}


@dataclass(frozen=True)
class Square(Attack):
    """Square Attack (Andriushchenko et al. 2020, arXiv:1912.00049, algorithms 1 to 3; L1 as in
    AutoAttack).

    Cost: one forward a step and row, and one for the start.
    Differs from the paper: every row draws a window of its own, which may touch the last row and
    column; where an image is not square, a window that does not fit becomes a rectangle of its
    area; an input with one axis is one row of pixels. In Linf a proposal that would change nothing
    has its signs flipped (the authors draw again). In L1 the overshoot of 3 is AutoAttack's for
    three planes, whatever their number.
    """

    needs = Access.SCORES
    norms: ClassVar = frozenset(_RULES)

    steps: int = option(5000, "proposals")
    p: float = option(0.8, "share of an image that the first squares cover")
    schedule: int = option(
        10000, "queries over which that share falls to p / 512, whatever the steps"
    )
    start_at: str = option(
        "stripes", "stripes (in L2 and L1 a grid of bumps), or best: the best point known before"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.start_at not in ("stripes", "best"):
            raise SpecError(f"square has start_at {self.start_at!r}; it is stripes or best.")
        if not 0 < self.p <= 1:
            raise SpecError(
                f"square has p {self.p}; it is a share of the image, above 0 and at most 1."
            )
        if self.schedule < 1:
            raise SpecError(
                f"square has schedule {self.schedule}; it is a number of queries, at least 1."
            )

    def start(self, p: Problem) -> Kept:
        fresh = self.start_at == "stripes"
        d = _RULES[p.norm.name].start(p, Planes.of(p)) if fresh else p.random_start("best")
        return Kept(d, p.value(d, "margin"))

    def step(self, p: Problem, s: Kept, t: int) -> Kept:
        rule, planes = _RULES[p.norm.name], Planes.of(p)
        d = rule.propose(p, planes, s.d, *planes.window(self.share(t), rule.least, rule.odd))
        value = p.value(d, "margin")
        up = value > s.value
        return Kept(torch.where(wide(up, d), d, s.d), torch.where(up, value, s.value))

    def share(self, t: int) -> float:
        """The share of an image that the square of step t covers."""
        return halved(self.p, t, self.schedule)


class Legs(NamedTuple):
    d: Tensor  # the best point so far, [n, *shape]
    value: Tensor  # its margin, [n]
    ahead: Tensor  # where the climb stands


@dataclass(frozen=True)
class Relay(Attack):
    """Square's random search and gradient ascent in turns, each going on from the best point of
    both.

    Each escapes where the other is stuck: on networks with masked gradients the two together need a
    fraction of the passes of either (docs/protocols.md).

    Cost: one forward a step and row, in climbs two and one backward; one forward for the start.
    """

    needs = Access.GRADIENTS
    norms: ClassVar = frozenset(_RULES)

    steps: int = option(4200, "proposals and gradient steps")
    climb: int = option(20, "gradient steps of a climb")
    leg: int = option(400, "proposals between two climbs")
    p: float = option(0.05, "share of an image that the first squares of a leg cover")
    step_size: float = option(
        0.25, "of every other climb, a fraction of eps; a fifth of it in those between"
    )
    loss: str = option("margin", "loss that is climbed", choices=LOSSES)
    start_at: str = option(
        "stripes", "stripes (in L2 and L1 a grid of bumps), or best: the best point known before"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        Square(p=self.p, start_at=self.start_at)
        if self.leg < 1 or self.climb < 1:
            raise SpecError(f"{self!r}: leg and climb are numbers of steps, at least 1 each.")

    @property
    def expected_passes(self) -> float:
        turns, rest = divmod(self.steps, self.climb + self.leg)
        return 1 + self.steps + 2 * (turns * self.climb + min(rest, self.climb))

    def start(self, p: Problem) -> Legs:
        fresh = self.start_at == "stripes"
        d = _RULES[p.norm.name].start(p, Planes.of(p)) if fresh else p.random_start("best")
        return Legs(d, p.value(d, "margin"), d)

    def step(self, p: Problem, s: Legs, t: int) -> Legs:
        turn, place = divmod(t, self.climb + self.leg)
        if place < self.climb:
            ahead = s.ahead if place else s.d
            _, g = p.gradient(ahead, self.loss)
            ahead = p.project(ahead + p.stride(g, self.step_size * (0.2 if turn % 2 else 1)))
            return self._keep(p, s, ahead, ahead)
        rule, planes = _RULES[p.norm.name], Planes.of(p)
        share = Square(p=self.p).share(place - self.climb)
        return self._keep(
            p, s, rule.propose(p, planes, s.d, *planes.window(share, rule.least, rule.odd)), s.ahead
        )

    def _keep(self, p: Problem, s: Legs, d: Tensor, ahead: Tensor) -> Legs:
        value = p.value(d, "margin")
        up = value > s.value
        return Legs(torch.where(wide(up, d), d, s.d), torch.where(up, value, s.value), ahead)

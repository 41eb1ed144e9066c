"""What Square proposes: a perturbation that differs in one window, by each norm's own rule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from holdfast.attacks.attack import Problem, option
from holdfast.attacks.shared.image_shape import ImageShape


def start_option() -> Any:
    """The field `start_at` of an attack."""
    return option(
        "stripes",
        "stripes (in L2 and L1 a grid of bumps), or best: the best point known before",
        choices=("stripes", "best"),
    )


def propose(rule: Any, p: Problem, d: Tensor, share: float) -> Tensor:
    """d with other values in a square that covers this share of an image, by the rule of the
    norm."""
    shape = ImageShape.of(p)
    return rule.paint(p, shape, d, *shape.window(share, rule.least, rule.odd))


class Corners:
    """Linf: every feature is at +eps or -eps, or where the box stops it."""

    least = 1  # pixels along the side of a window
    odd = False  # whether they are always odd

    def start(self, p: Problem) -> Tensor:
        """Vertical stripes: one sign a channel and column."""
        shape = ImageShape.of(p)
        signs = p.noise("stripes").signs((shape.c, 1, shape.w), p.x.dtype)
        return p.project(p.eps * p.steepest(shape.join(signs.expand(-1, -1, shape.h, -1), p.x)))

    def paint(self, p: Problem, shape: ImageShape, d: Tensor, rows: int, columns: int) -> Tensor:
        """One sign a channel in the window; where that changes nothing, the opposite."""
        u = p.noise("square").uniform((2 + shape.c,))
        at = shape.at(rows, columns, u[:, :2]).flatten(1)
        most = p.eps * p.steepest(torch.ones_like(d))
        lo, hi, most, old = (part.flatten(1).gather(1, at) for part in (p.lo, p.hi, most, d))
        pull = torch.where(u[:, 2:] < 0.5, -1, 1).repeat_interleave(rows * columns, 1) * most
        new = pull.clamp(lo, hi)
        unchanged = (new == old).all(1, keepdim=True)
        return (
            d.flatten(1)
            .scatter(1, at, torch.where(unchanged, (-pull).clamp(lo, hi), new))
            .view_as(d)
        )


@dataclass(frozen=True)
class Bumps:
    """L2 and L1: two mounds of opposite sign in a window, paid for by what was there and in a
    second window."""

    power: int  # of the norm
    fade: int  # how fast a mound flattens
    over: float = 1.0  # how far a proposal exceeds the ball; the projection makes it sparse

    least = 3  # see Corners
    odd = True

    def start(self, p: Problem) -> Tensor:
        """A grid of five by five bumps."""
        shape = ImageShape.of(p)
        a, b = max(shape.h // 5, 1), max(shape.w // 5, 1)
        m, n = shape.h // a, shape.w // b
        tiles = self.shapes(a, b, p.x).view(2, a, b)[
            p.noise("turns").uniform((1, m, n)).mul(2).long()
        ]
        tiles = tiles * p.noise("signs").signs((shape.c, m, n), p.x.dtype)[..., None, None]
        top, left = shape.h - m * a, shape.w - n * b
        sides = (left // 2, left - left // 2, top // 2, top - top // 2)
        image = pad(tiles.transpose(3, 4).reshape(-1, shape.c, m * a, n * b), sides)
        unit = normalize(shape.join(image, p.x).flatten(1), self.power)
        return p.project(p.eps * unit.view_as(p.x))

    def paint(self, p: Problem, shape: ImageShape, d: Tensor, rows: int, columns: int) -> Tensor:
        """A mound and its opposite in the window."""
        u = p.noise("square").uniform((5 + shape.c,))
        at, away = (shape.at(rows, columns, u[:, i : i + 2]).flatten(1) for i in (0, 2))
        flat = d.flatten(1)
        old = flat.gather(1, at)
        rest = flat.scatter(1, at, 0)
        paid = self.mass(old, shape) + self.mass(rest.gather(1, away), shape)
        free = (p.eps.flatten() ** self.power - self.mass(flat, shape).sum(1)).clamp_min(0)
        bump = self.shapes(rows, columns, d)[(u[:, 4] * 2).long()][:, None]
        bump = torch.where(u[:, 5:, None] < 0.5, -bump, bump)
        new = normalize(
            bump + normalize(old.view(len(d), shape.c, -1), self.power, -1), self.power, -1
        )
        new = self.over * new * (free[:, None] / shape.c + paid).pow(1 / self.power)[..., None]
        return p.project(rest.scatter(1, away, 0).scatter(1, at, new.flatten(1)).view_as(d))

    def mass(self, v: Tensor, shape: ImageShape) -> Tensor:
        """The power of the norm of each channel's part of v [n, c * k]: [n, c]."""
        return v.view(len(v), shape.c, -1).abs().pow(self.power).sum(2)

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
        heights = (
            torch.arange(max(rows, columns) // 2 + 1, 0, -1, device=like.device).to(like)
            ** -self.fade
        )
        return normalize(heights.cumsum(0).flip(0)[ring].flatten(), self.power, 0).view(
            rows, columns
        )


VARIANTS = {
    "linf": Corners(),
    "l2": Bumps(power=2, fade=2),
    "l1": Bumps(power=1, fade=4, over=3.0),
}

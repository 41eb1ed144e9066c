"""Sparse-RS for patches: random search over what a square shows and where it lies."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from holdfast.attacks.attack import Access, Attack, Problem, option
from holdfast.attacks.shared.image_shape import ImageShape
from holdfast.attacks.shared.random_search import Best, begin, halved, keep_better

# which steps move the patch: every fourth, every tenth where one class is the goal
_TURN, _AIMED = 4, 10
_SQUARES = 1000  # painted at the start, at most


@dataclass(frozen=True)
class PatchRS(Attack):
    """Sparse-RS for patches of each image's own (Croce et al. 2022, arXiv:2006.12834, its section
    on patches).

    A step paints one square of the patch in one colour, each channel at an end of what it may be,
    or moves the patch by up to three quarters of the image, less and less; what raises the margin
    is kept. For the threat `patch(side)`. In any other it paints the input itself and moves
    nothing.

    Cost: one forward a step and row, and one for the start.
    Differs from the paper: every row draws squares and places of its own; a move is a share of the
    places that there are; a square that would change nothing gets the opposite colour (the authors
    draw again); the start has at most as many random squares as pixels, not always 1,000; a
    targeted goal ascends its margin too, not its cross-entropy. The paper's alpha is 0.4, for a
    targeted goal 0.1.
    """

    needs = Access.SCORES
    norms = frozenset({"linf"})

    steps: int = option(10000, "proposals")
    alpha: float = option(
        0.4, "share of the patch that the first proposal paints", above=0, at_most=1
    )
    schedule: int = option(
        10000,
        "queries over which that share falls to alpha / 512 and the moves to 0",
        at_least=1,
    )

    def start(self, p: Problem) -> Best:
        shape, first = _pixels(p)
        place = 2 * p.noise("place").uniform((2,), p.x.dtype)[:, :first] - 1
        painted = shape.join(_painted(p, shape), p.x[:, first:])
        unit = torch.cat([place, painted.flatten(1)], 1)
        return begin(p, p.project(p.eps * unit.view_as(p.x)))

    def step(self, p: Problem, s: Best, t: int) -> Best:
        shape, first = _pixels(p)
        moves = first > 0 and (t + 1) % (_TURN if p.goal is None else _AIMED) == 0
        d = p.project(self._move(p, s.d, t) if moves else self._paint(p, shape, first, s.d, t))
        return keep_better(p, s, d)

    def share(self, t: int) -> float:
        """The share of the patch that step t paints."""
        return halved(self.alpha, t, self.schedule)

    def _move(self, p: Problem, d: Tensor, t: int) -> Tensor:
        by = 1.5 * max(1 - t / self.schedule, 0) * (2 * p.noise("move").uniform((2,), d.dtype) - 1)
        return torch.cat([d[:, :2] + p.eps * by, d[:, 2:]], 1)

    def _paint(self, p: Problem, shape: ImageShape, first: int, d: Tensor, t: int) -> Tensor:
        rows, columns = shape.window(self.share(t), 1, odd=False)
        u = p.noise("square").uniform((2 + shape.c,))
        at = first + shape.at(rows, columns, u[:, :2]).flatten(1)
        up, flat = (u[:, 2:] < 0.5).repeat_interleave(rows * columns, 1), d.flatten(1)
        unchanged = (up == (flat.gather(1, at) > 0)).all(1, keepdim=True)
        unit = torch.where(up ^ unchanged, 1, -1).to(d)
        return flat.scatter(1, at, p.eps.flatten(1) * unit).view_as(d)


def _pixels(p: Problem) -> tuple[ImageShape, int]:
    """The pixels to paint, and how many numbers come before them: the place, or none."""
    square = p.threat.spatial and p.threat.spatial.square
    if square is None:
        return ImageShape.of(p), 0
    c, h, w = square
    return ImageShape(c, h, w, (h * w, w, 1)), 2


def _painted(p: Problem, shape: ImageShape) -> Tensor:
    """Small squares of random colours one over the other, -1 and 1: [n, c, h, w]."""
    c, h, w, _ = shape
    row, column = (torch.arange(k, device=p.x.device) for k in (h, w))
    image = p.noise("ground").signs((c, 1, 1), p.x.dtype).expand(-1, -1, h, w)
    most = max(math.ceil(math.sqrt(min(h, w))) - 1, 1)
    for i in range(min(h * w, _SQUARES)):
        u = p.noise("squares").fold(i).uniform((3 + c,), p.x.dtype)
        side = 1 + (u[:, 0] * most).long()
        top, left = ((u[:, j] * (k - side + 1)).long() for j, k in ((1, h), (2, w)))
        tall, broad = (
            ((at >= a[:, None]) & (at < (a + side)[:, None]))
            for at, a in ((row, top), (column, left))
        )
        within = (tall[:, :, None] & broad[:, None])[:, None]
        image = torch.where(
            within, torch.where(u[:, 3:] < 0.5, -1, 1).to(image)[..., None, None], image
        )
    return image

"""Ascent from the best point, with a step that halves where checkpoints see no progress: what
Auto-PGD and its kin share (arXiv:2003.01690, section 3)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from holdfast.attacks.problem import Problem
from holdfast.norms import wide


class Climb(NamedTuple):
    d: Tensor  # the current point, [n, *shape]
    before: Tensor  # the point before it
    g: Tensor  # gradient at d
    value: Tensor  # loss at d, [n]
    best: Tensor  # the point of the highest loss so far, its gradient and its loss
    best_g: Tensor
    best_value: Tensor
    checked: Tensor  # what the last checkpoint saw: the best loss; in L1 the sparsity of best, [n]
    rises: Tensor  # steps since then that raised the loss, [n]
    halved: Tensor  # whether that checkpoint halved the step, [n] bool
    size: Tensor  # step as a fraction of the radius, [n]

    @staticmethod
    def at(d: Tensor, value: Tensor, g: Tensor, size: float) -> Climb:
        """A climb that begins at d."""
        never = torch.zeros_like(value)
        return Climb(d, d, g, value, d, g, value, value, never, never == 0, never + size)

    def advanced(self, d: Tensor, value: Tensor, g: Tensor) -> Climb:
        """On to d, of this loss and gradient; the best is noted."""
        up = value > self.best_value
        return self._replace(
            d=d,
            before=self.d,
            g=g,
            value=value,
            best=torch.where(wide(up, d), d, self.best),
            best_g=torch.where(wide(up, d), g, self.best_g),
            best_value=torch.where(up, value, self.best_value),
            rises=self.rises + (value > self.value),
        )

    def back(self, rows: Tensor) -> Climb:
        """These rows ([n] bool) go on from their best point."""
        at = wide(rows, self.d)
        return self._replace(
            d=torch.where(at, self.best, self.d), g=torch.where(at, self.best_g, self.g)
        )


def checkpoints(steps: int) -> list[int]:
    """Steps after which progress is checked, after a leading 0: 0, 22, 41, 57, ... of 100."""
    window, shrink, least = (max(int(share * steps), 1) for share in (0.22, 0.03, 0.06))
    marks = [0]
    while marks[-1] + window <= steps:
        marks.append(marks[-1] + window)
        window = max(window - shrink, least)
    return marks


def check(s: Climb, steps: int, t: int, rho: float) -> tuple[Tensor | None, Climb]:
    """Which rows halve their step after step t ([n] bool; None: no checkpoint), and the climb,
    those rows back at their best point."""
    marks = checkpoints(steps)
    if t + 1 not in marks:
        return None, s
    window = t + 1 - marks[marks.index(t + 1) - 1]
    halve = (s.rises <= rho * window) | ~s.halved & (s.checked >= s.best_value)
    size = s.size.where(~halve, s.size / 2)
    s = s._replace(checked=s.best_value, rises=s.rises * 0, halved=halve, size=size)
    return halve, s.back(halve)


def stage(steps: int, t: int, widest: float = 3.0) -> tuple[int, int, float]:
    """The first step of the stage of step t, its number of steps and its radius in eps: the widest
    for the first 0.3 of the steps, then halfway to 1, and 1 for the last 0.4."""
    part = int(0.3 * steps)
    for first, radius in ((0, widest), (part, (widest + 1) / 2)):
        if t < first + part:
            return first, part, radius
    return 2 * part, steps - 2 * part, 1.0


def onward(p: Problem, s: Climb, t: int, eps: Tensor) -> Tensor:
    """Auto-PGD's next point: a step of steepest ascent, and a quarter of the move before it."""

    def project(d: Tensor) -> Tensor:
        return p.norm.project(d, eps, p.lo, p.hi)

    ahead = project(s.d + wide(s.size, s.d) * eps * p.steepest(s.g))
    pull = 0.75 if t else 1.0
    return project(s.d + pull * (ahead - s.d) + (1 - pull) * (s.d - s.before))

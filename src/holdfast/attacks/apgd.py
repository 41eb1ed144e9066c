"""Auto-PGD: momentum, and a step size that halves itself when progress stalls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from holdfast.attacks.attack import Attack
from holdfast.attacks.problem import Problem
from holdfast.norms import wide
from holdfast.targets.target import Access


class Climb(NamedTuple):
    d: Tensor  # the current point, [n, *shape]
    before: Tensor  # the point before it
    g: Tensor  # gradient at d
    value: Tensor  # loss at d, [n]
    best: Tensor  # the point of the highest loss so far, its gradient and its loss
    best_g: Tensor
    best_value: Tensor
    checked: Tensor  # best loss at the last checkpoint, [n]
    rises: Tensor  # steps since then that raised the loss, [n]
    halved: Tensor  # whether that checkpoint halved the step, [n] bool
    size: Tensor  # step as a fraction of eps, [n]


@dataclass(frozen=True)
class APGD(Attack):
    """Auto-PGD (Croce and Hein 2020, arXiv:2003.01690, algorithm 1).

    Cost: one forward and one backward a step and row, and one of each for the start.
    Differs from the authors' code: the first comparison of losses is with the start's, not with 0.
    """

    needs = Access.GRADIENTS
    norms: ClassVar = frozenset({"linf", "l2"})

    steps: int = 100  # gradient steps
    loss: str = "ce"  # ascended: ce, margin, dlr, mifpe
    rho: float = 0.75  # halve the step where at most this share of the steps raised the loss

    def start(self, p: Problem) -> Climb:
        d = p.random_start("sphere")
        value, g = p.gradient(d, self.loss)
        never = torch.zeros_like(value)
        return Climb(d, d, g, value, d, g, value, value, never, never == 0, never + 2)

    def step(self, p: Problem, s: Climb, t: int) -> Climb:
        ahead = p.project(s.d + wide(s.size, s.d) * p.eps * p.steepest(s.g))
        pull = 0.75 if t else 1.0
        d = p.project(s.d + pull * (ahead - s.d) + (1 - pull) * (s.d - s.before))
        value, g = p.gradient(d, self.loss)
        up = value > s.best_value
        s = s._replace(
            d=d,
            before=s.d,
            g=g,
            value=value,
            best=torch.where(wide(up, d), d, s.best),
            best_g=torch.where(wide(up, d), g, s.best_g),
            best_value=torch.where(up, value, s.best_value),
            rises=s.rises + (value > s.value),
        )
        windows = self.checkpoints()
        return self._check(s, t + 1 - windows[windows.index(t + 1) - 1]) if t + 1 in windows else s

    def checkpoints(self) -> list[int]:
        """Steps after which progress is checked, after a leading 0: 0, 22, 41, 57, ... of 100."""
        window, shrink, least = (max(int(share * self.steps), 1) for share in (0.22, 0.03, 0.06))
        marks = [0]
        while marks[-1] + window <= self.steps:
            marks.append(marks[-1] + window)
            window = max(window - shrink, least)
        return marks

    def _check(self, s: Climb, window: int) -> Climb:
        stalled = ~s.halved & (s.checked >= s.best_value)
        halve = (s.rises <= self.rho * window) | stalled
        at = wide(halve, s.d)
        return s._replace(
            d=torch.where(at, s.best, s.d),
            g=torch.where(at, s.best_g, s.g),
            checked=s.best_value,
            rises=torch.zeros_like(s.rises),
            halved=halve,
            size=torch.where(halve, s.size / 2, s.size),
        )

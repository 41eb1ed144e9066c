"""Auto conjugate gradient: Auto-PGD's schedule along conjugate directions, which visit more of the ball."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from holdfast.attacks import pace
from holdfast.attacks.attack import Attack
from holdfast.attacks.problem import Problem
from holdfast.norms import scaled, wide
from holdfast.targets.target import Access


class Conjugate(NamedTuple):
    d: Tensor  # the current point, [n, *shape]
    g: Tensor  # gradient at d
    before: Tensor  # gradient at the point before
    way: Tensor  # direction that led to d, of any length
    value: Tensor  # loss at d, [n]
    best: Tensor  # the same at the point of the highest loss so far
    best_g: Tensor
    best_before: Tensor
    best_way: Tensor
    best_value: Tensor
    checked: Tensor  # best loss at the last checkpoint, [n]
    rises: Tensor  # steps since then that raised the loss, [n]
    halved: Tensor  # whether that checkpoint halved the step, [n] bool
    size: Tensor  # step as a fraction of eps, [n]


@dataclass(frozen=True)
class ACG(Attack):
    """Auto conjugate gradient attack (Yamamura et al. 2022, arXiv:2206.09628, algorithm 1).

    Cost: one forward and one backward a step and row, and one of each for the start.
    Differs from the paper: the start is uniform in the ball, not its centre, so that restarts differ; the first
    comparison of losses is with the start's; where the gradient has not changed, the next direction is the gradient.
    """

    needs = Access.GRADIENTS
    norms: ClassVar = frozenset({"linf", "l2"})

    steps: int = 100  # gradient steps
    loss: str = "margin"  # ascended: ce, margin, dlr, mifpe
    rho: float = 0.75  # halve the step where at most this share of the steps raised the loss

    def start(self, p: Problem) -> Conjugate:
        d = p.random_start("ball")
        value, g = p.gradient(d, self.loss)
        here = (d, g, g, torch.zeros_like(g), value)
        never = torch.zeros_like(value)
        return Conjugate._make((*here, *here, value, never, never == 0, never + 2))

    def step(self, p: Problem, s: Conjugate, t: int) -> Conjugate:
        way = scaled(s.g + wide(_beta(s.g, s.before, s.way), s.g) * s.way)
        d = p.project(s.d + wide(s.size, s.d) * p.eps * p.steepest(way))
        value, g = p.gradient(d, self.loss)
        here, best = (d, g, s.g, way, value), s[5:10]
        kept = _choose(value > s.best_value, here, best)
        s = Conjugate._make((*here, *kept, s.checked, s.rises + (value > s.value), s.halved, s.size))
        halve, s = pace.check(s, self.steps, t, self.rho)
        return s if halve is None else Conjugate._make((*_choose(halve, s[5:9], s[:4]), *s[4:]))


def _beta(g: Tensor, before: Tensor, way: Tensor) -> Tensor:
    """Hestenes and Stiefel's share of the last direction, not below 0: [n]. Any length of `way` gives one sum."""
    turn = (before - g).flatten(1).double()  # in double, for squares of tiny gradients
    along = (way.flatten(1) * turn).sum(1)
    return ((g.flatten(1) * turn).sum(1) / torch.where(along == 0, torch.inf, along)).neg().clamp_min(0).to(g.dtype)


def _choose(at: Tensor, new: tuple[Tensor, ...], old: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(torch.where(wide(at, b), a, b) for a, b in zip(new, old, strict=True))

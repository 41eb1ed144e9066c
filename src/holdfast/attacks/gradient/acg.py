"""Auto conjugate gradient: Auto-PGD's schedule along conjugate directions, which visit more of the
ball."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from holdfast.attacks.attack import LOSSES, Access, Attack, Problem, option
from holdfast.attacks.shared.checkpoints import check
from holdfast.norms import L2, wide


class Conjugate(NamedTuple):
    d: Tensor  # the current point, [n, *shape]
    g: Tensor  # gradient at d, of length 1
    before: Tensor  # gradient at the point before
    way: Tensor  # direction that led to d
    value: Tensor  # loss at d, [n]
    best_d: Tensor  # the same at the point of the highest loss so far
    best_g: Tensor
    best_before: Tensor
    best_way: Tensor
    best_value: Tensor
    checked: Tensor  # best loss at the last checkpoint, [n]
    rises: Tensor  # steps since then that raised the loss, [n]
    halved: Tensor  # whether that checkpoint halved the step, [n] bool
    size: Tensor  # step as a fraction of eps, [n]


_POINT = ("d", "g", "before", "way")  # what goes back to the best point


@dataclass(frozen=True)
class ACG(Attack):
    """Auto conjugate gradient attack (Yamamura et al. 2022, arXiv:2206.09628, algorithm 1).

    Cost: one forward and one backward a step and row, and one of each for the start.
    Differs from the paper: the start is uniform in the ball, not its centre, so that restarts
    differ; the first comparison of losses is with the start's; gradients have length 1, or the
    logits' scale would turn the path; where one has not turned, the next direction is its own.
    """

    needs = Access.GRADIENTS
    norms: ClassVar = frozenset({"linf", "l2"})

    steps: int = option(100, "gradient steps")
    loss: str = option("margin", "loss that is ascended", choices=LOSSES)
    rho: float = option(
        0.75,
        "halve the step where at most this share of the steps raised the loss",
        at_least=0,
        at_most=1,
    )

    def start(self, p: Problem) -> Conjugate:
        d = p.random_start("ball")
        value, g = self.ask(p, d)
        none, never = torch.zeros_like(g), torch.zeros_like(value)
        return Conjugate(
            d, g, g, none, value, d, g, g, none, value, value, never, never == 0, never + 2
        )

    def step(self, p: Problem, s: Conjugate, t: int) -> Conjugate:
        way = L2.steepest(s.g + wide(_beta(s.g, s.before, s.way), s.g) * s.way)
        d = p.project(s.d + wide(s.size, s.d) * p.eps * p.steepest(way))
        value, g = self.ask(p, d)
        s = s._replace(
            d=d, g=g, before=s.g, way=way, value=value, rises=s.rises + (value > s.value)
        )
        up = value > s.best_value
        s = _copy(s, wide(up, d), {f"best_{part}": part for part in _POINT})
        s = s._replace(best_value=torch.where(up, value, s.best_value))
        halve, s = check(s, self.steps, t, self.rho)
        return (
            s
            if halve is None
            else _copy(s, wide(halve, d), {part: f"best_{part}" for part in _POINT})
        )

    def ask(self, p: Problem, d: Tensor) -> tuple[Tensor, Tensor]:
        """The loss, and the direction of its gradient, at length 1."""
        value, g = p.gradient(d, self.loss)
        return value, L2.steepest(g)


def _beta(g: Tensor, before: Tensor, way: Tensor) -> Tensor:
    """Hestenes and Stiefel's share of the last direction, not below 0: [n]."""
    turn = (before - g).flatten(1)
    along = (way.flatten(1) * turn).sum(1)
    share = -(g.flatten(1) * turn).sum(1) / torch.where(along == 0, 1, along)
    return torch.where(turn.abs().amax(1) > 1e-4, share, 0).clamp_min(0)  # less is rounding


def _copy(s: Conjugate, at: Tensor, parts: dict[str, str]) -> Conjugate:
    """Rows `at` of some parts of the state taken from others."""
    return s._replace(
        **{to: torch.where(at, getattr(s, of), getattr(s, to)) for to, of in parts.items()}
    )

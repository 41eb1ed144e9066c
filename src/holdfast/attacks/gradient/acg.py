"""Auto conjugate gradient: Auto-PGD's schedule along conjugate directions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from holdfast.attacks.attack import EVERY_LOSS, L2, Access, Attack, Problem, option, wide
from holdfast.attacks.shared.checkpoints import Climb, check


class Conjugate(NamedTuple):
    climb: Climb  # its gradients have length 1
    turn: Tensor  # [n, 2, *shape]: gradient at the point before, and direction that led from there
    best_turn: Tensor  # the same of the best point


@dataclass(frozen=True)
class ACG(Attack):
    """Auto conjugate gradient attack (Yamamura et al. 2022, arXiv:2206.09628, algorithm 1).

    Cost: one forward and one backward a step and row, and one of each for the start.
    Differs from the paper: the start is uniform in the ball, not its centre, so that restarts
    differ; the first comparison of losses is with the start's; gradients have length 1, or the
    logits' scale would turn the path; where one has not turned, the next direction is its own.
    """

    needs = Access.GRADIENTS
    norms = frozenset({"linf", "l2"})

    steps: int = option(100, "gradient steps")
    loss: str = option("margin", "loss that is ascended", choices=EVERY_LOSS)
    rho: float = option(0.75, "halve where at most this share of steps rose", at_least=0, at_most=1)

    def start(self, p: Problem) -> Conjugate:
        d = p.random_start("ball")
        value, g = p.gradient(d, self.loss)
        s = Climb.at(d, value, L2.steepest(g), size=2)
        turn = torch.stack([s.g, torch.zeros_like(s.g)], 1)
        return Conjugate(s, turn, turn)

    def step(self, p: Problem, s: Conjugate, t: int) -> Conjugate:
        c, (before, direction) = s.climb, s.turn.unbind(1)
        direction = L2.steepest(c.g + wide(_beta(c.g, before, direction), c.g) * direction)
        turn = torch.stack([c.g, direction], 1)
        d = p.project(c.d + wide(c.size, c.d) * p.eps * p.steepest(direction))
        value, g = p.gradient(d, self.loss)
        best = torch.where(wide(value > c.best_value, turn), turn, s.best_turn)
        halve, c = check(c.advanced(d, value, L2.steepest(g)), self.steps, t, self.rho)
        if halve is not None:
            turn = torch.where(wide(halve, turn), best, turn)
        return Conjugate(c, turn, best)


def _beta(g: Tensor, before: Tensor, direction: Tensor) -> Tensor:
    """Hestenes and Stiefel's share of the last direction, not below 0: [n]."""
    turn = (before - g).flatten(1)
    along = (direction.flatten(1) * turn).sum(1)
    share = -(g.flatten(1) * turn).sum(1) / torch.where(along == 0, 1, along)
    return torch.where(turn.abs().amax(1) > 1e-4, share, 0).clamp_min(0)  # less is rounding

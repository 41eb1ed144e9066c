"""VFGA: one more feature a step, by the best of random moves of the two features that promise most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from holdfast.attacks.attack import Attack
from holdfast.attacks.problem import Problem
from holdfast.errors import SpecError
from holdfast.norms import wide
from holdfast.targets.target import Access


@dataclass(frozen=True)
class VFGA(Attack):
    """Voting folded Gaussian attack (Hajri et al. 2020, arXiv:2011.12423, algorithm 2).

    A row has at most as many changed features as there are steps.

    Cost: one forward and one backward a step and row, and two forwards a draw; one forward for the last point.
    Differs from the paper: a row whose next feature would be one too many (past eps, or no fewer than the best point
    found has) begins again at x with fresh draws.
    """

    needs = Access.GRADIENTS
    norms: ClassVar = frozenset({"l0"})
    bounded: ClassVar = False

    steps: int = 100  # features changed, beginnings anew included
    draws: int = 10  # moves tried of the feature to raise, and as many of that to lower
    loss: str = "ce"  # ascended: ce, margin, dlr, mifpe

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.draws < 1:
            raise SpecError(f"vfga has draws {self.draws}, but a vote needs at least 1.")

    def start(self, p: Problem) -> Tensor:
        return torch.zeros_like(p.x)

    def step(self, p: Problem, s: Tensor, t: int) -> Tensor:
        d = s
        _, g = p.gradient(d, self.loss)
        lengths = p.noise("move").normal((2 * self.draws,), d.dtype).abs()
        best, value = d, torch.full_like(lengths[:, 0], -torch.inf)
        for j in range(2 * self.draws):
            room = p.lo if j % 2 else p.hi
            gain = (g * room).masked_fill(d != 0, -torch.inf).flatten(1)
            at = gain.argmax(1, keepdim=True)
            move = torch.zeros_like(gain).scatter(1, at, room.flatten(1).gather(1, at) * lengths[:, j : j + 1])
            tried = (d + move.view_as(d)).clamp(p.lo, p.hi)
            found = p.value(tried, self.loss)
            up = found > value
            best, value = torch.where(wide(up, d), tried, best), torch.where(up, found, value)
        over = p.norm.size(best) + 1 > (p.best()[1] - 1).minimum(p.eps.flatten())
        return torch.where(wide(over, d), 0, best)

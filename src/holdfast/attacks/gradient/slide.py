"""SLIDE: sparse descent in L1, along the few steepest features at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from holdfast.attacks.attack import LOSSES, Access, Attack, Problem, option
from holdfast.norms import sparse


@dataclass(frozen=True)
class SLIDE(Attack):
    """Sparse L1 descent attack (Tramer and Boneh 2019, arXiv:1904.13000, algorithm 1).

    Cost: one forward and one backward a step and row, and one forward for the last point.
    Differs from the paper: the projection onto ball and box is exact; features at the box that are
    steeper than those that step stay there; the quantile counts whole features; the step is a share
    of eps.
    """

    needs = Access.GRADIENTS
    norms = frozenset({"l1"})

    steps: int = option(100, "gradient steps")
    step_size: float = option(0.1, "fraction of eps", above=0)
    quantile: float = option(
        0.99, "share of the features that a step leaves alone", at_least=0, at_most=1
    )
    loss: str = option("ce", "loss that is ascended", choices=LOSSES)

    def start(self, p: Problem) -> Tensor:
        return p.random_start("sphere")

    def step(self, p: Problem, s: Tensor, t: int) -> Tensor:
        _, g = p.gradient(s, self.loss)
        k = torch.full_like(g.flatten(1)[:, 0], (1 - self.quantile) * p.features)
        room = torch.where(g > 0, p.hi - s, s - p.lo)
        return p.project(s + self.step_size * p.eps * sparse(g, k, room))

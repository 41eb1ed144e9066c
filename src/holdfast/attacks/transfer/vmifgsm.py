"""VMI-FGSM: momentum on gradients that are corrected by how they differ nearby."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from holdfast.attacks.attack import LOSSES, Problem, option
from holdfast.attacks.shared.momentum import MomentumAttack, MomentumState


class Tuned(NamedTuple):
    momentum: MomentumState
    excess: Tensor  # the mean gradient of the neighbours at the last point, over its own


@dataclass(frozen=True)
class VMIFGSM(MomentumAttack):
    """Variance tuning (Wang and He 2021, arXiv:2103.15571, algorithm 1).

    Cost: `neighbours` + 1 forwards and backwards a step and row, and one forward for the last
    point.
    Differs from the paper: neighbours are drawn from the ball of the threat's own norm, and stay in
    the box.
    """

    neighbours: int = option(20, "random points around each iterate", at_least=1)
    radius: float = option(1.5, "how far they lie at most, in multiples of eps", at_least=0)
    loss: str = option("ce", "loss that is ascended", choices=LOSSES)

    def start(self, p: Problem) -> Tuned:
        return Tuned(super().start(p), torch.zeros_like(p.x))

    def step(self, p: Problem, s: Tuned, t: int) -> Tuned:
        _, g = p.gradient(s.momentum.d, self.loss)
        nearby = torch.zeros_like(g)
        for i in range(self.neighbours):
            u = p.norm.sample(p.noise(f"neighbour {i}"), p.x)
            d = (s.momentum.d + self.radius * p.eps * u).clamp(p.lo, p.hi)
            nearby += p.gradient(d, self.loss, within=True)[1]
        return Tuned(self.follow(p, s.momentum, g + s.excess), nearby / self.neighbours - g)

"""MI-FGSM and NI-FGSM: sign ascent with momentum, the base of the attacks meant for other
models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from holdfast.attacks.attack import LOSSES, Problem, option
from holdfast.attacks.shared.momentum import MomentumAttack, MomentumState


@dataclass(frozen=True)
class MIFGSM(MomentumAttack):
    """Momentum iterative fast gradient sign method (Dong et al. 2018, arXiv:1710.06081).

    `nifgsm` asks for the gradient one step ahead (Lin et al. 2020, arXiv:1908.06281).
    Cost: one forward and one backward a step and row, and one forward for the last point.
    Differs from the paper: the look ahead is a step in the norm's own direction, and stays legal.
    """

    also: ClassVar = {"nifgsm": {"ahead": 1.0}}

    ahead: float = option(
        0.0, "how far along the past gradients the next is asked for, in steps", at_least=0
    )
    loss: str = option("ce", "loss that is ascended", choices=LOSSES)

    def step(self, p: Problem, s: MomentumState, t: int) -> MomentumState:
        d = s.d
        if self.ahead:
            d = p.project(d + p.stride(s.v, self.ahead * self.decay * self.step_size))
        _, g = p.gradient(d, self.loss)
        return self.follow(p, s, g)

"""SI-FGSM: the mean gradient over copies of an input that fade to black."""

from __future__ import annotations

from dataclasses import dataclass

from holdfast.attacks.attack import LOSSES, Problem, option
from holdfast.attacks.shared.momentum import MomentumAttack, MomentumState
from holdfast.attacks.shared.transformed import mean_gradient


@dataclass(frozen=True)
class SIFGSM(MomentumAttack):
    """Scale invariant method (Lin et al. 2020, arXiv:1908.06281, algorithm 1 without its look
    ahead).

    Copy i has the input's brightness over the lower bound divided by 2 ** i.
    Cost: `copies` + 1 forwards and backwards a step and row, and one forward for the last point.
    """

    copies: int = option(4, "faded copies, besides the input itself", at_least=0)
    loss: str = option("ce", "loss that is ascended", choices=LOSSES)

    def step(self, p: Problem, s: MomentumState, t: int) -> MomentumState:
        black = p.target.bounds.low
        g = mean_gradient(
            p, s.d, self.loss, self.copies, lambda x, i: black + (x - black) / 2 ** (i + 1)
        )
        return self.follow(p, s, g)

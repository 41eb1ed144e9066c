"""Auto-PGD: gradient ascent from the best point, with a step size that follows its progress."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from holdfast.attacks.attack import EVERY_LOSS, Access, Attack, Problem, option
from holdfast.attacks.gradient.apgd_l1 import SparseSteps
from holdfast.attacks.shared.checkpoints import Climb, check, onward


class HalvedSteps:
    """Linf and L2: momentum, and a step that halves where progress stalls."""

    def start(self, a: APGD, p: Problem) -> Climb:
        d = p.random_start("sphere")
        return Climb.at(d, *a.ask(p, d), size=2)

    def step(self, a: APGD, p: Problem, s: Climb, t: int) -> Climb:
        d = onward(p, s, t, p.eps)
        return check(s.advanced(d, *a.ask(p, d)), a.steps, t, a.rho)[1]


@dataclass(frozen=True)
class APGD(Attack):
    """Auto-PGD (Croce and Hein 2020, arXiv:2003.01690, algorithm 1; in L1: 2021, arXiv:2103.01208,
    algorithm 1).

    Cost: `eot` forwards and backwards a step and row, and as many for the start.
    Differs from the authors' code: the first comparison of losses is with the start's, not with 0.
    """

    needs = Access.GRADIENTS
    variants: ClassVar = {"linf": HalvedSteps(), "l2": HalvedSteps(), "l1": SparseSteps()}

    steps: int = option(100, "gradient steps")
    loss: str = option("ce", "loss that is ascended", choices=EVERY_LOSS)
    rho: float = option(
        0.75,
        "halve where at most this share of steps raised the loss; not in L1",
        at_least=0,
        at_most=1,
    )
    eot: int = option(1, "gradients of a step, of which the mean is taken", at_least=1)

    def start(self, p: Problem) -> Climb:
        return self.variant(p).start(self, p)

    def step(self, p: Problem, s: Climb, t: int) -> Climb:
        return self.variant(p).step(self, p, s, t)

    def ask(self, p: Problem, d: Tensor) -> tuple[Tensor, Tensor]:
        """The loss and its gradient; where the model draws noise, means over `eot` draws (Athalye
        et al. 2018, arXiv:1802.00420)."""
        value, g = p.gradient(d, self.loss)
        for _ in range(self.eot - 1):
            again = p.gradient(d, self.loss)
            value, g = value + again[0], g + again[1]
        return value / self.eot, g / self.eot

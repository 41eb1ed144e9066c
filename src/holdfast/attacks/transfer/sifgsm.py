"""SI-FGSM: the mean gradient over copies of an input that fade to black."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from holdfast.attacks.attack import LOSSES, Access, Attack, Problem, option
from holdfast.attacks.shared.momentum import Moving, begin, check, follow
from holdfast.attacks.shared.transformed import mean_gradient


@dataclass(frozen=True)
class SIFGSM(Attack):
    """Scale invariant method (Lin et al. 2020, arXiv:1908.06281, algorithm 1 without its look
    ahead).

    Copy i has the input's brightness over the lower bound divided by 2 ** i.
    Cost: `copies` + 1 forwards and backwards a step and row, and one forward for the last point.
    """

    needs = Access.GRADIENTS
    norms: ClassVar = frozenset({"linf", "l2"})

    steps: int = option(10, "gradient steps")
    step_size: float = option(0.1, "fraction of eps")
    decay: float = option(1.0, "share of the past gradients kept")
    copies: int = option(4, "faded copies, beside the input itself")
    loss: str = option("ce", "loss that is ascended", choices=LOSSES)

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, copies=0)

    def start(self, p: Problem) -> Moving:
        return begin(p)

    def step(self, p: Problem, s: Moving, t: int) -> Moving:
        black = p.target.bounds.low
        g = mean_gradient(
            p, s.d, self.loss, self.copies, lambda x, i: black + (x - black) / 2 ** (i + 1)
        )
        return follow(p, s, g, self)

"""MI-FGSM and NI-FGSM: sign ascent with momentum, the base of the attacks meant for other
models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from holdfast.attacks.attack import LOSSES, Access, Attack, Problem, option
from holdfast.attacks.shared.momentum import Moving, begin, check, follow


@dataclass(frozen=True)
class MIFGSM(Attack):
    """Momentum iterative fast gradient sign method (Dong et al. 2018, arXiv:1710.06081).

    `nifgsm` asks for the gradient one step ahead (Lin et al. 2020, arXiv:1908.06281).
    Cost: one forward and one backward a step and row, and one forward for the last point.
    Differs from the paper: the look ahead is a step in the norm's own direction, and stays legal.
    """

    needs = Access.GRADIENTS
    norms: ClassVar = frozenset({"linf", "l2"})
    also: ClassVar = {"nifgsm": {"ahead": 1.0}}

    steps: int = option(10, "gradient steps")
    step_size: float = option(0.1, "fraction of eps")
    decay: float = option(1.0, "share of the past gradients kept")
    ahead: float = option(0.0, "how far along the past gradients the next is asked for, in steps")
    loss: str = option("ce", "loss that is ascended", choices=LOSSES)

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, ahead=0)

    def start(self, p: Problem) -> Moving:
        return begin(p)

    def step(self, p: Problem, s: Moving, t: int) -> Moving:
        d = (
            p.project(s.d + p.stride(s.v, self.ahead * self.decay * self.step_size))
            if self.ahead
            else s.d
        )
        _, g = p.gradient(d, self.loss)
        return follow(p, s, g, self)

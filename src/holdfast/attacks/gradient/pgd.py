"""PGD: projected gradient ascent with steps of one size.

With `start_at="zero"` it is BIM (Kurakin et al. 2017, arXiv:1607.02533), with one full step FGSM
(Goodfellow et al. 2015, arXiv:1412.6572), with momentum MI-FGSM (Dong et al. 2018,
arXiv:1710.06081).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from holdfast.attacks.attack import EVERY_LOSS, Access, Attack, Problem, option
from holdfast.attacks.shared.momentum import MomentumState, accumulated

STARTS = ("ball", "sphere", "zero", "best")


@dataclass(frozen=True)
class PGD(Attack):
    """Projected gradient descent (Madry et al. 2018, arXiv:1706.06083).

    Cost: one forward and one backward a step and row, and one forward for the last point.
    Differs from the paper: the L1 step is shared by as many of the steepest coordinates as the box
    needs to hold eps.
    """

    needs = Access.GRADIENTS
    also: ClassVar = {
        "bim": {"start_at": "zero"},
        "fgsm": {"steps": 1, "step_size": 1.0, "start_at": "zero"},
    }

    steps: int = option(40, "gradient steps")
    step_size: float = option(0.1, "fraction of eps", above=0)
    loss: str = option("ce", "loss that is ascended", choices=EVERY_LOSS)
    start_at: str = option(
        "ball", "where it starts; best: the best point known before", choices=STARTS
    )
    momentum: float = option(0.0, "share of the past gradients kept", at_least=0)

    def start(self, p: Problem) -> MomentumState:
        return MomentumState(p.random_start(self.start_at), torch.zeros_like(p.x))

    def step(self, p: Problem, s: MomentumState, t: int) -> MomentumState:
        _, g = p.gradient(s.d, self.loss)
        v = s.v
        if self.momentum:
            g = v = accumulated(v, g, self.momentum)
        return MomentumState(p.project(p.stride(g, self.step_size).add_(s.d)), v)

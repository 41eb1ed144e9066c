"""NES: gradient ascent whose gradient is estimated from the margin at Gaussian points around the
current one."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from holdfast.attacks.attack import Access, Attack, Problem, option
from holdfast.attacks.shared.paired_estimate import ascent, check_pairs


@dataclass(frozen=True)
class NES(Attack):
    """Natural evolution strategies (Ilyas et al. 2018, arXiv:1804.08598, algorithm 1 and section
    2.2).

    Cost: `samples` + 1 forwards a step and row (the current point is asked about too), one for the
    last point.
    Differs from the paper: the loss is the margin, not a class's probability; the points around the
    current one are clipped to the box, and may lie outside the ball; the step is a share of eps,
    the paper's 0.01 of eps 0.05, and in L2 has that length.
    """

    needs = Access.SCORES
    norms = frozenset({"linf", "l2"})

    steps: int = option(200, "gradient steps")
    samples: int = option(
        50, "points of an estimate, in pairs on either side of the current one", at_least=2
    )
    sigma: float = option(0.001, "their standard deviation, a share of the box's width", above=0)
    step_size: float = option(0.2, "fraction of eps", above=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_pairs(self)

    def step(self, p: Problem, s: Tensor, t: int) -> Tensor:
        u = p.noise("around").normal((self.samples // 2, *p.x.shape[1:]), p.x.dtype)
        return p.project(s + p.stride(ascent(p, s, u, self.sigma), self.step_size))

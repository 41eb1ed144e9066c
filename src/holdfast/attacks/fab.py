"""FAB: steps onto the linearised boundary that are drawn towards x, and back inside after every success."""

from __future__ import annotations

import math
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
class FAB(Attack):
    """Fast adaptive boundary attack (Croce and Hein 2020, arXiv:1907.02044, algorithm 1).

    The first run starts at x, a restart at random. Aimed (`targets=9`) it is FAB-T.

    Cost: two forwards and k - 1 backwards (aimed: one) a step and row, and one forward for the last point.
    Differs from the paper: the final search is the one that ends every search for the smallest d; as in the
    authors' code, restarts know nothing of each other and begin at half of eps (of the box, where eps is larger).
    """

    needs = Access.GRADIENTS
    bounded: ClassVar = False

    steps: int = 100  # points from which the boundary is linearised
    alpha_max: float = 0.1  # largest share of x's own nearest point in the next one
    eta: float = 1.05  # length of a step, of the distance to the boundary
    beta: float = 0.9  # share of d that is kept after a success

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(0 <= value < math.inf for value in (self.alpha_max, self.eta, self.beta)):
            raise SpecError(f"{self!r}: alpha_max, eta and beta are shares of lengths, finite and at least 0.")

    def start(self, p: Problem) -> Tensor:
        if not p.restart:
            return torch.zeros_like(p.x)
        box = p.norm.size(p.hi.maximum(-p.lo))
        radius = p.eps.minimum(wide(box, p.x)) / 2
        return (radius * p.norm.sphere(p.noise("start"), p.x)).clamp(p.lo, p.hi)

    def step(self, p: Problem, s: Tensor, t: int) -> Tensor:
        gap, g = p.nearest(s, p.target.task.k - 1)
        move = p.norm.reach(g, -gap, p.lo - s, p.hi - s)
        anchor = p.norm.reach(g, (g * s).flatten(1).sum(1) - gap, p.lo, p.hi)
        far = p.norm.size(move)
        share = far / (far + p.norm.size(anchor)).clamp_min(torch.finfo(s.dtype).tiny)
        alpha = wide(share.clamp_max(self.alpha_max), s)
        d = ((1 - alpha) * (s + self.eta * move) + alpha * self.eta * anchor).clamp(p.lo, p.hi)
        return torch.where(wide(p.adversarial(d), d), self.beta * d, d)

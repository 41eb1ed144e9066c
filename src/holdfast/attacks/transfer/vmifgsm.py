"""VMI-FGSM: momentum on gradients that are corrected by how they differ nearby."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from holdfast.attacks.attack import LOSSES, Access, Attack, Problem, option
from holdfast.attacks.shared.momentum import Moving, begin, check, follow


class Tuned(NamedTuple):
    moving: Moving
    excess: Tensor  # the mean gradient of the neighbours at the last point, over its own


@dataclass(frozen=True)
class VMIFGSM(Attack):
    """Variance tuning (Wang and He 2021, arXiv:2103.15571, algorithm 1).

    Cost: `neighbours` + 1 forwards and backwards a step and row, and one forward for the last
    point.
    Differs from the paper: neighbours are drawn from the ball of the threat's own norm, and stay in
    the box.
    """

    needs = Access.GRADIENTS
    norms: ClassVar = frozenset({"linf", "l2"})

    steps: int = option(10, "gradient steps")
    step_size: float = option(0.1, "fraction of eps")
    decay: float = option(1.0, "share of the past gradients kept")
    neighbours: int = option(20, "random points around each iterate")
    radius: float = option(1.5, "how far they lie at most, in multiples of eps")
    loss: str = option("ce", "loss that is ascended", choices=LOSSES)

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, neighbours=1, radius=0)

    def start(self, p: Problem) -> Tuned:
        return Tuned(begin(p), torch.zeros_like(p.x))

    def step(self, p: Problem, s: Tuned, t: int) -> Tuned:
        _, g = p.gradient(s.moving.d, self.loss)
        near = torch.zeros_like(g)
        for i in range(self.neighbours):
            u = p.norm.sample(p.noise(f"neighbour {i}"), p.x)
            near = (
                near
                + p.gradient(
                    (s.moving.d + self.radius * p.eps * u).clamp(p.lo, p.hi), self.loss, within=True
                )[1]
            )
        moved = follow(p, s.moving, g + s.excess, self)
        return Tuned(moved, near / self.neighbours - g)

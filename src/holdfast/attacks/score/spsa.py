"""SPSA: Adam on a gradient estimated from the margin at opposite random corners around the current
point."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from holdfast.attacks.attack import Access, Attack, Problem, option
from holdfast.attacks.shared.paired_estimate import ascent, check_pairs


class Adam(NamedTuple):
    d: Tensor  # the current point, [n, *shape]
    mean: Tensor  # running means of the gradient and of its square
    square: Tensor


@dataclass(frozen=True)
class SPSA(Attack):
    """Simultaneous perturbation stochastic approximation (Uesato et al. 2018, arXiv:1802.05666,
    algorithm 1).

    Cost: `samples` + 1 forwards a step and row (the current point is asked about too), one for the
    last point.
    Differs from the paper: it starts at x; the points around the current one are clipped to the
    box, and may lie outside the ball; Adam has no constant under its root, so that the scale of the
    scores does not matter.
    """

    needs = Access.SCORES
    norms = frozenset({"linf", "l2"})

    steps: int = option(100, "steps of Adam")
    samples: int = option(
        128, "points of an estimate, in pairs on either side of the current one", at_least=2
    )
    delta: float = option(
        0.01, "how far every feature moves for them, a share of the box's width", above=0
    )
    rate: float = option(0.01, "Adam's, a share of the box's width", above=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_pairs(self)

    def start(self, p: Problem) -> Adam:
        zero = torch.zeros_like(p.x)
        return Adam(zero, zero, zero)

    def step(self, p: Problem, s: Adam, t: int) -> Adam:
        u = p.noise("around").signs((self.samples // 2, *p.x.shape[1:]), p.x.dtype)
        g = ascent(p, s.d, u, self.delta)
        mean, square = 0.9 * s.mean + 0.1 * g, 0.999 * s.square + 0.001 * g.square()
        root = (square / (1 - 0.999 ** (t + 1))).sqrt()
        step = torch.where(root > 0, mean / (1 - 0.9 ** (t + 1)) / root, 0)
        return Adam(p.project(s.d + self.rate * p.width * step), mean, square)

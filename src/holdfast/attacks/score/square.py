"""Square: random search that sets one square of the perturbation a query and keeps what lowers the
margin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from holdfast.attacks.attack import Access, Attack, Problem, option
from holdfast.attacks.shared.image_planes import Planes, halved
from holdfast.attacks.shared.square_proposals import VARIANTS
from holdfast.norms import wide


class Kept(NamedTuple):
    d: Tensor  # the best point so far, [n, *shape]
    value: Tensor  # its loss, [n]


@dataclass(frozen=True)
class Square(Attack):
    """Square Attack (Andriushchenko et al. 2020, arXiv:1912.00049, algorithms 1 to 3; L1 as in
    AutoAttack).

    Cost: one forward a step and row, and one for the start.
    Differs from the paper: every row draws a window of its own, which may touch the last row and
    column; where an image is not square, a window that does not fit becomes a rectangle of its
    area; an input with one axis is one row of pixels. In Linf a proposal that would change nothing
    has its signs flipped (the authors draw again). In L1 the overshoot of 3 is AutoAttack's for
    three planes, whatever their number.
    """

    needs = Access.SCORES
    variants: ClassVar = VARIANTS

    steps: int = option(5000, "proposals")
    p: float = option(0.8, "share of an image that the first squares cover", above=0, at_most=1)
    schedule: int = option(
        10000, "queries over which that share falls to p / 512, whatever the steps", at_least=1
    )
    start_at: str = option(
        "stripes",
        "stripes (in L2 and L1 a grid of bumps), or best: the best point known before",
        choices=("stripes", "best"),
    )

    def start(self, p: Problem) -> Kept:
        fresh = self.start_at == "stripes"
        d = self.variant(p).start(p, Planes.of(p)) if fresh else p.random_start("best")
        return Kept(d, p.value(d, "margin"))

    def step(self, p: Problem, s: Kept, t: int) -> Kept:
        rule, planes = self.variant(p), Planes.of(p)
        d = rule.propose(p, planes, s.d, *planes.window(self.share(t), rule.least, rule.odd))
        value = p.value(d, "margin")
        up = value > s.value
        return Kept(torch.where(wide(up, d), d, s.d), torch.where(up, value, s.value))

    def share(self, t: int) -> float:
        """The share of an image that the square of step t covers."""
        return halved(self.p, t, self.schedule)

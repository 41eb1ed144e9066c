"""Square: random search that sets one square of the perturbation a query and keeps what lowers the
margin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from holdfast.attacks.attack import Access, Attack, Problem, option
from holdfast.attacks.shared.random_search import Best, begin, halved, keep_better
from holdfast.attacks.shared.square_proposals import VARIANTS, propose, start_option


@dataclass(frozen=True)
class Square(Attack):
    """Square Attack (Andriushchenko et al. 2020, arXiv:1912.00049, algorithms 1 to 3; L1 as in
    AutoAttack).

    Cost: one forward a step and row, and one for the start.
    Differs from the paper: every row draws a window of its own, which may touch the last row and
    column; where an image is not square, a window that does not fit becomes a rectangle of its
    area; an input with one axis is one row of pixels. In Linf a proposal that would change nothing
    has its signs flipped (the authors draw again). In L1 the overshoot of 3 is AutoAttack's for
    three channels, whatever their number.
    """

    needs = Access.SCORES
    variants: ClassVar = VARIANTS

    steps: int = option(5000, "proposals")
    p: float = option(0.8, "share of an image that the first squares cover", above=0, at_most=1)
    schedule: int = option(
        10000, "queries over which that share falls to p / 512, whatever the steps", at_least=1
    )
    start_at: str = start_option()

    def start(self, p: Problem) -> Best:
        if self.start_at == "best":
            return begin(p, p.random_start("best"))
        return begin(p, self.variant(p).start(p))

    def step(self, p: Problem, s: Best, t: int) -> Best:
        return keep_better(p, s, propose(self.variant(p), p, s.d, self.share(t)))

    def share(self, t: int) -> float:
        """The share of an image that the square of step t covers."""
        return halved(self.p, t, self.schedule)

"""Carlini and Wagner's attacks: Adam on size plus c times the margin, in a space without a box."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from holdfast.attacks.attack import Access, Attack, Problem, option
from holdfast.attacks.minimum_norm.cw_l0 import FewerFeatures
from holdfast.attacks.minimum_norm.cw_l2 import WeightSearch
from holdfast.attacks.minimum_norm.cw_linf import FallingLimit


@dataclass(frozen=True)
class CW(Attack):
    """Carlini and Wagner's attacks (2017, arXiv:1608.04644, sections V-C and VI, confidence 0).

    Cost: one forward and one backward a step and row, and one forward for the last point, in every
    norm.
    Differs from the paper: the margin is measured in units of the clean one; the box's edges lie at
    finite points of the tanh space; the steps are shared by all searches, each of which goes on
    from the point where the last one ended, and starts early, for its row alone, where that one is
    done (the steps saved serve more searches). The paper runs 9 searches of 10,000 steps, that is
    `cw(steps=90000, searches=9)`; with few steps more and shorter searches do better.
    """

    needs = Access.GRADIENTS
    variants: ClassVar = {"l2": WeightSearch(), "linf": FallingLimit(), "l0": FewerFeatures()}
    bounded = False
    random = False

    steps: int = option(1000, "gradient steps of all searches")
    searches: int = option(20, "which share the steps; more where some end early", at_least=1)
    c: float = option(1e-3, "first weight of the margin", above=0)
    rate: float = option(0.01, "Adam's, in tanh space", above=0)

    @property
    def span(self) -> int:
        """The most steps of one search."""
        return max(self.steps // self.searches, 1)

    def start(self, p: Problem) -> Any:
        return self.variant(p).start(self, p)

    def step(self, p: Problem, s: Any, t: int) -> Any:
        return self.variant(p).step(self, p, s, t)

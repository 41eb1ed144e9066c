"""Relay: a random search and gradient ascent that take turns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import Tensor

from holdfast.attacks.attack import EVERY_LOSS, Access, Attack, Problem, option
from holdfast.attacks.shared.random_search import begin, better, halved, keep_better
from holdfast.attacks.shared.square_proposals import VARIANTS, propose, start_option
from holdfast.losses import by_margin


class Turns(NamedTuple):
    d: Tensor  # the best point so far, [n, *shape]
    value: Tensor  # its margin, [n]
    ahead: Tensor  # the point that the climb has reached


@dataclass(frozen=True)
class Relay(Attack):
    """Square's random search and gradient ascent in turns, each from the best point of both.

    Each escapes where the other is stuck: on networks with masked gradients the two together need a
    fraction of the passes of either (docs/protocols.md).

    Cost: one forward a step and row, in climbs one backward, too; one forward for the start, and
    for the end of a climb (for each of its steps where gradients are not the model's own).
    """

    needs = Access.GRADIENTS
    variants: ClassVar = VARIANTS

    steps: int = option(4200, "proposals and gradient steps")
    climb: int = option(20, "gradient steps of a climb", at_least=1)
    leg: int = option(400, "proposals between two climbs", at_least=1)
    p: float = option(
        0.05, "share of an image that a leg's first squares cover", above=0, at_most=1
    )
    step_size: float = option(
        0.25, "of every other climb, a fraction of eps; a fifth of it in those between", above=0
    )
    loss: str = option("margin", "loss that is climbed", choices=EVERY_LOSS)
    start_at: str = start_option()

    @property
    def expected_passes(self) -> float:
        turns, rest = divmod(self.steps, self.climb + self.leg)
        return 1 + self.steps + turns * (self.climb + 1) + min(rest, self.climb + 1)

    def start(self, p: Problem) -> Turns:
        d = self.variant(p).start(p)
        if self.start_at == "best":
            d = p.random_start("best")
        return Turns(*begin(p, d), ahead=d)

    def step(self, p: Problem, s: Turns, t: int) -> Turns:
        turn, place = divmod(t, self.climb + self.leg)
        if place >= self.climb:
            share = halved(self.p, place - self.climb, 10000)
            return keep_better(p, s, propose(self.variant(p), p, s.d, share))
        ahead = s.ahead if place else s.d
        # else a gradient is of another model, or far dearer than a question
        exact = not (p.target.gradients.approximate or p.target.cost.pullback)
        value, g = p.gradient(ahead, by_margin(self.loss))
        s = better(s, ahead, value) if exact else s
        ahead = p.project(ahead + p.stride(g, self.step_size * 0.2 ** (turn % 2)))
        if not exact or place == self.climb - 1 or t == self.steps - 1:
            s = keep_better(p, s, ahead)
        return s._replace(ahead=ahead)

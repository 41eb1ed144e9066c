"""Relay: a random search and gradient ascent that take turns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from holdfast.attacks.attack import LOSSES, Access, Attack, Problem, option
from holdfast.attacks.shared.image_planes import Planes, halved
from holdfast.attacks.shared.square_proposals import VARIANTS
from holdfast.norms import wide


class Legs(NamedTuple):
    d: Tensor  # the best point so far, [n, *shape]
    value: Tensor  # its margin, [n]
    ahead: Tensor  # where the climb stands


@dataclass(frozen=True)
class Relay(Attack):
    """Square's random search and gradient ascent in turns, each going on from the best point of
    both.

    Each escapes where the other is stuck: on networks with masked gradients the two together need a
    fraction of the passes of either (docs/protocols.md).

    Cost: one forward a step and row, in climbs two and one backward; one forward for the start.
    """

    needs = Access.GRADIENTS
    variants: ClassVar = VARIANTS

    steps: int = option(4200, "proposals and gradient steps")
    climb: int = option(20, "gradient steps of a climb", at_least=1)
    leg: int = option(400, "proposals between two climbs", at_least=1)
    p: float = option(
        0.05, "share of an image that the first squares of a leg cover", above=0, at_most=1
    )
    step_size: float = option(
        0.25, "of every other climb, a fraction of eps; a fifth of it in those between", above=0
    )
    loss: str = option("margin", "loss that is climbed", choices=LOSSES)
    start_at: str = option(
        "stripes",
        "stripes (in L2 and L1 a grid of bumps), or best: the best point known before",
        choices=("stripes", "best"),
    )

    @property
    def expected_passes(self) -> float:
        turns, rest = divmod(self.steps, self.climb + self.leg)
        return 1 + self.steps + 2 * (turns * self.climb + min(rest, self.climb))

    def start(self, p: Problem) -> Legs:
        fresh = self.start_at == "stripes"
        d = self.variant(p).start(p, Planes.of(p)) if fresh else p.random_start("best")
        return Legs(d, p.value(d, "margin"), d)

    def step(self, p: Problem, s: Legs, t: int) -> Legs:
        turn, place = divmod(t, self.climb + self.leg)
        if place < self.climb:
            ahead = s.ahead if place else s.d
            _, g = p.gradient(ahead, self.loss)
            ahead = p.project(ahead + p.stride(g, self.step_size * (0.2 if turn % 2 else 1)))
            return self._keep(p, s, ahead, ahead)
        rule, planes = self.variant(p), Planes.of(p)
        share = halved(self.p, place - self.climb, 10000)
        return self._keep(
            p, s, rule.propose(p, planes, s.d, *planes.window(share, rule.least, rule.odd)), s.ahead
        )

    def _keep(self, p: Problem, s: Legs, d: Tensor, ahead: Tensor) -> Legs:
        value = p.value(d, "margin")
        up = value > s.value
        return Legs(torch.where(wide(up, d), d, s.d), torch.where(up, value, s.value), ahead)

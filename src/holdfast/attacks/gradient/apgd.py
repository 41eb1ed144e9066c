"""Auto-PGD: gradient ascent from the best point, with a step size that follows its progress."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from holdfast.attacks.attack import LOSSES, Access, Attack, Problem, option
from holdfast.attacks.shared.checkpoints import check
from holdfast.norms import sparse, wide


class Climb(NamedTuple):
    d: Tensor  # the current point, [n, *shape]
    before: Tensor  # the point before it
    g: Tensor  # gradient at d
    value: Tensor  # loss at d, [n]
    best: Tensor  # the point of the highest loss so far, its gradient and its loss
    best_g: Tensor
    best_value: Tensor
    checked: (
        # what the last checkpoint saw: the best loss, or (L1) the features of the best point inside
        # the box
        Tensor
    )
    rises: Tensor  # steps since then that raised the loss, [n]
    halved: Tensor  # whether that checkpoint halved the step, [n] bool
    size: Tensor  # step as a fraction of the radius, [n]


@dataclass(frozen=True)
class APGD(Attack):
    """Auto-PGD (Croce and Hein 2020, arXiv:2003.01690, algorithm 1; in L1: 2021, arXiv:2103.01208,
    algorithm 1).

    Cost: `eot` forwards and backwards a step and row, and as many for the start.
    Differs from the authors' code: the first comparison of losses is with the start's, not with 0.
    In L1 the radius is 3 eps for the first .3 of the steps, 2 eps for the next and eps for the last
    .4; the step that shrinks it asks about the best point, projected. Sparsity counts the features
    that moved but not to the box, and rounds down; features at the box that are steeper than those
    that step stay there.
    """

    needs = Access.GRADIENTS
    norms: ClassVar = frozenset({"linf", "l2", "l1"})

    steps: int = option(100, "gradient steps")
    loss: str = option("ce", "loss that is ascended", choices=LOSSES)
    rho: float = option(
        0.75,
        "halve the step where at most this share of the steps raised the loss (not in L1)",
        at_least=0,
        at_most=1,
    )
    eot: int = option(
        1,
        "gradients of a step, of which the mean is taken (Athalye et al. 2018, arXiv:1802.00420)",
        at_least=1,
    )

    def start(self, p: Problem) -> Climb:
        return self.variant(p).start(self, p)

    def step(self, p: Problem, s: Climb, t: int) -> Climb:
        return self.variant(p).step(self, p, s, t)

    def look(self, p: Problem, d: Tensor) -> tuple[Tensor, Tensor]:
        """The loss and its gradient; where the model draws noise, means over `eot` draws."""
        value, g = p.gradient(d, self.loss)
        for _ in range(self.eot - 1):
            again = p.gradient(d, self.loss)
            value, g = value + again[0], g + again[1]
        return value / self.eot, g / self.eot

    def ask(self, p: Problem, s: Climb, d: Tensor) -> Climb:
        """Go to d, and take note of the best."""
        value, g = self.look(p, d)
        up = value > s.best_value
        return s._replace(
            d=d,
            before=s.d,
            g=g,
            value=value,
            best=torch.where(wide(up, d), d, s.best),
            best_g=torch.where(wide(up, d), g, s.best_g),
            best_value=torch.where(up, value, s.best_value),
            rises=s.rises + (value > s.value),
        )


class Halving:
    """Linf and L2: momentum, and a step that halves where progress stalls."""

    def start(self, a: APGD, p: Problem) -> Climb:
        d = p.random_start("sphere")
        value, g = a.look(p, d)
        never = torch.zeros_like(value)
        return Climb(d, d, g, value, d, g, value, value, never, never == 0, never + 2)

    def step(self, a: APGD, p: Problem, s: Climb, t: int) -> Climb:
        ahead = p.project(s.d + wide(s.size, s.d) * p.eps * p.steepest(s.g))
        pull = 0.75 if t else 1.0
        s = a.ask(p, s, p.project(s.d + pull * (ahead - s.d) + (1 - pull) * (s.d - s.before)))
        halve, s = check(s, a.steps, t, a.rho)
        return s if halve is None else back(s, halve)


class Sparse:
    """L1: steps of few features, fewer as the best point grows sparser, in a ball that shrinks to
    eps."""

    def start(self, a: APGD, p: Problem) -> Climb:
        far = p.width * p.noise("start").normal(tuple(p.x.shape[1:]), p.x.dtype)
        d = p.norm.project(far, self.stage(a, 0)[2] * p.eps, p.lo, p.hi)
        value, g = a.look(p, d)
        never = torch.zeros_like(value)
        return Climb(d, d, g, value, d, g, value, _inside(p, d), never, never == 0, never + 1)

    def stage(self, a: APGD, t: int) -> tuple[int, int, float]:
        """The first step of the stage of step t, its number of steps and its radius in eps."""
        part = int(0.3 * a.steps)
        for first, radius in ((0, 3.0), (part, 2.0)):
            if t < first + part:
                return first, part, radius
        return 2 * part, a.steps - 2 * part, 1.0

    def step(self, a: APGD, p: Problem, s: Climb, t: int) -> Climb:
        first, length, radius = self.stage(a, t)
        eps = radius * p.eps
        if t == first and t:
            none = torch.full_like(s.value, -torch.inf)
            s = a.ask(p, s._replace(best_value=none), p.norm.project(s.best, eps, p.lo, p.hi))
            return s._replace(checked=_inside(p, s.d), size=torch.ones_like(s.size))
        room = torch.where(s.g > 0, p.hi - s.d, s.d - p.lo)
        stride = wide(s.size, s.g) * eps * sparse(s.g, s.checked / 1.5, room)
        s = a.ask(p, s, p.norm.project(s.d + stride, eps, p.lo, p.hi))
        if (t + 1 - first) % max(int(0.04 * length), 1):
            return s
        entries = _inside(p, s.best)
        sparser = entries < 0.95 * s.checked
        size = torch.where(sparser, 1, (s.size / 1.5).clamp_min(0.1))
        return back(s._replace(checked=entries, size=size), sparser)


def back(s: Climb, at: Tensor) -> Climb:
    """Rows `at` go on from their best point."""
    at = wide(at, s.d)
    return s._replace(d=torch.where(at, s.best, s.d), g=torch.where(at, s.best_g, s.g))


def _inside(p: Problem, d: Tensor) -> Tensor:
    """How many features have moved, but not to the box: [n]."""
    return ((d != 0) & (d > p.lo) & (d < p.hi)).flatten(1).sum(1).to(d)


APGD.variants = {"linf": Halving(), "l2": Halving(), "l1": Sparse()}

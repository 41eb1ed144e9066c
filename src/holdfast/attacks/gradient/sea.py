"""Auto-PGD in a ball that shrinks to eps."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from holdfast.attacks.attack import EVERY_LOSS, Access, Attack, Problem, option
from holdfast.attacks.shared.checkpoints import Climb, check, onward, stage


@dataclass(frozen=True)
class SEA(Attack):
    """Auto-PGD as the segmentation ensemble attack runs it (Croce et al. 2023, arXiv:2306.12941).

    The ball has `radius` eps for the first 0.3 of the steps, halfway to eps for the next 0.3, and
    eps for the last; each begins at the best point of the one before, projected. The ensemble is
    three such runs, with the losses `jsd`, `masked_ce` and `balanced_ce`.

    Cost: one forward and one backward a step and row, and one of each for the start.
    Differs from the authors' code: the step follows the progress of what decides (pixel accuracy or
    mIoU), not that of the cross-entropy.
    """

    needs = Access.GRADIENTS
    norms = frozenset({"linf", "l2"})

    steps: int = option(300, "gradient steps")
    loss: str = option("margin", "loss that is ascended", choices=EVERY_LOSS)
    radius: float = option(2.0, "of the first ball, in eps", at_least=1)
    rho: float = option(0.75, "halve where at most this share of steps rose", at_least=0, at_most=1)

    def start(self, p: Problem) -> Climb:
        return self._begun(p, self.radius * p.eps * p.norm.sample(p.noise("ball"), p.x), 0)

    def step(self, p: Problem, s: Climb, t: int) -> Climb:
        first, length, radius = stage(self.steps, t, self.radius)
        if t == first and t:
            return self._begun(p, s.best, t)
        d = onward(p, s, t - first, radius * p.eps)
        return check(s.advanced(d, *self._ask(p, d)), length, t - first, self.rho)[1]

    def _begun(self, p: Problem, d: Tensor, t: int) -> Climb:
        """A climb from the nearest point of the ball of step t."""
        d = p.norm.project(d, stage(self.steps, t, self.radius)[2] * p.eps, p.lo, p.hi)
        return Climb.at(d, *self._ask(p, d), size=2)

    def _ask(self, p: Problem, d: Tensor) -> tuple[Tensor, Tensor]:
        return p.gradient(d, self.loss, within=True)

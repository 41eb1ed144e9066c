"""FAB: steps onto the linearised boundary that are drawn towards x, and back after a success."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from holdfast.attacks.attack import Access, Attack, Problem, option, wide
from holdfast.attacks.shared.nearest_boundary import nearest


class Nearing(NamedTuple):
    d: Tensor  # the current point, [n, *shape]
    drive: Tensor  # [n]: 1, and eta times as much for each step since the last success


@dataclass(frozen=True)
class FAB(Attack):
    """Fast adaptive boundary attack (Croce and Hein 2020, arXiv:1907.02044, algorithm 1).

    Aimed at each of nine classes in turn it is FAB-T.
    Cost: two forwards and k - 1 backwards (aimed: one) a step and row, and one forward at the end.
    Differs from the paper: a point beyond the linearised boundary is brought onto it, without the
    overshoot, which there would undo that of the other point; from the second miss in a row on each
    step is eta times as long as the last, up to ten times, or a row might go to and fro before a
    bent boundary for ever; the final search is that of the loop. As in the authors' code restarts
    know nothing of each other and begin at random, at half of eps (or of the box's size).
    """

    needs = Access.GRADIENTS
    bounded = False

    steps: int = option(100, "points at which the boundary is linearised")
    alpha_max: float = option(0.1, "largest share of the point nearest to x", at_least=0)
    eta: float = option(1.05, "length of a step, in distances to the boundary", at_least=0)
    beta: float = option(0.9, "share of d that is kept after a success", at_least=0)

    def start(self, p: Problem) -> Nearing:
        def elsewhere() -> Tensor:
            box = p.norm.size(p.hi.maximum(-p.lo))
            radius = p.eps.minimum(wide(box, p.x)) / 2
            return (radius * p.norm.sphere(p.noise("start"), p.x)).clamp(p.lo, p.hi)

        return Nearing(p.after_first(elsewhere), torch.ones_like(p.eps.flatten()))

    def step(self, p: Problem, s: Nearing, t: int) -> Nearing:
        gap, g = nearest(p, s.d, p.target.task.k - 1)
        eta = wide(s.drive.clamp(self.eta, 10), g)

        def ahead(d: Tensor, short: Tensor) -> tuple[Tensor, Tensor]:
            """How far the boundary is from d, and the point past it; on it, where d is past it
            already."""
            move = p.norm.reach(g, short, p.lo - d, p.hi - d)
            return p.norm.size(move), d + torch.where(wide(short > 0, g), eta, 1) * move

        from_d, forth = ahead(s.d, -gap)
        from_x, anchor = ahead(torch.zeros_like(g), (g * s.d).flatten(1).sum(1) - gap)
        share = from_d / (from_d + from_x).clamp_min(torch.finfo(from_d.dtype).tiny)
        d = torch.lerp(forth, anchor, wide(share.clamp_max(self.alpha_max), g)).clamp(p.lo, p.hi)
        met = p.adversarial(d)
        d = torch.where(wide(met, d), self.beta * d, d)
        return Nearing(d, torch.where(met, 1, s.drive * self.eta))

"""JSMA: the two features that do most for one rival class, moved together, step by step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from holdfast.attacks.attack import LOSSES, Access, Attack, Problem, option
from holdfast.norms import wide
from holdfast.tasks import without


class Pairs(NamedTuple):
    d: Tensor  # the current point, [n, *shape]
    rivals: Tensor  # classes to pull up, in their turn, [n, r]; the first is pulled now


@dataclass(frozen=True)
class JSMA(Attack):
    """Jacobian-based saliency map attack (Papernot et al. 2016, arXiv:1511.07528, algorithm 3).

    The saliency of a pair is the product of what it adds to the rival's probability and of what it
    takes from all others together. As probabilities sum to one these are equal, and the best pair
    is the two best features.

    Cost: two forwards and one backward a step and row; one forward for the start and one for the
    last point.
    Differs from the paper: a feature may move either way (as in Wiyatno and Xu 2018,
    arXiv:1808.07945) and counts by what the box leaves it (as in Combey et al. 2020,
    arXiv:2007.06032); the better feature of a pair is tried alone too; a row whose next feature
    would be one too many (past eps, or no fewer than the best point found has) begins again at x
    with the next rival, in the order of the clean scores.
    """

    needs = Access.GRADIENTS
    norms: ClassVar = frozenset({"l0"})
    bounded: ClassVar = False
    random: ClassVar = False

    steps: int = option(100, "pairs of features changed, beginnings anew included")
    theta: float = option(
        1.0,
        "how far a feature moves a step, a share of the box's width; 1: to its edge",
        above=0,
        at_most=1,
    )
    loss: str = option("ce", "loss of the rival that is ascended", choices=LOSSES)

    def start(self, p: Problem) -> Pairs:
        zero = torch.zeros_like(p.x)
        one = p.goal if p.goal is not None else p.aim
        if one is not None:
            return Pairs(zero, one[:, None])
        order = without(p.scores(zero), p.y).argsort(dim=1, descending=True, stable=True)
        return Pairs(zero, order[:, :-1])

    def step(self, p: Problem, s: Pairs, t: int) -> Pairs:
        def pull(z: Tensor, y: Tensor, _: Tensor | None, *rival: Tensor) -> Tensor:
            return LOSSES[self.loss](z, y, rival[0])

        _, g = p.gradient(s.d, pull, s.rivals[:, 0])
        most = self.theta * p.width
        ahead = (s.d + most * g.sign()).clamp(p.lo, p.hi)
        gain = (g * (ahead - s.d)).flatten(1)
        pair = gain.topk(min(2, gain.shape[1]), 1).indices
        first, both = (
            torch.where(torch.zeros_like(gain).scatter(1, chosen, 1).view_as(g) > 0, ahead, s.d)
            for chosen in (pair[:, :1], pair)
        )
        p.adversarial(first)
        over = p.norm.size(both) + 1 > (p.best()[1] - 1).minimum(p.eps.flatten())
        return Pairs(
            torch.where(wide(over, both), 0, both),
            torch.where(over[:, None], s.rivals.roll(-1, 1), s.rivals),
        )

"""JSMA: the two features that do most for one wrong class, changed together, step by step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from holdfast.attacks.attack import LOSSES, Access, Attack, Problem, option, wide
from holdfast.attacks.shared.few_features import spent
from holdfast.losses import without


class Pairs(NamedTuple):
    d: Tensor  # the current point, [n, *shape]
    others: Tensor  # classes to pull up, in their turn, [n, r]; the first is pulled now


@dataclass(frozen=True)
class JSMA(Attack):
    """Jacobian-based saliency map attack (Papernot et al. 2016, arXiv:1511.07528, algorithm 3).

    As probabilities sum to one, the most salient pair is that of the two best features.

    Cost: two forwards and one backward a step and row; two forwards for the start and last point.
    Differs from the paper: a feature may move up or down (Wiyatno and Xu 2018, arXiv:1808.07945)
    and counts by what the box leaves it (Combey et al. 2020, arXiv:2007.06032); the better of a
    pair is tried alone too; a row whose next feature would be past eps, or no fewer than the best
    point has, begins again at x with the next class, in the order of the clean scores.
    """

    needs = Access.GRADIENTS
    norms = frozenset({"l0"})
    bounded = False
    random = False

    steps: int = option(100, "pairs of features changed, beginnings anew included")
    theta: float = option(1.0, "move of a feature, a share of the box's width", above=0, at_most=1)
    loss: str = option("ce", "loss of the wrong class that is ascended", choices=LOSSES)

    def start(self, p: Problem) -> Pairs:
        zero = torch.zeros_like(p.x)
        if p.aim is not None:
            return Pairs(zero, p.aim[:, None])
        order = without(p.scores(zero), p.y).argsort(dim=1, descending=True, stable=True)
        return Pairs(zero, order[:, :-1])

    def step(self, p: Problem, s: Pairs, t: int) -> Pairs:
        loss = LOSSES[self.loss]
        _, g = p.gradient(s.d, lambda z, y, _, other: loss(z, y, other), s.others[:, 0])
        ahead = (s.d + self.theta * p.width * g.sign()).clamp(p.lo, p.hi)
        gain = (g * (ahead - s.d)).flatten(1)
        pair = gain.topk(min(2, gain.shape[1]), 1).indices
        first, both = (
            torch.where(torch.zeros_like(gain).scatter(1, chosen, 1).view_as(g) > 0, ahead, s.d)
            for chosen in (pair[:, :1], pair)
        )
        p.adversarial(first)
        over = spent(p, both)
        others = torch.where(over[:, None], s.others.roll(-1, 1), s.others)
        return Pairs(torch.where(wide(over, both), 0, both), others)

"""SignHunter: the corner of the ball that raises the margin most, found by flipping ever smaller
blocks of signs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from holdfast.attacks.attack import Access, Attack, Problem, option, wide
from holdfast.attacks.shared.random_search import begin, keep_better
from holdfast.attacks.shared.sign_blocks import block


class Signs(NamedTuple):
    d: Tensor  # the point of the best signs so far, [n, *shape]
    value: Tensor  # its margin, [n]
    signs: Tensor  # these signs, [n, *shape]


@dataclass(frozen=True)
class SignHunter(Attack):
    """SignHunter (Al-Dujaili and O'Reilly 2020, "Sign Bits Are All You Need for Black-Box Attacks",
    algorithm 2).

    All signs are flipped, then each half of them, each quarter, to single features; a flip that
    does not raise the loss is taken back. The order of the features is that of the array. In L2 the
    point is eps * signs / sqrt(f).

    Cost: one forward a step and row, and one for the start.
    Differs from the paper: the loss is the margin; after single features it begins again with all
    signs, from the signs that it holds; features that a mask forbids have no sign.
    """

    needs = Access.SCORES
    norms = frozenset({"linf", "l2"})
    random = False

    steps: int = option(10000, "flips")

    def start(self, p: Problem) -> Signs:
        signs = (p.hi > p.lo).to(p.x)
        return Signs(*begin(p, _corner(p, signs)), signs=signs)

    def step(self, p: Problem, s: Signs, t: int) -> Signs:
        first, last = block(t, p.features, again=True)
        flat = s.signs.flatten(1)
        signs = torch.cat([flat[:, :first], -flat[:, first:last], flat[:, last:]], 1).view_as(s.d)
        best = keep_better(p, s, _corner(p, signs))
        up = wide(best.value > s.value, signs)
        return best._replace(signs=torch.where(up, signs, s.signs))


def _corner(p: Problem, signs: Tensor) -> Tensor:
    return p.project(p.eps * p.steepest(signs))

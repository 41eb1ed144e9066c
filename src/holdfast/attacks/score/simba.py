"""SimBA: step by step along random orthonormal directions, pixels or waves, keeping each that
raises the margin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from holdfast.attacks.attack import Access, Attack, Problem, option, wide
from holdfast.attacks.shared.bases import BASES
from holdfast.attacks.shared.image_shape import ImageShape
from holdfast.attacks.shared.random_search import begin, keep_better


class Turns(NamedTuple):
    d: Tensor  # the best point so far, [n, *shape]
    value: Tensor  # its loss, [n]
    order: Tensor  # the directions in the order of their turns, [n, f]
    turn: Tensor  # whose turn it is, [n]
    back: Tensor  # whether its other side is to be tried, [n] bool


@dataclass(frozen=True)
class SimBA(Attack):
    """Simple black-box attack (Guo et al. 2019, arXiv:1905.07121, algorithm 1).

    Directions are single features, or the waves of a discrete cosine transform of each channel:
    those of the lowest eighth of the frequencies in random order, then bands of a 32nd more each
    (as in the authors' code).

    Cost: one forward a step and row, and one for the start.
    Differs from the paper: the loss is the margin, not the class's probability; points are
    projected to the ball; in Linf a step has its length there; when all directions had their turn
    they begin again, in the same order.
    """

    needs = Access.SCORES
    norms = frozenset({"linf", "l2"})

    steps: int = option(10000, "points asked about")
    basis: str = option("pixel", "directions: single features, or waves", choices=BASES)
    step_size: float = option(0.2, "length of a step, a share of the box's width", above=0)

    def start(self, p: Problem) -> Turns:
        chance = p.noise("order").uniform((p.features,), torch.float64)
        band = BASES[self.basis].band(ImageShape.of(p), p.x)
        order = (band + chance).argsort(dim=1)
        turn = torch.zeros_like(order[:, 0])
        return Turns(*begin(p, torch.zeros_like(p.x)), order, turn, back=turn > 0)

    def step(self, p: Problem, s: Turns, t: int) -> Turns:
        at = s.order.gather(1, s.turn[:, None])[:, 0]
        q = BASES[self.basis].direction(ImageShape.of(p), at, p.x)
        length = self.step_size * p.width / p.norm.size(q)
        d = p.project(s.d + wide(torch.where(s.back, -length, length), q) * q)
        best = keep_better(p, s, d)
        done = (best.value > s.value) | s.back
        return best._replace(turn=(s.turn + done) % s.order.shape[1], back=~done)

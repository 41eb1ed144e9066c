"""PDPGD: descend the loss by a gradient, the size by a proximal step; a dual variable weighs one
against the other."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from holdfast.attacks.attack import NORMS, Access, Attack, Problem, from_first, option, wide

_SHARP = 10.0  # how sharply the loss bends at a margin of 0, in clean margins
_LIMIT = 1e6  # neither weight falls below a millionth of the other
_INNER = 5  # proximal steps in Adam's metric


class Saddle(NamedTuple):
    d: Tensor  # the current point, [n, *shape], in the box
    mean: Tensor  # Adam's running means of the gradient and of its square
    square: Tensor
    unit: Tensor  # the clean margin, [n]
    dual: Tensor  # the size's weight over the loss's, [n]
    share: Tensor  # running mean of the loss's share of both weights, [n]


@dataclass(frozen=True)
class PDPGD(Attack):
    """Primal-dual proximal gradient descent (Matyasko and Chau 2021, arXiv:2106.01538).

    The point takes a step of Adam down the loss, then the proximal step of the norm, both in Adam's
    metric; the dual variable rises while the goal is not met and falls while it is.

    Cost: one forward and one backward a step and row, and one forward for the last point.
    Differs from the paper: both steps shrink with the steps done, as 1 / (1 + t / fade), and not
    with the share of all steps that are done, so that more steps go on from fewer; loss and size
    weigh the same at first (there the loss a hundred times as much, which few steps do not make up
    for); the loss is sqrt(1 + u^2) - u of the margin u in tenths of the clean one and not the
    softplus of the margin, so that the scale of the logits does not matter, nor the last bit of an
    exponential, which depends on a row's place in the batch; the proximal step takes a fixed number
    of inner ones; twice the steps. L0 is by the proximal step of the 2/3 power, since the count's
    own only drops small changes.
    """

    needs = Access.GRADIENTS
    norms = frozenset(NORMS)
    groups = True
    bounded = False
    random = False

    steps: int = option(1000, "gradient steps")
    rate: float = option(0.1, "first step of a feature, as a share of the box's width", above=0)
    swing: float = option(0.2, "first step of the dual variable", above=0)
    fade: float = option(60.0, "steps after which both have halved", above=0)
    ratio: float = option(1.0, "first weight of the size over that of the loss", above=0)

    def start(self, p: Problem) -> Saddle:
        d, none = torch.zeros_like(p.x), torch.zeros_like(p.eps.flatten())
        return Saddle(d, d, d, none, none + self.ratio, none + 1 / (1 + self.ratio))

    def step(self, p: Problem, s: Saddle, t: int) -> Saddle:
        gap, g = p.gradient(s.d, "margin")
        unit = from_first(t, gap.abs(), s.unit)
        scale = torch.where(unit > 0, unit, 1)
        u = _SHARP * gap / scale
        g = wide((u / (1 + u.square()).sqrt() - 1) / scale * p.width, g) * g
        mean, square = s.mean.lerp(g, 0.1), s.square.lerp(g.square(), 0.001)
        steep = (square / (1 - 0.999 ** (t + 1))).sqrt_().add_(1e-8)
        most = wide(steep.flatten(1).amax(1), steep)
        tau = 1 / (1 + t / self.fade)
        rate = self.rate * p.width * tau
        ahead = (mean / steep).mul_(-rate / (1 - 0.9 ** (t + 1))).add_(s.d).clamp_(p.lo, p.hi)
        weight = wide((1 - s.share) / s.share, most) * rate / most
        d, metric = ahead, steep.div_(most)
        for _ in range(_INNER):
            d = p.norm.prox((ahead - d).mul_(metric).add_(d), weight).clamp_(p.lo, p.hi)
        turn = math.exp(self.swing * tau)
        dual = torch.where(p.met, s.dual * turn, s.dual / turn).clamp(1 / _LIMIT, _LIMIT)
        return Saddle(d, mean, square, unit, dual, s.share + 0.1 * (1 / (1 + dual) - s.share))

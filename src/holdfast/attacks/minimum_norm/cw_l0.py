"""Carlini and Wagner's attack in L0."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from holdfast.attacks.attack import Problem, wide
from holdfast.attacks.shared.tanh_space import Descent, begin, descend, hinge, margin

_CUT = 0.3  # of the free features, the share that the first search in L0 does without, and the most


class Fixing(NamedTuple):
    descent: Descent
    free: Tensor  # the features that may move, [n, *shape] bool
    kept: Tensor  # those of the last success; all before the first
    worth: Tensor  # of each feature then; inf before, and for those that could not be missed alone
    back: Tensor  # the point of the last success, in tanh space
    cut: Tensor  # share of the kept features that the next search does without, [n]
    ends: Tensor  # whether worth counts how far a feature can go, not how far it went, [n] bool


class FewerFeatures:
    """L0: a search in L2 that moves only the free features; a success fixes those of the least
    worth, the product of the margin's gradient and the change.

    Differs from the paper: a search does without a share of the free features, half as many after a
    failure; one that could not be missed alone stays. When all of them do, all are free again, and
    worth is by how far the box lets a feature change. Steps are 10 times as long, and a failure
    makes c 10 times as large.
    """

    def start(self, a: Any, p: Problem) -> Fixing:
        descent = begin(p, a.c)
        none, each = descent.age, torch.ones_like(p.x, dtype=torch.bool)
        worth = torch.full_like(p.x, torch.inf)
        return Fixing(
            descent,
            free=each,
            kept=each,
            worth=worth,
            back=descent.w,
            cut=none + _CUT,
            ends=none > 0,
        )

    def step(self, a: Any, p: Problem, s: Fixing, t: int) -> Fixing:
        gap, g, descent = margin(p, s.descent, t)
        over = p.met | (descent.age + 1 >= a.span)
        lost, won = over & ~p.met, wide(p.met, g)
        missed = s.kept & ~s.free  # what this search did without
        needed = missed & wide(lost & (missed.flatten(1).sum(1) == 1), g)
        kept = torch.where(won, s.free, s.kept)
        step = torch.where(wide(s.ends, g), torch.where(g > 0, p.hi, p.lo), descent.d)
        worth = torch.where(won, g * step, s.worth.masked_fill(needed, torch.inf))
        cut = torch.where(p.met, (1.5 * s.cut).clamp_max(_CUT), torch.where(lost, s.cut / 2, s.cut))
        ranked = torch.where(kept, worth, torch.inf).flatten(1).argsort(dim=1, stable=True)
        rank = ranked.argsort(1).view_as(g)
        few = (cut * kept.flatten(1).sum(1)).floor().clamp_min(1)
        fewer = kept & ~((rank < wide(few, g)) & worth.isfinite())
        back = torch.where(won, descent.w, s.back)
        anew = needed.flatten(1).any(1) & (fewer == kept).flatten(1).all(1)
        new = wide(anew, g)
        descent = descent._replace(c=torch.where(lost, 10 * descent.c, descent.c).clamp_max(1e10))
        g = (2 * descent.d / p.width + hinge(p, descent, gap, g)[1]) * s.free
        free = torch.where(wide(over, g), fewer | new, s.free)
        descent = descent._replace(w=torch.where(wide(lost, g), back, descent.w))
        descent = descend(p, descent, g, 10 * a.rate, over, torch.full_like(gap, torch.inf))
        return Fixing(
            descent._replace(d=descent.d * free),
            free=free,
            kept=kept | new,
            worth=worth.masked_fill(new, torch.inf),
            back=back,
            cut=cut.masked_fill(anew, _CUT),
            ends=s.ends ^ anew,
        )

"""PDPGD: its first step in closed form, and where primal and dual settle on a linear model."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.models import CONVEX, close, linear, rows, threat, wrap

from holdfast.attacks import SearchResult
from holdfast.attacks.minimum_norm.pdpgd import PDPGD
from holdfast.attacks.problem import Problem
from holdfast.rng import Keys

N = 8


def test_the_first_step_descends_and_shrinks() -> None:
    """Adam's first step is the sign of the gradient; in L1 the proximal one takes the same off
    every entry."""
    target = wrap(linear(2), bounds=(-9, 10))
    x, y = rows(target, N)
    result = SearchResult.open(x, torch.full((N,), math.inf, dtype=torch.float64))
    p = Problem(target, x, y, threat("l1", math.inf), Keys.of(0, torch.arange(N)), result=result)
    _, g = p.gradient(torch.zeros_like(x), "margin")
    for ratio in (1e-6, 1e6):  # the size weighs nothing, or all
        attack = PDPGD(rate=0.01, ratio=ratio)
        d = attack.step(p, attack.start(p), 0).d
        close(d, 0.01 * p.width * g.sign() if ratio < 1 else torch.zeros_like(d), rtol=1e-2)


@pytest.mark.parametrize("norm", CONVEX)
def test_the_point_settles_where_the_hyperplane_is_nearest(norm: str) -> None:
    """The best point on the way comes within 1 % of it; the last, which swings about it, within a
    tenth."""
    target = wrap(linear(2), bounds=(-1, 2))
    x, y = rows(target, N)
    result = SearchResult.open(x, torch.full((N,), math.inf, dtype=torch.float64))
    p = Problem(
        target, x, y, threat(norm, math.inf), Keys.of(0, torch.arange(N)), result=result, stop=False
    )
    gap, g = p.gradient(torch.zeros_like(x), "margin")
    attack = PDPGD()
    s = attack.start(p)
    for t in range(attack.steps):
        s = attack.step(p, s, t)
    nearest = p.norm.size(p.norm.reach(g, -gap, p.lo, p.hi))
    close(p.norm.size(s.d) / nearest, torch.ones_like(nearest), rtol=0.1)
    close(p.best()[1] / nearest, torch.ones_like(nearest), rtol=0.01)

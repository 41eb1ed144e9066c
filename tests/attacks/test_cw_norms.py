"""Carlini and Wagner's Linf and L0 searches: what one step of each changes, and what they cost."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.models import Linear, bent, close, draw, linear, rows, threat, wrap

from holdfast.attacks import SearchResult, run
from holdfast.attacks.minimum_norm.cw import CW
from holdfast.attacks.problem import Problem
from holdfast.rng import Keys

N = 8


def beyond(norm: str) -> tuple[Linear, Problem, torch.Tensor]:
    """A problem of two classes, and a point of each row past the boundary."""
    model = linear(2)
    target = wrap(model, bounds=(-9, 10))
    x, y = rows(target, N)
    result = SearchResult.open(x, torch.full((N,), math.inf, dtype=torch.float64))
    p = Problem(target, x, y, threat(norm, math.inf), Keys.of(0, torch.arange(N)), result=result)
    gap, g = p.gradient(torch.zeros_like(x), "margin")
    return model, p, (0.5 + draw(*x.shape)) * p.norm.across(g, -4 * gap)


def test_in_linf_what_exceeds_the_limit_returns_and_no_other() -> None:
    """Past the boundary the margin pulls at nothing; the limit is nine tenths of the size found."""
    _, p, d = beyond("linf")
    attack = CW(rate=1e-4)
    first = attack.start(p)
    w = (0.9 * (2 * (d - p.lo) / p.width - 1)).atanh()
    shifted = attack.step(p, first._replace(descent=first.descent._replace(d=d, w=w)), 1).descent.d
    assert bool(p.met.all())
    above = d.abs() > 0.9 * p.norm.size(d)[:, None, None, None]
    assert 0 < int(above.sum()) < above.numel() / 2
    assert bool((shifted.abs() < d.abs())[above].all())
    close(shifted[~above], d[~above], rtol=0, atol=1e-9)


def test_in_l0_a_success_fixes_the_features_of_the_least_worth() -> None:
    """Three tenths of 16 features are 4: those for which the change times the margin's gradient is
    least."""
    model, p, d = beyond("l0")
    d = draw(*d.shape, seed=1) * d.abs().amax() * p.gradient(d, "margin")[1].sign()
    attack = CW()
    first = attack.start(p)
    after = attack.step(p, first._replace(descent=first.descent._replace(d=d)), 1)
    assert bool(p.met.all())
    slope = (model.w[1] - model.w[0]).detach().abs()
    worth = slope * d.flatten(1).abs()
    assert bool(((~after.free).flatten(1).sum(1) == 4).all())
    for i in range(N):
        assert set((~after.free[i]).flatten().nonzero()[:, 0].tolist()) == set(
            worth[i].argsort()[:4].tolist()
        )
    assert bool((after.descent.d[~after.free] == 0).all())


@pytest.mark.parametrize(("norm", "tightened"), [("l2", 5), ("linf", 5), ("l0", 0)])
def test_costs_are_as_stated(norm: str, tightened: int) -> None:
    target = wrap(bent())
    x, y = rows(target, N)
    ledger = run(CW(steps=60, searches=5), target, x, y, threat(norm, math.inf))
    assert bool((ledger.backwards == 60).all())
    assert bool((ledger.forwards == 1 + 60 + 1 + tightened * ledger.size.isfinite()).all())

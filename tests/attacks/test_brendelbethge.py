"""Brendel-Bethge on flat boundaries, where its steps are known; and a peer's bug."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from helpers.models import CONVEX, bent, close, draw, linear, rows, threat, wrap
from scipy.optimize import minimize

from holdfast.attacks import run
from holdfast.attacks.minimum_norm.brendelbethge import INSIDE, BoundaryPoint, BrendelBethge
from holdfast.attacks.problem import Problem
from holdfast.norms import L0
from holdfast.rng import Keys


@pytest.mark.parametrize("radius", [0.05, 0.3])
def test_an_l2_step_solves_the_papers_problem(radius: float) -> None:
    """Of all points on the hyperplane, in the box and as near to the current point, none is nearer
    to x (SLSQP)."""
    model = linear(2, features=6)
    target = wrap(model, (1, 2, 3))
    x, y = rows(target, 8)
    p = Problem(target, x, y, threat("l2", math.inf), Keys.of(0, torch.arange(8)))
    d = p.lo + (p.hi - p.lo) * draw(*x.shape, seed=3)
    value, g = p.gradient(d, "margin")
    d = (d + p.norm.reach(g, -value, p.lo - d, p.hi - d)).clamp(
        p.lo, p.hi
    )  # onto the boundary, where one is in the box
    on = p.gradient(d, "margin")[0].abs() < 1e-9
    shifted = BrendelBethge(radius=radius, walks=1).step(p, BoundaryPoint(d, g), 0).d
    assert int(on.sum()) > 3
    for i in on.nonzero()[:, 0].tolist():
        c, at, to = (v[i].flatten().numpy() for v in (g, d, shifted))
        past = (
            INSIDE * np.linalg.norm(c) * np.linalg.norm(at)
        )  # the hyperplane is that of points just past the boundary
        found = minimize(
            lambda v: v @ v,
            at,
            jac=lambda v: 2 * v,
            bounds=list(zip(p.lo[i].flatten().tolist(), p.hi[i].flatten().tolist(), strict=True)),
            constraints=[
                {"type": "eq", "fun": lambda v, c=c, at=at, past=past: c @ (v - at) - past},
                {
                    "type": "ineq",
                    "fun": lambda v, at=at, to=to: (to - at) @ (to - at) - (v - at) @ (v - at),
                },
            ],
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 200},
        )
        assert abs(c @ (to - at) - past) < 1e-9
        np.testing.assert_allclose(np.sqrt(to @ to), np.sqrt(found.fun), rtol=1e-5)


def test_an_l0_step_lets_the_least_useful_fall() -> None:
    """Where all may fall, no set of features smaller than the step's reaches the plane (every set
    tried)."""
    lo, hi = -draw(20, 1, 2, 3, seed=1), draw(20, 1, 2, 3, seed=2)
    d, g = lo + (hi - lo) * draw(20, 1, 2, 3, seed=3), draw(20, 1, 2, 3, seed=4) - 0.5
    most = torch.maximum(g * lo, g * hi).flatten(1)
    gap = (0.7 * most.sum(1) - (g * d).flatten(1).sum(1)).clamp_min(0)
    every, few = (
        L0.along(d, g, gap, torch.full((20,), s, dtype=d.dtype), lo, hi) for s in (1.0, 0.1)
    )
    for v in (every, few):
        assert bool(((lo <= v) & (v <= hi)).all())
        assert bool((((v - d) * g).flatten(1).sum(1) >= gap - 1e-9).all())
    need = gap + (g * d).flatten(1).sum(1)
    for i in range(20):
        sets = (
            s
            for k in range(7)
            for s in itertools.combinations(most[i].tolist(), k)
            if sum(s) >= need[i] - 1e-12
        )
        assert int(L0.size(every)[i]) == len(next(sets))
    assert bool((L0.size(few) >= 5).all())  # one of six may fall
    assert int((L0.size(few) == 5).sum()) > 5


@pytest.mark.parametrize("norm", CONVEX)
def test_the_trust_region_does_not_grow_with_the_batch(norm: str) -> None:
    """A peer multiplies its radius by the number of rows."""
    target = wrap(bent())
    x, y = rows(target, 12)
    attack = BrendelBethge(steps=30)
    whole = run(attack, target, x, y, threat(norm, math.inf))
    alone = run(attack, target, x[:1], y[:1], threat(norm, math.inf))
    close(whole.size[:1], alone.size)


@pytest.mark.parametrize("norm", CONVEX)
def test_the_second_search_begins_on_the_boundary_in_noise(norm: str) -> None:
    target = wrap(bent())
    x, y = rows(target, 20)
    p = Problem(target, x, y, threat(norm, math.inf), Keys.of(0, torch.arange(20)))
    d = BrendelBethge()._boundary(p)
    met = p.adversarial(d)
    assert int(met.sum()) > 15
    assert not bool(d[~met].any())
    noise = p.lo + (p.hi - p.lo) * p.noise("start 0").uniform(x.shape[1:], x.dtype)
    ray = [p.norm.shrink(noise, torch.full((20,), k / 32, dtype=d.dtype)) for k in range(33)]
    # five halvings: the point before it on the ray does not meet it
    for row in p.adversarial(noise).nonzero()[:, 0]:
        k = next(k for k in range(1, 33) if torch.allclose(ray[k][row], d[row]))
        assert not bool(p.adversarial(ray[k - 1])[row])


def test_costs_are_as_stated() -> None:
    target = wrap(bent())
    x, y = rows(target, 10)
    for walks in (1, 2, 3):
        ledger = run(BrendelBethge(steps=12, walks=walks), target, x, y, threat("l2", math.inf))
        assert bool((ledger.backwards == 12).all())
        starts = ledger.forwards - (1 + 12 + 1 + 5 * ledger.size.isfinite())
        least = 6 * (walks - 1)
        assert bool(((least <= starts) & (starts <= 10 * (walks - 1))).all())
        assert bool((starts == least).any())


def test_rows_far_beyond_eps_are_left_and_others_are_not() -> None:
    target = wrap(bent())
    x, y = rows(target, 40)
    attack = BrendelBethge(steps=40, walks=4, close=0.2)
    usual = run(attack, target, x, y, threat("l2", math.inf))  # every size is asked for
    eps = float(usual.size.median())
    found = run(attack, target, x, y, threat("l2", eps), stop=False)
    far = usual.size > 2 * eps
    assert bool(far.any())
    assert bool((found.backwards[far] < usual.backwards[far]).all())
    whole = found.backwards == usual.backwards
    close(found.size[whole], usual.size[whole])
    assert bool(whole[usual.size <= eps].any())
    assert bool((found.size[~whole] > eps).all())
    # nor is one left that is near the largest eps of a curve
    curve = run(attack, target, x, y, threat("l2", eps), stop=False, widest=1e9)
    close(curve.size, usual.size)


class Flat(torch.nn.Module):
    """Of class 1 where the mean is above 0.48, and the same wherever it is below 0.45."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bright = 10 * (x.flatten(1).mean(1) - 0.45).relu()
        return torch.stack([torch.full_like(bright, 0.3), bright], 1)


def test_a_row_without_a_success_is_not_a_far_one() -> None:
    """At x it is led nowhere; then it begins at noise."""
    target = wrap(Flat())
    x, y = torch.full((4, 1, 4, 4), 0.2), torch.zeros(4, dtype=torch.int64)
    found = run(BrendelBethge(steps=40, walks=2, close=0.1), target, x, y, threat("l2", 0.1))
    assert bool(found.size.isfinite().all())
    assert bool((found.backwards == 40).all())

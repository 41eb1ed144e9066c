"""Brendel-Bethge on flat boundaries, where its steps are known; and a peer's bug."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from holdfast.attacks import run
from holdfast.attacks.brendelbethge import BrendelBethge, Walk
from holdfast.attacks.problem import Problem
from holdfast.rng import Keys
from laws.world import CONVEX, bent, close, draw, linear, rows, threat, wrap


@pytest.mark.parametrize("radius", [0.05, 0.3])
def test_an_l2_step_solves_the_papers_problem(radius: float) -> None:
    """Of all points on the hyperplane, in the box and as near to the current point, none is nearer to x (SLSQP)."""
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
    moved = BrendelBethge(radius=radius, walks=1).step(p, Walk(d, g), 0).d
    assert int(on.sum()) > 3
    for i in on.nonzero()[:, 0].tolist():
        c, at, to = (v[i].flatten().numpy() for v in (g, d, moved))
        found = minimize(
            lambda v: v @ v,
            at,
            jac=lambda v: 2 * v,
            bounds=list(zip(p.lo[i].flatten().tolist(), p.hi[i].flatten().tolist(), strict=True)),
            constraints=[
                {"type": "eq", "fun": lambda v, c=c, at=at: c @ (v - at)},
                {"type": "ineq", "fun": lambda v, at=at, to=to: (to - at) @ (to - at) - (v - at) @ (v - at)},
            ],
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 200},
        )
        assert abs(c @ (to - at)) < 1e-9
        np.testing.assert_allclose(np.sqrt(to @ to), np.sqrt(found.fun), rtol=1e-5)


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
def test_the_second_walk_begins_on_the_boundary_in_noise(norm: str) -> None:
    target = wrap(bent())
    x, y = rows(target, 20)
    p = Problem(target, x, y, threat(norm, math.inf), Keys.of(0, torch.arange(20)))
    d = BrendelBethge()._boundary(p)
    met = p.adversarial(d)
    assert int(met.sum()) > 15
    assert not bool(d[~met].any())
    nearer = p.adversarial(p.norm.shrink(d, torch.full((20,), 0.95, dtype=d.dtype)))
    assert float((nearer & met).double().mean()) < 0.2


def test_costs_are_as_stated() -> None:
    target = wrap(bent())
    x, y = rows(target, 10)
    for walks, forwards in ((1, 0), (2, 15), (3, 30)):
        ledger = run(BrendelBethge(steps=12, walks=walks), target, x, y, threat("l2", math.inf))
        assert bool((ledger.backwards == 12).all())
        assert bool((ledger.forwards == 1 + 12 + forwards + 1 + 5 * ledger.size.isfinite()).all())

"""What `Problem` adds to a norm: mask, box, free directions, starts; and what an infinite eps asks
for."""

from __future__ import annotations

import pytest
import torch
from helpers.catalogue import each, short
from helpers.models import CONVEX, SHAPE, bent, draw, rows, threat, wrap

from holdfast.attacks import run
from holdfast.attacks.problem import Problem
from holdfast.errors import SpecError
from holdfast.norms import wide
from holdfast.rng import Keys

N = 20


def problem(norm: str, *, mask: torch.Tensor | None = None) -> Problem:
    target = wrap(bent())
    x, y = rows(target, N, edge=True)
    return Problem(target, x, y, threat(norm, mask=mask), Keys.of(0, torch.arange(N)))


@pytest.mark.parametrize("norm", CONVEX)
@pytest.mark.parametrize("where", ["ball", "sphere", "zero"])
def test_starts_are_legal_and_of_their_size(norm: str, where: str) -> None:
    mask = draw(*SHAPE) < 0.5
    for p in (problem(norm), problem(norm, mask=mask)):
        d = p.random_start(where)
        assert bool((p.norm.size(d) <= p.eps.flatten() * (1 + 1e-9)).all())
        assert bool(((d >= p.lo) & (d <= p.hi)).all())
        assert bool((d * (0 if p._mask is None else ~mask) == 0).all())
        assert torch.equal(d, p.random_start(where))
        assert (where == "zero") == bool((d == 0).all())
        p.t += 1
        assert where == "zero" or not torch.equal(d, p.random_start(where))


@pytest.mark.parametrize("norm", CONVEX)
def test_strides_lead_to_the_best_point_and_stay_there(norm: str) -> None:
    """Also where the box stops many entries: <g, d> is largest where steps and projections end."""
    p = problem(norm)
    g = Keys.of(1, torch.arange(N)).normal(SHAPE, torch.float64)
    d = p.random_start("ball")
    for _ in range(300):
        d = p.project(d + p.stride(g, 0.1))
    best = (d * g).flatten(1).sum(1)
    for seed in range(50):
        other = p.project(3 * p.eps * p.norm.sphere(Keys.of(seed, torch.arange(N)), d) + d)
        assert bool(((other * g).flatten(1).sum(1) <= best + 1e-9).all())


@each(0)
def test_an_infinite_eps_is_refused_by_what_needs_a_ball(name: str, norm: str) -> None:
    target = wrap(bent())
    x, y = rows(target, N)
    attack = short(name)
    if not attack.bounded:
        pytest.skip("seeks the smallest")
    with pytest.raises(SpecError, match="needs a finite eps"):
        run(attack, target, x, y, threat(norm, torch.inf))


@pytest.mark.parametrize("norm", CONVEX)
def test_an_infinite_eps_keeps_the_smallest(norm: str) -> None:
    """Rows with eps inf are not settled by their first success: a search from small to large keeps
    the smallest."""
    target = wrap(bent())
    x, y = rows(target, N)
    eps = torch.full((N,), torch.inf, dtype=torch.float64)
    p_norm = threat(norm).norm
    d = p_norm.project(torch.ones_like(x), wide(eps, x), -x, 1 - x)
    assert torch.equal(d, 1 - x)
    ledger = run(
        short("sweep", steps=4, order="exhaustive"), target, x, y, threat(norm, 0.9), stop=False
    )
    first = run(short("sweep", steps=4, order="exhaustive"), target, x, y, threat(norm, 0.9))
    assert bool((ledger.size <= first.size).all())

"""What `Problem` adds to a norm: mask, box, free directions, starts; and what an infinite eps asks for."""

from __future__ import annotations

import pytest
import torch

from holdfast.attacks import Outcome, run
from holdfast.attacks.problem import Problem
from holdfast.norms import NORMS, wide
from holdfast.rng import Keys
from laws.catalogue import each_gradient, known, short
from laws.world import SHAPE, bent, draw, rows, threat, wrap

N = 20


def problem(norm: str, *, mask: torch.Tensor | None = None) -> Problem:
    target = wrap(bent())
    x, y = rows(target, N, edge=True)
    return Problem(target, x, y, threat(norm, mask=mask), Keys.of(0, torch.arange(N)))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("where", ["ball", "sphere", "zero"])
def test_starts_are_legal_and_of_their_size(norm: str, where: str) -> None:
    mask = draw(*SHAPE) < 0.5
    for p in (problem(norm), problem(norm, mask=mask)):
        d = p.random_start(where)
        assert bool((p.norm.size(d) <= p.eps.flatten() * (1 + 1e-9)).all())
        assert bool(((d >= p.lo) & (d <= p.hi)).all())
        assert bool((d * (0 if p.mask is None else ~mask) == 0).all())
        assert torch.equal(d, p.random_start(where))
        assert (where == "zero") == bool((d == 0).all())
        p.t += 1
        assert where == "zero" or not torch.equal(d, p.random_start(where))


def test_no_whole_step_is_spent_against_the_box() -> None:
    """In L1 one entry takes the whole step; in the other norms a stopped entry costs little."""
    p = problem("l1")
    g = Keys.of(1, torch.arange(N)).normal(SHAPE, torch.float64)
    d = torch.zeros_like(g)
    step = p.steepest(g, d)
    out = (g > 0) & (p.hi == 0) | (g < 0) & (p.lo == 0)
    assert int(out.sum()) > N
    assert bool((step[out] == 0).all())
    assert torch.allclose(p.norm.size(step), torch.ones(N, dtype=torch.float64))
    # Among the free directions it is the steepest.
    free = g.masked_fill(out, 0)
    assert torch.allclose((step * g).flatten(1).sum(1), p.norm.dual(free))


@each_gradient
def test_an_infinite_eps_fails_no_row(name: str, norm: str, request: pytest.FixtureRequest) -> None:
    known(request, True, "inf times 0 is NaN in starts and steps; eps inf is neither refused nor searched")
    target = wrap(bent())
    x, y = rows(target, N)
    mask = torch.arange(16).reshape(SHAPE) < 15  # where it is False, gradients are 0
    ledger = run(short(name), target, x, y, threat(norm, torch.inf, mask=mask))
    assert bool((ledger.outcome != Outcome.FAILED).all())
    assert bool(ledger.best.isfinite().all())


@pytest.mark.parametrize("norm", NORMS)
def test_an_infinite_eps_keeps_the_smallest(norm: str) -> None:
    """Rows with eps inf are not settled by their first success: a walk from small to large keeps the smallest."""
    target = wrap(bent())
    x, y = rows(target, N)
    eps = torch.full((N,), torch.inf, dtype=torch.float64)
    p_norm = threat(norm).norm
    d = p_norm.project(torch.ones_like(x), wide(eps, x), -x, 1 - x)
    assert torch.equal(d, 1 - x)
    ledger = run(short("sweep", steps=4, order="exhaustive"), target, x, y, threat(norm, 0.9), stop=False)
    first = run(short("sweep", steps=4, order="exhaustive"), target, x, y, threat(norm, 0.9))
    assert bool((ledger.size <= first.size).all())

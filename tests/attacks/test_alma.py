"""ALMA against algorithms 1 and 2 of the paper, one row at a time, in numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers.models import bent, draw, rows, threat, wrap
from helpers.ordinary import alone, gaps, path

from holdfast.attacks import run
from holdfast.attacks.minimum_norm.alma import ALMA, _slope

N, STEPS = 4, 60


def penalty(y: torch.Tensor, rho: torch.Tensor, mu: torch.Tensor) -> torch.Tensor:
    """P2 of table 1: mu y + mu rho y^2 + rho^2 y^3 / 6 above 0, mu y / (1 - rho y) below."""
    return torch.where(
        y > 0, mu * y + mu * rho * y**2 + rho**2 * y**3 / 6, mu * y / (1 - rho * y.clamp(max=0))
    )


def test_the_slope_is_that_of_the_penalty() -> None:
    """And it is mu where the goal is just met, never below 0, and steeper the farther the goal
    is."""
    y, rho, mu = draw(200) * 6 - 3, draw(200, seed=1) * 4 + 0.1, draw(200, seed=2) * 4 + 0.1
    y = y.sort().values.requires_grad_()
    slope = _slope(y.detach(), rho, mu)
    (ordinary,) = torch.autograd.grad(penalty(y, rho, mu).sum(), y)
    np.testing.assert_allclose(slope, ordinary, rtol=1e-12)
    np.testing.assert_allclose(_slope(y.detach() * 0, rho, mu), mu, rtol=1e-15)
    one = torch.ones(200, dtype=torch.float64)
    rising = _slope(y.detach(), 2 * one, 3 * one)
    assert bool((rising > 0).all())
    assert bool((rising.diff() > 0).all())


def rise(y: float, rho: float, mu: float) -> float:
    return mu + 2 * mu * rho * y + (rho * y) ** 2 / 2 if y > 0 else mu / (1 - rho * y) ** 2


@pytest.mark.parametrize(("norm", "memory"), [("l2", 0.5), ("l1", 0.9)])
def test_the_path_is_that_of_a_plain_rewrite(norm: str, memory: float) -> None:
    """mu is a running mean of the penalty's slopes in [1e-6, 1e12]; rho grows by 1.2 each ten steps
    that neither met the goal nor came 5 % nearer; steps fall to a hundredth of the first from the
    first success on."""
    target = wrap(bent(seed=8))
    x, y = rows(target, N, edge=True)
    grown = met = 0
    for i in range(N):
        clean, label = x[i].flatten().numpy(), int(y[i])
        d, mean, square, mu, rho, found, checked = (
            np.zeros(16),
            np.zeros(16),
            np.ones(16),
            1.0,
            1.0,
            STEPS,
            1.0,
        )
        unit = first = 0.0
        for t, state in enumerate(
            path(ALMA(steps=STEPS, memory=memory, first=0.1), alone(target, x, y, i, norm))
        ):
            gap, g = next(gaps(target, clean + d, label))
            unit = unit if t else -gap / 0.7  # the DLR at x is about 0.7
            v = -gap / unit
            found = min(found, t) if gap > 0 else found
            if (t + 1) % 10 == 0:
                if found == STEPS and v >= 0.95 * checked:
                    rho, grown = 1.2 * rho, grown + 1
                checked = v
            if t:
                mu = min(max(memory * mu + (1 - memory) * rise(v, rho, mu), 1e-6), 1e12)
            slope = rise(v, rho, mu)
            size = np.sign(d) if norm == "l1" else d / max(np.linalg.norm(d), 1e-300)
            g = size - slope * g / unit
            if not t:
                free = np.where(g > 0, clean > 0, clean < 1)
                first = 0.1 / np.linalg.norm(g * free, 1 if norm == "l1" else 2)
            square = memory * square + (1 - memory) * g**2
            mean = memory * mean + g / (np.sqrt(square) + 1e-8)
            fade = 0.01 ** (max(t - found, 0) / max(STEPS - found, 1))
            d = np.clip(clean + d - fade * first * mean, 0, 1) - clean
            met += gap > 0
            np.testing.assert_allclose(state.d.flatten(), d, rtol=0, atol=1e-8)
            np.testing.assert_allclose([float(state.mu), float(state.rho)], [mu, rho], rtol=1e-7)
            d = state.d.flatten().numpy()
    assert grown > 0 or norm == "l2"
    assert N < met < N * (STEPS - 1)


def test_costs_are_as_stated() -> None:
    target = wrap(bent())
    x, y = rows(target, 10)
    ledger = run(ALMA(steps=20), target, x, y, threat("l2", math.inf))
    assert ledger.backwards.tolist() == [20] * 10
    assert ledger.forwards.tolist() == (1 + 20 + 1 + 5 * ledger.size.isfinite()).tolist()

"""EAD against a plain rewrite, one row at a time, in numpy: shrinkage, Nesterov's step and the
search for c."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers.models import bent, rows, threat, wrap
from helpers.ordinary import alone, gaps, path

from holdfast.attacks import run
from holdfast.attacks.minimum_norm.ead import EAD
from holdfast.norms import L1

N, STEPS, SEARCHES, BETA, RATE = 3, 120, 4, 0.02, 0.01


def test_shrinkage_is_the_papers() -> None:
    """Equation 5: z - beta above beta, 0 within it, z + beta below -beta."""
    z = torch.tensor([[0.7, 0.3, 0.2, 0.0, -0.2, -0.3, -0.7]], dtype=torch.float64)
    thinner = L1.prox(z, torch.full((1, 1), 0.25, dtype=torch.float64))
    np.testing.assert_allclose(thinner, [[0.45, 0.05, 0, 0, 0, -0.05, -0.45]], atol=1e-15)


def test_the_path_is_that_of_a_plain_rewrite() -> None:
    """A step against |d|^2 + c max(margin, 0), then beta off each entry; the gradient is asked t /
    (t + 3) ahead."""
    target = wrap(bent(seed=8))
    x, y = rows(target, N, edge=True)
    span = STEPS // SEARCHES
    turns = zeros = fines = 0
    for i in range(N):
        clean, label = x[i].flatten().numpy(), int(y[i])
        d, at = np.zeros(16), np.zeros(16)
        c, factor, rose, met, checked, best, age, unit = (
            0.1,
            10.0,
            True,
            False,
            math.inf,
            math.inf,
            0,
            1.0,
        )
        attack = EAD(steps=STEPS, searches=SEARCHES, c=0.1, beta=BETA, rate=RATE)
        for t, state in enumerate(path(attack, alone(target, x, y, i, "l1"))):
            gap, slope = next(gaps(target, clean + d, label))
            unit = unit if t else -gap
            if gap > 0:
                best, met = min(best, float(np.abs(d).sum())), True
            pull = c / unit if gap < 0 else 0.0
            loss = -pull * gap + d @ d + BETA * np.abs(d).sum()
            fine = min(1, 3 * best)  # near the end of a small search the lengths are small too
            fines += fine < 1
            ahead = d - fine * RATE * math.sqrt(1 - age / span) * (2 * d - pull * slope)
            shrunk = np.sign(ahead) * np.maximum(np.abs(ahead) - fine * BETA, 0)
            now = np.clip(clean + shrunk, 0, 1) - clean
            check = age % (span // 10) == 0
            over = age + 1 >= span or (check and loss > 0.9999 * checked)
            d = now if over else np.clip(clean + now + age / (age + 3) * (now - at), 0, 1) - clean
            at, zeros = now, zeros + int((now == 0).sum())
            if over:
                if met == rose:
                    factor, turns = max(math.sqrt(factor), 1.2), turns + 1
                c, rose = (c / factor, False) if met else (c * factor, True)
                met, checked, age = False, math.inf, 0
            else:
                checked, age = loss if check else checked, age + 1
            np.testing.assert_allclose(state.at.flatten(), at, rtol=0, atol=1e-9)
            np.testing.assert_allclose(state.d.flatten(), d, rtol=0, atol=1e-9)
            assert float(state.c) == pytest.approx(c)
    assert min(turns, zeros, fines) > 0


def test_costs_are_as_stated() -> None:
    target = wrap(bent())
    x, y = rows(target, 10)
    ledger = run(EAD(steps=20), target, x, y, threat("l1", math.inf))
    assert ledger.backwards.tolist() == [20] * 10
    assert ledger.forwards.tolist() == (1 + 20 + 1 + 5 * ledger.size.isfinite()).tolist()

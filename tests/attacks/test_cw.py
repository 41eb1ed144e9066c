"""Carlini and Wagner's attack against a plain rewrite, one row at a time, in numpy; and its search
for c."""

from __future__ import annotations

import math

import numpy as np
import pytest
from helpers.models import bent, rows, threat, wrap
from helpers.ordinary import alone, gaps, path

from holdfast.attacks import run
from holdfast.attacks.minimum_norm.cw import CW

N = 3
EDGE = 0.9  # tanh at the box's edges


@pytest.mark.parametrize(("steps", "searches"), [(120, 8), (60, 1)])
def test_the_path_is_that_of_a_plain_rewrite(steps: int, searches: int) -> None:
    """Adam on |d|^2 + c max(margin, 0) in tanh space. A search ends after its steps, or where a
    tenth of them brought less than 1e-4; c then falls by its factor after a success, rises after
    none, and each turn takes the root of it."""
    target = wrap(bent(seed=8))
    x, y = rows(target, N, edge=True)
    span = steps // searches
    turns = early = met_ever = 0
    for i in range(N):
        clean, label = x[i].flatten().numpy(), int(y[i])
        w, d = np.arctanh(EDGE * (2 * clean - 1)), np.zeros(16)
        c, factor, rose, met, checked, best = 0.1, 10.0, True, False, math.inf, math.inf
        age, mean, square, unit = 0, np.zeros(16), np.zeros(16), 1.0
        for t, state in enumerate(
            path(CW(steps=steps, searches=searches, c=0.1, rate=0.05), alone(target, x, y, i, "l2"))
        ):
            gap, slope = next(gaps(target, clean + d, label))
            unit = unit if t else -gap
            if gap > 0:
                best, met, met_ever = min(best, float(np.linalg.norm(d))), True, met_ever + 1
            loss = d @ d + (c * -gap / unit if gap < 0 else 0)
            check = age % max(span // 10, 1) == 0
            over = age + 1 >= span or (check and loss > 0.9999 * checked)
            early += over and age + 1 < span
            pull = c if gap < 0 else 0.0
            if over:
                if met == rose:
                    factor, turns = max(math.sqrt(factor), 1.2), turns + 1
                c, rose = (c / factor, False) if met else (c * factor, True)
                checked = math.inf
            elif check:
                checked = loss
            met = met and not check and not over
            bend = (1 - np.tanh(w) ** 2) / (2 * EDGE)  # d x / d w
            g = (2 * d - pull / unit * slope) * bend
            mean, square = 0.9 * mean + 0.1 * g, 0.999 * square + 0.001 * g**2
            step = (
                0.05
                * mean
                / (1 - 0.9 ** (age + 1))
                / (np.sqrt(square / (1 - 0.999 ** (age + 1))) + 1e-8)
            )
            step *= min(1, 0.1 * best / np.linalg.norm(step * bend))
            w = np.clip(w - step, -np.arctanh(EDGE), np.arctanh(EDGE))
            d = (np.tanh(w) / EDGE + 1) / 2 - clean
            age, mean, square = (0, mean * 0, square * 0) if over else (age + 1, mean, square)
            np.testing.assert_allclose(state.descent.d.flatten(), d, rtol=0, atol=1e-8)
            assert float(state.descent.c) == pytest.approx(c)
            assert float(state.factor) == pytest.approx(factor)
            w, d = state.descent.w.flatten().numpy(), state.descent.d.flatten().numpy()
    assert min(turns, early) > 0
    assert met_ever > N


def test_costs_are_as_stated() -> None:
    target = wrap(bent())
    x, y = rows(target, 10)
    ledger = run(CW(steps=20), target, x, y, threat("l2", math.inf))
    assert ledger.backwards.tolist() == [20] * 10
    assert ledger.forwards.tolist() == (1 + 20 + 1 + 5 * ledger.size.isfinite()).tolist()

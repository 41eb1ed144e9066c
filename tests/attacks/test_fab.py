"""FAB against algorithm 1 of the paper, one row at a time, in numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from helpers.models import CONVEX, bent, rows, threat, wrap
from helpers.ordinary import DUAL, ORDER, alone, gaps, onto, path

from holdfast.attacks import run
from holdfast.attacks.minimum_norm.fab import FAB

N = 6


@pytest.mark.parametrize("norm", CONVEX)
def test_the_path_is_that_of_a_plain_rewrite(norm: str) -> None:
    """Both projections in the box, alpha = min(a1 / (a1 + a2), 0.1), overshoot 1.05, and 0.9 of d
    after a success."""
    target = wrap(bent(seed=8))
    x, y = rows(target, N, edge=True)
    hits = misses = 0
    for i in range(N):
        clean, label = x[i].flatten().numpy(), int(y[i])
        d, drive = np.zeros(16), 1.0
        for state in path(FAB(steps=15), alone(target, x, y, i, norm)):
            gap, w = min(
                gaps(target, clean + d, label),
                key=lambda p: abs(p[0]) / np.linalg.norm(p[1], DUAL[norm]),
            )
            forth, back = onto(norm, w, -gap, clean + d), onto(norm, w, float(w @ d) - gap, clean)
            a1, a2 = (np.linalg.norm(v, ORDER[norm]) for v in (forth, back))
            alpha, eta = min(a1 / (a1 + a2), 0.1), min(max(drive, 1.05), 10)
            # Of the two points only one that lies short of the boundary overshoots it.
            ahead = d + (eta if gap < 0 else 1) * forth
            anchor = (eta if w @ d > gap else 1) * back
            d = np.clip(clean + (1 - alpha) * ahead + alpha * anchor, 0, 1) - clean
            met = next(gaps(target, clean + d, label))[0] > 0
            hits, misses = hits + met, misses + (not met)
            d, drive = (0.9 * d, 1.0) if met else (d, 1.05 * drive)
            np.testing.assert_allclose(state.d.flatten(), d, rtol=0, atol=1e-9)
            assert float(state.drive) == pytest.approx(drive)
    assert hits > N
    assert misses > 0


def test_costs_are_as_stated() -> None:
    target = wrap(bent())
    x, y = rows(target, 10)
    for rank, backwards in ((0, 4), (1, 1)):
        ledger = run(FAB(steps=12), target, x, y, threat("l2", math.inf), rank=rank)
        assert ledger.backwards.tolist() == [12 * backwards] * 10
        # The clean scores, two a step, the last point, and five for what was found.
        assert ledger.forwards.tolist() == (1 + 24 + 1 + 5 * ledger.size.isfinite()).tolist()

"""FMN against algorithm 1 of the paper, one row at a time, in numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers.models import CONVEX, bent, rows, wrap
from helpers.ordinary import ORDER, alone, gaps, onto, path

from holdfast.attacks.minimum_norm.fmn import FMN

N = 5
STEPS = 30


@pytest.mark.parametrize("first", [1.0, 0.01], ids=["long steps", "short steps"])
@pytest.mark.parametrize("norm", CONVEX)
def test_the_path_is_that_of_a_plain_rewrite(norm: str, first: float) -> None:
    """Steps and shares fade on a cosine; a success shrinks the radius, at most to the best known, a
    miss lets it grow; before a first success it follows the linearised boundary, from the first
    step's size on and at most twofold."""
    target = wrap(bent(seed=8))
    x, y = rows(target, N, edge=True)
    hits = misses = 0
    for i in range(N):
        p = alone(target, x, y, i, norm)
        clean, label, d, radius, best = (
            x[i].flatten().numpy(),
            int(y[i]),
            np.zeros(16),
            0.0,
            math.inf,
        )
        for t, state in enumerate(path(FMN(steps=STEPS, alpha=first), p)):
            gap, g = next(gaps(target, clean + d, label))
            fade = (1 + math.cos(math.pi * t / STEPS)) / 2
            alpha, gamma = first * (0.01 + 0.99 * fade), 0.05 * (0.02 + 0.98 * fade)
            ahead, lost = d + alpha * g / np.linalg.norm(g), False
            if gap > 0:
                best = min(best, float(np.linalg.norm(d, ORDER[norm])))
                radius, hits = min((1 - gamma) * radius, best), hits + 1
            elif best < math.inf:
                radius, misses = (1 + gamma) * radius, misses + 1
            else:
                lost = True
                most = 2 * radius if t else float(np.linalg.norm(ahead, ORDER[norm]))
                to = d + onto(norm, g, -gap, clean + d)
                radius = max(
                    (1 + gamma) * radius,
                    min((1 + gamma) * float(np.linalg.norm(to, ORDER[norm])), most),
                )
            assert float(state.radius) == pytest.approx(radius, rel=1e-9)
            d = state.d[0].flatten().numpy()
            out = ahead * (100 if lost and t >= 3 else 1)
            ball = torch.full((1, 1, 1, 1), radius, dtype=torch.float64)
            nearest = p.norm.project(torch.from_numpy(out).view(1, 1, 4, 4), ball, p.lo, p.hi)
            np.testing.assert_allclose(d, nearest.flatten(), rtol=0, atol=1e-9)
    assert hits > N
    assert misses > N

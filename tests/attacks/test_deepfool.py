"""DeepFool and SuperDeepFool against their algorithms, one row at a time, in numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from helpers.models import bent, rows, threat, wrap
from helpers.ordinary import alone, gaps, path

from holdfast.attacks import run
from holdfast.attacks.minimum_norm.deepfool import DeepFool
from holdfast.attacks.minimum_norm.superdeepfool import SuperDeepFool

N = 12


def boundary(boundaries: list[tuple[float, np.ndarray]], dual: float) -> tuple[float, np.ndarray]:
    """Of the linearised boundaries the nearest: its distance, and the gradient behind it."""
    gap, w = min(boundaries, key=lambda plane: abs(plane[0]) / np.linalg.norm(plane[1], dual))
    return float(-gap / np.linalg.norm(w, dual)), w


@pytest.mark.parametrize(("norm", "order", "dual"), [("linf", np.inf, 1), ("l2", 2, 2)])
@pytest.mark.parametrize("rivals", [4, 2])
def test_deepfool_steps_onto_the_nearest_boundary(
    norm: str, order: float, dual: float, rivals: int
) -> None:
    """Algorithm 2 (L2) and section 3.3 (Linf), until the first success; the overshoot grows by
    itself each step."""
    target = wrap(bent(seed=8))
    x, y = rows(target, N, edge=True)
    steps = 0
    for i in range(N):
        clean, label, d, won = x[i].flatten().numpy(), int(y[i]), np.zeros(16), False
        p = alone(target, x, y, i, norm)
        for t, state in enumerate(path(DeepFool(steps=8, rivals=rivals), p)):
            boundaries = list(gaps(target, clean + d, label))
            won = won or boundaries[0][0] > 0
            if not won:
                far, w = boundary(boundaries[:rivals], dual)
                direction = np.sign(w) if norm == "linf" else w / np.linalg.norm(w)
                more = 0.02 * (t + 1) * (np.linalg.norm(d, order) + far)
                d = np.clip(clean + d + (far + more) * direction, 0, 1) - clean
                steps += 1
            np.testing.assert_allclose(state.flatten(), d, rtol=0, atol=1e-12)
            assert bool(p._counts.over) == won
        assert won
    assert steps > N  # or the first step always were the last


def test_superdeepfool_turns_back_along_the_normal() -> None:
    """Algorithm 2, SDF(inf, 1): DeepFool until the boundary is crossed; there d is projected onto
    its normal.

    The projection is added to where the crossing began; a turned point that has crossed is drawn in
    by a fifth.
    """
    target = wrap(bent(seed=8))
    x, y = rows(target, N, edge=True)
    turns = 0
    for i in range(N):
        clean, label, d, base, tries = (
            x[i].flatten().numpy(),
            int(y[i]),
            np.zeros(16),
            np.zeros(16),
            0,
        )
        for state in path(SuperDeepFool(steps=12), alone(target, x, y, i, "l2")):
            boundaries = list(gaps(target, clean + d, label))
            far, w = boundary(boundaries, 2)
            direction = w / np.linalg.norm(w)
            if boundaries[0][0] > 0:
                d = base + (d @ direction) * direction if tries else 0.8 * d
                base, tries, turns = np.clip(clean + d, 0, 1) - clean, 0, turns + 1
            else:
                more = 0.02 * (tries + 1) * (np.linalg.norm(d) + far)
                d, tries = d + (far + more) * direction, tries + 1
            d = np.clip(clean + d, 0, 1) - clean
            np.testing.assert_allclose(state.d.flatten(), d, rtol=0, atol=1e-12)
    assert turns > N


def test_costs_are_as_stated() -> None:
    target = wrap(bent())
    x, y = rows(target, 10)
    steps = SuperDeepFool(steps=7)
    for rank, backwards in ((0, 4), (1, 1)):
        ledger = run(steps, target, x, y, threat("l2", math.inf), rank=rank)
        assert ledger.backwards.tolist() == [7 * backwards] * 10
        assert ledger.forwards.tolist() == (1 + 7 + 1 + 5 * ledger.size.isfinite()).tolist()
        first = run(DeepFool(), target, x, y, threat("l2", math.inf), rank=rank)
        # A forward a step, the last of them at the success; before them the clean scores, after
        # them five on the ray.
        assert first.backwards.tolist() == (backwards * (first.forwards - 6)).tolist()

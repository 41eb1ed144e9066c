"""DDN against algorithm 1 of the paper, one row at a time, in numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers.models import bent, rows, threat, wrap
from helpers.ordinary import alone, path

from holdfast.attacks import run
from holdfast.attacks.minimum_norm.ddn import DDN

N = 6


@pytest.mark.parametrize("width", [1, 4])
def test_the_norm_shrinks_and_grows_and_the_step_fades(width: int) -> None:
    """(1 - gamma) of the norm where the point was adversarial, (1 + gamma) where not; a cosine from
    1 to 0.01."""
    target = wrap(bent(), bounds=(0, width))
    x, y = rows(target, N, edge=True)
    steps = 40
    hits = 0
    for i in range(N):
        d, radius = torch.zeros_like(x[i]), 0.5 * width
        for t, state in enumerate(
            path(DDN(steps=steps, gamma=0.1, radius=0.5), alone(target, x, y, i, "l2"))
        ):
            leaf = (x[i] + d).clone().requires_grad_()
            z = target.model(leaf[None])
            (g,) = torch.autograd.grad(torch.nn.functional.cross_entropy(z, y[i : i + 1]), leaf)
            met = int(z.argmax(1)) != int(y[i])
            hits += met
            radius *= 0.9 if met else 1.1
            fade = 0.01 + 0.99 * (1 + math.cos(math.pi * t / steps)) / 2
            d = d + fade * width * g / g.norm()
            d = (x[i] + radius * d / d.norm()).clamp(0, width) - x[i]
            np.testing.assert_allclose(state.d[0], d, rtol=0, atol=1e-9)
            assert float(state.radius) == pytest.approx(radius)
    assert N < hits < N * (steps - 1)


def test_costs_are_as_stated() -> None:
    target = wrap(bent())
    x, y = rows(target, 10)
    ledger = run(DDN(steps=20), target, x, y, threat("l2", math.inf))
    assert ledger.backwards.tolist() == [20] * 10
    assert ledger.forwards.tolist() == (1 + 20 + 1 + 5 * ledger.size.isfinite()).tolist()

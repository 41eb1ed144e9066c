"""JSMA's path against a plain rewrite, one row at a time, in numpy. (Why its pair is the paper's:
test_sparse.)"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers.models import Bent, rows, wrap
from helpers.ordinary import alone, path

from holdfast.attacks.sparse.jsma import JSMA

N, FEATURES = 5, 40


@pytest.mark.parametrize(("theta", "eps"), [(1.0, math.inf), (0.4, math.inf), (0.4, 5)])
def test_the_path_is_that_of_a_plain_rewrite(theta: float, eps: float) -> None:
    """Each step moves the two features that raise the other class's probability most, by theta,
    within the box; where the next one would be a feature too many, it begins again at x with the
    next class."""
    target = wrap(Bent(5, FEATURES, 12, 3, torch.float64), (1, 5, 8))
    x, y = rows(target, 200, edge=True)
    sure = target.task.margin(target.scores(x), y).topk(N).indices
    x, y = x[sure], y[sure]
    anew = found = 0
    for i in range(N):
        p = alone(target, x, y, i, "l0")
        p.eps = p.eps.clamp(max=eps)
        clean, label, d, best = x[i].flatten().numpy(), int(y[i]), np.zeros(FEATURES), math.inf
        z = target.scores(x[i : i + 1])[0]
        turn = sorted(set(range(5)) - {label}, key=lambda j: -float(z[j]))
        for state in path(JSMA(steps=30, theta=theta), p):
            best = min(best, fooled(target, clean, d, label))
            leaf = torch.from_numpy(clean + d).view(1, 1, 5, 8).requires_grad_()
            (g,) = torch.autograd.grad(target.model(leaf).log_softmax(1)[0, turn[0]], leaf)
            g = g.flatten().numpy()
            ahead = np.clip(clean + d + theta * np.sign(g), 0, 1) - clean
            first, second = np.argsort(-g * (ahead - d))[:2]
            d = np.where(np.arange(FEATURES) == first, ahead, d)
            best = min(best, fooled(target, clean, d, label))
            d = np.where(np.arange(FEATURES) == second, ahead, d)
            if (d != 0).sum() + 1 > min(best - 1, eps):
                d, turn, anew = np.zeros(FEATURES), [*turn[1:], turn[0]], anew + 1
            np.testing.assert_allclose(state.d.flatten(), d, rtol=0, atol=1e-12)
            assert state.others[0].tolist() == turn
        found += best < math.inf
    assert anew > N
    assert found > 0 or eps == 5


def fooled(target, clean: np.ndarray, d: np.ndarray, label: int) -> float:
    """How many features d has, if it is adversarial; else inf."""
    met = int(target.labels(torch.from_numpy(clean + d).view(1, 1, 5, 8))) != label
    return float((d != 0).sum()) if met else math.inf

"""What a plain rewrite of an attack needs: one row, and in numpy a model's gaps, norms and the way
to a hyperplane."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from helpers.exact import distance, farthest
from helpers.models import threat
from holdfast.attacks import Attack, SearchResult
from holdfast.attacks.problem import Problem
from holdfast.rng import Keys
from holdfast.targets import TorchTarget

ORDER = {"linf": np.inf, "l2": 2, "l1": 1}  # as numpy names a norm
DUAL = {"linf": 1, "l2": 2, "l1": np.inf}


def alone(target: TorchTarget, x: Tensor, y: Tensor, i: int, norm: str) -> Problem:
    """The search for the smallest d of row i, with an empty result."""
    x, y = x[i : i + 1], y[i : i + 1]
    result = SearchResult.open(x, torch.full((1,), math.inf, dtype=torch.float64))
    return Problem(
        target, x, y, threat(norm, math.inf), Keys.of(0, torch.tensor([i])), result=result
    )


def path(attack: Attack, p: Problem) -> Iterator[Any]:
    """The attack's state after each step."""
    state = attack.start(p)
    for t in range(attack.steps):
        p.t = t + 1
        state = attack.step(p, state, t)
        yield state


def gaps(target: TorchTarget, x: np.ndarray, y: int) -> Iterator[tuple[float, np.ndarray]]:
    """How far each wrong class is from winning at x [f] (above 0: won) and that gap's gradient, the
    best first."""
    leaf = torch.from_numpy(x).view(1, *(target.shape or ())).requires_grad_()
    z = target.model(leaf)[0]
    for j in sorted(set(range(len(z))) - {y}, key=lambda j: -z[j].item()):
        (g,) = torch.autograd.grad(z[j] - z[y], leaf, retain_graph=True)
        yield (z[j] - z[y]).item(), g.flatten().numpy()


def onto(norm: str, w: np.ndarray, gap: float, at: np.ndarray) -> np.ndarray:
    """The smallest move from `at` within [0, 1] that changes <w, .> by the gap; as far as the box
    lets it."""
    w, gap = (w, gap) if gap > 0 else (-w, -gap)
    return farthest(norm, w, min(distance(norm, w, gap, -at, 1 - at), len(at)), -at, 1 - at)

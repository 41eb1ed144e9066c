"""What every bound of a margin must satisfy; each raises AssertionError where one does not."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import Tensor, nn

from helpers.exact import farthest
from helpers.networks import CLASSES, SHAPE, network, smallest
from holdfast.bounds import METHODS, Margins, Rows, climb, region, trace
from holdfast.targets.target import Bounds
from holdfast.threats.threat import Threat

SIZES = {"linf": 0.08, "l2": 0.4, "l1": 0.9, "l0": 2}


def rows_of(seed: int, n: int = 3) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(seed)
    x = torch.rand(n, *SHAPE, generator=draws).clamp(0.05, 0.9)  # some stand near the box's sides
    return x, torch.randint(CLASSES, (n,), generator=draws)


def check_sound(
    kind: str, norm: str, seed: int, samples: int, steps: int, seconds: float = 0.02
) -> None:
    net = network(kind, seed)
    x, y = rows_of(seed)
    around = region(x, Threat.parse(f"{norm}({SIZES[norm] * (1 + seed % 3)})"), Bounds())
    rows = Rows(trace(net, x[:1]), around, y)
    ladder = [climb(rows, method, seconds).clone() for method in METHODS]
    for looser, tighter in itertools.pairwise(ladder):
        assert bool((tighter >= looser).all())
    found = smallest(copy.deepcopy(net).double(), around, y, samples, steps)
    slack = 1e-9 * (1 + found.abs())
    for method, lower in zip(METHODS, ladder, strict=True):
        assert bool(lower.isfinite().sum(1).eq(CLASSES - 1).all())
        over = lower - found
        own = torch.arange(CLASSES) == y[:, None]
        assert bool((own | (over <= slack)).all()), f"{method} claims {over[~own].max():.3g} more"


def check_linear(norm: str) -> None:
    """Over the ball and the box, in float64: neither is left out, nothing is rounded."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(32, 5), nn.Linear(5, CLASSES))
    x, y = rows_of(1)
    around = region(x, Threat.parse(f"{norm}({SIZES[norm] * 3})"), Bounds())
    rows = Rows(trace(net, x[:1]), around, y)
    lower = rows.climb("crown")
    w = (net[2].weight.double() @ net[1].weight.double()).detach()
    scores = net.double()(x.double()).detach()
    for i in range(len(x)):
        lo, hi = (side[i].flatten().numpy() for side in (around.lo, around.hi))
        for j in set(range(CLASSES)) - {int(y[i])}:
            c = (w[y[i]] - w[j]).numpy()
            d = farthest(norm, -c, float(around.eps[i].flatten()), lo, hi)
            true = float(scores[i, y[i]] - scores[i, j]) + float(c @ d)
            assert float(lower[i, j]) == pytest.approx(true, abs=1e-11)
            assert float(lower[i, j]) <= true + 1e-12


def check_positive(bad: float) -> None:
    """What is not above 0 is not proved."""
    inf = float("inf")
    lower = torch.tensor([[inf, bad, 1], [inf, 1, 1], [inf, inf, inf]], dtype=torch.float64)
    found = Margins(lower, torch.zeros_like(lower), "crown")
    assert found.proved.tolist() == [False, True, False]
    assert found.certified.tolist() == [False, True, False]


def exact_bounds(net: nn.Module, x: Tensor, y: Tensor, threat: str, box: Bounds) -> Tensor:
    """Bounds by CROWN of the network in real arithmetic, 0 for y itself: what different orders of
    rounding do not change."""
    rows = Rows(trace(net, x[:1]), region(x, Threat.parse(threat), box), y)
    rows.climb("ibp")
    return rows.climb("crown").scatter(1, y[:, None], 0)

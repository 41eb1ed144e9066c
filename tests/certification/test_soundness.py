"""Bounds of random networks hold at every point that can be found, and get tighter in order."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from helpers.exact import farthest
from helpers.networks import CLASSES, KINDS, SHAPE, exact, network, smallest
from torch import Tensor, nn

from holdfast.bounds import METHODS, Region, Rows, margins, region, trace
from holdfast.norms import NORMS
from holdfast.targets.target import Bounds
from holdfast.threats.threat import Threat

SIZES = {"linf": 0.08, "l2": 0.4, "l1": 0.9, "l0": 2}


def rows_of(seed: int, n: int = 3) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(seed)
    x = torch.rand(n, *SHAPE, generator=draws).clamp(0.05, 0.9)  # some stand near the box's sides
    return x, torch.randint(CLASSES, (n,), generator=draws)


def check(kind: str, norm: str, seed: int, samples: int, steps: int) -> None:
    net = network(kind, seed)
    x, y = rows_of(seed)
    around = region(x, Threat.parse(f"{norm}({SIZES[norm] * (1 + seed % 3)})"), Bounds())
    rows = Rows(trace(net, x[:1]), around, y)
    ladder = [rows.climb(method).clone() for method in METHODS]
    for looser, tighter in itertools.pairwise(ladder):
        assert bool((tighter >= looser).all())
    found = smallest(net, around, y, samples, steps)
    slack = 1e-9 * (1 + found.abs())
    for method, lower in zip(METHODS, ladder, strict=True):
        assert bool(lower.isfinite().sum(1).eq(CLASSES - 1).all())
        over = lower - found
        own = torch.arange(CLASSES) == y[:, None]
        assert bool((own | (over <= slack)).all()), f"{method} claims {over[~own].max():.3g} more"


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_no_point_lies_below_a_bound(kind: str, norm: str) -> None:
    for seed in range(8 if norm == "linf" else 3):
        check(kind, norm, seed, samples=40, steps=10)


@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_no_point_lies_below_a_bound_of_many_networks(kind: str, norm: str) -> None:
    for seed in range(100, 184):  # six kinds, four norms: 2,016 networks
        check(kind, norm, seed, samples=10_000, steps=40)


def check_exact(seed: int) -> None:
    """A network of at most 24 ReLUs against a mixed integer program."""
    widths = [[4, 12, 12, 3], [6, 20, 3], [3, 8, 8, 8, 3]][seed % 3]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [nn.Linear(a, b) for a, b in itertools.pairwise(widths)]
        for layer in layers:
            nn.init.normal_(layer.weight, std=1.5 / layer.in_features**0.5)
        x = torch.rand(1, widths[0])
    net = nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU())))[:-1]
    y = torch.tensor([seed % 3])
    around = region(x, Threat.linf(0.15), Bounds())
    rows = Rows(trace(net, x), around, y)
    lo, hi = (side[0].numpy() for side in around.interval())
    one = np.eye(3)[int(y)] - np.eye(3)
    least = torch.tensor([np.inf if j == y else exact(layers, lo, hi, one[j]) for j in range(3)])
    for method in METHODS:
        assert bool((rows.climb(method)[0] <= least + 1e-5).all()), method


def test_no_bound_lies_above_the_exact_margin() -> None:
    for seed in range(6):
        check_exact(seed)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(10, 210, 50))
def test_no_bound_lies_above_the_exact_margin_of_many_networks(first: int) -> None:
    for seed in range(first, first + 50):
        check_exact(seed)


@pytest.mark.parametrize("norm", NORMS)
def test_a_linear_network_is_bounded_exactly(norm: str) -> None:
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


def test_a_row_is_bounded_alike_in_any_company() -> None:
    x, y = rows_of(3, 7)
    net = network("residual", 3)
    whole = margins(net, x, y, "linf(0.1)", method="alpha-crown").lower
    for i in range(7):
        alone = margins(net, x[i : i + 1], y[i : i + 1], "linf(0.1)", method="alpha-crown").lower
        assert torch.allclose(alone, whole[i : i + 1], atol=1e-9, rtol=0)


def test_rows_climb_on_from_what_is_known() -> None:
    x, y = rows_of(4, 5)
    rows = Rows(trace(network("dense", 4), x[:1]), region(x, Threat.linf(0.1), Bounds()), y)
    rows.climb("ibp")
    rows.climb("crown")
    part = rows.at(torch.tensor([3, 1]))
    assert torch.equal(part.lower, rows.lower[[3, 1]])
    climbed = part.climb("alpha-crown")
    assert bool((climbed >= rows.lower[[3, 1]]).all())
    assert bool((climbed > rows.lower[[3, 1]]).any())
    assert isinstance(part.region, Region)

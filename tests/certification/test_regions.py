"""The least of a linear function over a ball, a box and a half-space."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.bounds import SIZES, rows_of
from helpers.networks import CLASSES
from scipy.optimize import linprog
from torch import Tensor, nn

from holdfast.bounds import Region, margins, region
from holdfast.norms import NORMS
from holdfast.targets.target import Bounds
from holdfast.threats.threat import Threat


def halved(norm: str, seed: int, n: int = 6) -> tuple[Region, Tensor, tuple[Tensor, Tensor]]:
    """Regions of rows, coefficients, and half-spaces that leave half of each, or less."""
    x, _ = rows_of(seed, n)
    around = region(x, Threat.parse(f"{norm}({SIZES[norm]})"), Bounds())
    draws = torch.Generator().manual_seed(seed)
    slope, a = torch.randn(2, *x.shape, generator=draws, dtype=torch.float64)
    every, share = torch.arange(n), torch.rand(n, generator=draws, dtype=torch.float64)
    least, most = around.least(slope, every, ()), -around.least(-slope, every, ())
    return around, a, (slope, -(least + (most - least) * share**2 / 2))


@pytest.mark.parametrize("norm", NORMS)
def test_no_input_of_a_half_space_lies_below_its_least(norm: str) -> None:
    draws = torch.Generator().manual_seed(1)
    for seed in range(3):
        around, a, (slope, at_0) = halved(norm, seed)
        every = torch.arange(len(a))
        found = around.within(slope, at_0).least(a, every, ())
        assert bool((found >= around.least(a, every, ()) - 1e-12).all())
        met = 0
        for t in range(400):  # the part of the ball that the half-space prefers
            d = torch.randn(a.shape, generator=draws, dtype=torch.float64) - t / 100 * slope
            d = around.norm.project(d, around.eps, around.lo, around.hi)
            within = ((around.x + d) * slope).flatten(1).sum(1) + at_0 <= 0
            value = (a * (around.x + d)).flatten(1).sum(1)
            assert bool((value >= found - 1e-9)[within].all())
            met += int(within.sum())
        assert met > 100


def test_the_least_over_a_box_and_a_half_space_is_that_of_a_linear_program() -> None:
    around, a, (slope, at_0) = halved("linf", 5)
    every = torch.arange(len(a))
    found = around.within(slope, at_0).least(a, every, ())
    free = around.least(a, every, ())
    lo, hi = (side.flatten(1).numpy() for side in around.interval())
    for i in range(len(a)):
        exact = linprog(
            a[i].flatten().numpy(),
            slope[i].flatten().numpy()[None],
            [-float(at_0[i])],
            bounds=np.stack([lo[i], hi[i]], 1),
        ).fun
        assert float(found[i]) <= exact + 1e-9
        assert float(found[i]) >= exact - 0.01 * (exact - float(free[i])) - 1e-9


@pytest.mark.parametrize("norm", NORMS)
def test_coefficients_of_a_window_are_those_of_all(norm: str) -> None:
    around, a, half = halved(norm, 3)
    around, every = around.within(*half), torch.arange(len(a))
    window = (slice(1, 3), slice(0, 2))
    whole = torch.zeros_like(a)
    whole[(..., *window)] = a[(..., *window)]
    narrow = around.least(a[(..., *window)], every, window)
    assert torch.allclose(narrow, around.least(whole, every, ()), atol=1e-9)


def reads_a_part() -> nn.Module:
    """A network that reads all but the last row and column."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        reads = nn.Conv2d(2, 8, 3, stride=2)
        return nn.Sequential(reads, nn.ReLU(), nn.Flatten(), nn.Linear(8, CLASSES))


def test_an_eps_a_feature_is_one_of_what_is_read() -> None:
    x, y = rows_of(4, 2)
    half = Threat.linf(0.1, scale=torch.full(x.shape[1:], 0.5))
    found, same = (margins(reads_a_part(), x, y, one) for one in (half, Threat.linf(0.05)))
    assert not found.reason
    assert torch.allclose(found.lower, same.lower, atol=1e-6)


def test_what_a_network_does_not_read_does_no_harm() -> None:
    x, y = rows_of(2, 4)
    looser, tighter = (
        margins(reads_a_part(), x, y, "linf(0.3)", method=method)
        for method in ("crown", "alpha-crown")
    )
    assert not tighter.reason
    assert bool((tighter.lower > looser.lower).any())


@pytest.mark.parametrize("norm", NORMS)
def test_the_closest_input_is_in_the_ball(norm: str) -> None:
    around, a, _ = halved(norm, 2)
    for i in range(len(a)):
        one = around.at(torch.tensor([i]))
        found = one.closest(one.x + torch.cat([3 * a[i : i + 1], 0 * a[i : i + 1]]))
        lo, hi = one.interval()
        assert bool(((found >= lo - 1e-12) & (found <= hi + 1e-12)).all())
        assert bool((one.norm.size(found - one.x) <= one.eps.flatten() * (1 + 1e-9)).all())
        assert torch.equal(found[1:], one.x)

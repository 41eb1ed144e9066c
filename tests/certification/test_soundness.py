"""Bounds of random networks hold at every point that can be found, and get tighter in order."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from helpers.bounds import check_linear, check_sound, rows_of
from helpers.networks import KINDS, exact, network
from torch import Tensor, nn
from torch.nn import functional as F

from holdfast.bounds import METHODS, Region, Rows, climb, margins, region, trace
from holdfast.norms import NORMS
from holdfast.targets.target import Bounds
from holdfast.threats.threat import Threat


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_no_point_lies_below_a_bound(kind: str, norm: str) -> None:
    for seed in range(3 if norm == "linf" else 1):
        check_sound(kind, norm, seed, samples=40, steps=10)


@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_no_point_lies_below_a_bound_of_many_networks(kind: str, norm: str) -> None:
    for seed in range(100, 184):  # eight kinds, four norms: 2,688 networks
        check_sound(kind, norm, seed, samples=10_000, steps=40, seconds=1)


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
        assert bool((climb(rows, method, 60)[0] <= least + 1e-5).all()), method
    assert bool((rows.lower[0] > 0).where(least > 1e-4, True).all())  # branching leaves none


def test_no_bound_lies_above_the_exact_margin() -> None:
    for seed in range(6):
        check_exact(seed)


def check_forms(form: str, seed: int) -> None:
    """A layer of a piecewise linear function that is the same as two ReLUs a neuron."""
    # f(z) as the sum of weights times ReLUs of slopes * z + shifts, and a constant
    function, slopes, shifts, weights, constant = FORMS[form]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        first, last, x = nn.Linear(4, 5), nn.Linear(5, 3), torch.rand(1, 4)
    nn.init.normal_(first.weight, std=2.0)
    one, other = nn.Linear(4, 10), nn.Linear(10, 3)
    with torch.no_grad():
        for i, (slope, shift, weight) in enumerate(zip(slopes, shifts, weights, strict=True)):
            at = slice(5 * i, 5 * i + 5)
            one.weight[at], one.bias[at] = slope * first.weight, slope * first.bias + shift
            other.weight[:, at] = weight * last.weight
        other.bias[:] = last.bias + constant * last.weight.sum(1)
    net, same = Of(first, function, last), nn.Sequential(one, nn.ReLU(), other)
    assert torch.allclose(net(x), same(x), atol=1e-5)
    around = region(x, Threat.linf(0.2), Bounds())
    y, rows = torch.tensor([seed % 3]), Rows(trace(net, x), around, torch.tensor([seed % 3]))
    lo, hi = (side[0].numpy() for side in around.interval())
    c = np.eye(3)[int(y)] - np.eye(3)
    least = [np.inf if j == y else exact([one, other], lo, hi, c[j]) for j in range(3)]
    for method in METHODS:
        assert bool((climb(rows, method)[0] <= torch.tensor(least) + 1e-5).all()), method


class Of(nn.Module):
    """A function between two layers."""

    def __init__(self, first: nn.Module, function: Any, last: nn.Module) -> None:
        super().__init__()
        self.first, self.function, self.last = first, function, last

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.first(x)))


FORMS: dict[str, Any] = {
    "relu6": (lambda z: F.relu6(6 * z) / 6, (1, 1), (0, -1), (1, -1), 0),
    "hardtanh": (F.hardtanh, (1, 1), (1, -1), (1, -1), -1),
    "clamp": (lambda z: z.clamp(-0.2, 0.7), (1, 1), (0.2, -0.7), (1, -1), -0.2),
    "hard sigmoid": (lambda z: F.hardsigmoid(6 * z), (1, 1), (0.5, -0.5), (1, -1), 0),
    "abs": (torch.abs, (1, -1), (0, 0), (1, 1), 0),
    "maximum": (lambda z: torch.maximum(z, -2 * z), (1, -1), (0, 0), (1, 2), 0),
}


@pytest.mark.parametrize("form", FORMS)
def test_no_bound_lies_above_the_exact_margin_of_a_form(form: str) -> None:
    for seed in range(4):
        check_forms(form, seed)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(10, 210, 50))
def test_no_bound_lies_above_the_exact_margin_of_many_networks(first: int) -> None:
    for seed in range(first, first + 50):
        check_exact(seed)


@pytest.mark.parametrize("norm", NORMS)
def test_a_linear_network_is_bounded_exactly(norm: str) -> None:
    check_linear(norm)


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

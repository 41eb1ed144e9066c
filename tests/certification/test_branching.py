"""Branch and bound: each part of a region is bounded below what is met on it, and what is proved
on all parts holds."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from holdfast.bounds import Rows, branching, climb, margins, region, trace
from holdfast.bounds.branching import branch
from holdfast.bounds.propagate import LEAST
from holdfast.targets.target import Bounds
from holdfast.threats.threat import Threat

WRONG = torch.tensor(1)


def dense(seed: int, activation: nn.Module) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(6, 10), activation, nn.Linear(10, 8), activation, nn.Linear(8, 3)
        )


def bounded(net: nn.Module, eps: float) -> tuple[Rows, Tensor]:
    """What alpha-CROWN knows of one row of class 0, and points of its region."""
    x = torch.rand((1, 6), generator=torch.Generator().manual_seed(1))
    rows = Rows(trace(net, x), region(x, Threat.linf(eps), Bounds()), torch.tensor([0]))
    rows.climb("alpha-crown")
    lo, hi = rows.region.interval()
    share = torch.rand((20_000, 6), generator=torch.Generator().manual_seed(2)).double()
    return rows, torch.lerp(lo, hi, share)


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.LeakyReLU(0.1)])
def test_no_point_of_a_part_lies_below_its_bound(
    activation: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, seen = dense(3, activation), []
    rows, x = bounded(net, 0.3)
    opened = branching._Margin.opened

    def kept(self: branching._Margin, state: branching.State, steps: int) -> branching.State:
        seen.append(opened(self, state, steps))
        return seen[-1]

    monkeypatch.setattr(branching._Margin, "opened", kept)
    branch(rows, WRONG, math.inf)
    layers = net.double()
    values = [layers[:1](x), layers[:3](x)]
    scores, tried = layers(x), 0
    for state in seen:
        lower = state["lower", 0].double()
        signs = [sign for (name, _), sign in state.items() if name == "sign"]
        for i, least in enumerate(lower):
            on_it = torch.ones(len(x), dtype=torch.bool)
            for z, sign in zip(values, signs, strict=True):
                on_it &= (z * sign[i].flatten() >= 0).all(1)
            margin = (scores[:, 0] - scores[:, int(WRONG)])[on_it]
            tried += len(margin) > 0
            assert bool((margin >= least - 1e-5).all())
    assert tried > 8
    assert bool(seen[-1]["split", 0].lt(0).any() or len(seen[-1]["lower", 0]) == 0)


@pytest.mark.parametrize("eps", [0.2, 0.25, 0.3, 0.35])
def test_what_bounds_leave_open_is_proved_part_by_part(eps: float) -> None:
    net, wrong = dense(5, nn.ReLU()), torch.tensor(2)
    rows, x = bounded(net, eps)
    scores = net(x.float())
    assert float(rows.rounded[0, wrong]) < 0 < (scores[:, 0] - scores[:, wrong]).min().item()
    assert branch(rows, wrong, math.inf)


def test_nothing_is_proved_without_time_or_without_what_can_be_split() -> None:
    rows, _ = bounded(dense(3, nn.ReLU()), 0.3)
    assert not branch(rows, WRONG, -math.inf)
    rows, _ = bounded(dense(3, nn.Sigmoid()), 0.3)
    assert not branch(rows, WRONG, math.inf)


def test_inputs_that_cross_the_margin_are_shown_to_the_judge(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(branching, "AT_FIRST", 0)
    net, shown = dense(7, nn.ReLU()), []
    rows, _ = bounded(net, 0.3)

    def judge(x: Tensor) -> bool:
        shown.append(x)
        return len(shown) > 1

    assert not branch(rows, torch.tensor(2), math.inf, judge)
    lo, hi = rows.region.interval()
    for x in shown:
        scores = net(x.float())
        assert bool((scores[:, 0] - scores[:, 2] < 1e-5).all())
        assert bool(((lo <= x) & (x <= hi)).all())
    assert len(shown) == 2
    shown.clear()
    assert climb(rows, "beta-crown", 60, lambda row, _: row == 0)[0, 2] < 0


def test_memory_ends_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, _ = bounded(dense(3, nn.ReLU()), 0.3)
    monkeypatch.setattr(branching, "MOST", 0)
    assert not branch(rows, WRONG, math.inf)


def test_no_bound_gets_looser() -> None:
    rows, _ = bounded(dense(5, nn.ReLU()), 0.3)
    rows.lower[0, 2], rows.rounded[0, 2] = 0.003, -0.001  # as rounding may leave it
    climb(rows, "beta-crown", 60)
    assert float(rows.lower[0, 2]) == 0.003
    assert float(rows.rounded[0, 2]) == LEAST


def test_margins_take_the_method_by_its_name() -> None:
    net = dense(3, nn.ReLU())
    x = torch.rand((4, 6), generator=torch.Generator().manual_seed(4))
    y = net(x).argmax(1)
    looser = margins(net, x, y, "linf(0.1)", method="alpha-crown")
    found = margins(net, x, y, "linf(0.1)", method="beta-crown", seconds=60)
    assert found.method == "beta-crown"
    assert bool((found.lower >= looser.lower).all())

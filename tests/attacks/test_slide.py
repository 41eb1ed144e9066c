"""SLIDE and the sparse L1 step that it shares with APGD, against values by hand and a plain
rewrite."""

from __future__ import annotations

import pytest
import torch
from helpers.models import bent, close, draw, rows, threat, wrap
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from holdfast.attacks.gradient.slide import SLIDE
from holdfast.attacks.problem import Problem
from holdfast.errors import SpecError
from holdfast.norms import sparse
from holdfast.rng import Keys


def step(g: list[float], k: float, room: list[float]) -> list[float]:
    return sparse(*(torch.tensor([part], dtype=torch.float64) for part in (g, k, room)))[0].tolist()


def test_the_steepest_share_a_step_of_length_1() -> None:
    assert step([1, -4, 2, 0], 1, [1, 1, 1, 1]) == [0, -1, 0, 0]
    assert step([1, -4, 2, 0], 2.9, [1, 1, 1, 1]) == [0, -0.5, 0.5, 0]
    assert step([1, -4, 2, 0], 0.2, [1, 1, 1, 1]) == [0, -1, 0, 0]
    assert step([1, -4, 2, 0], 9, [1, 1, 1, 1]) == pytest.approx(
        [1 / 3, -1 / 3, 1 / 3, 0], rel=1e-12
    )
    assert step([0, 0, 0, 0], 2, [1, 1, 1, 1]) == [0, 0, 0, 0]
    assert step([2, -2, 1, 0], 1, [1, 1, 1, 1]) == [0.5, -0.5, 0, 0]  # a tie is shared


def test_steeper_features_at_the_box_hold_their_place() -> None:
    assert step([1, -4, 2, 0], 1, [1, 0, 1, 1]) == [0, -1, 1, 0]
    assert step([1, -4, 2, 0], 1, [1, 1, 0, 1]) == [0, -1, 0, 0]
    assert step([1, -4, 2, 0], 1, [0, 0, 0, 0]) == [1, -1, 1, 0]


@given(st.lists(st.floats(-2, 2), min_size=1, max_size=8), st.floats(0, 10))
def test_the_free_part_of_a_sparse_step_has_size_1(values: list[float], k: float) -> None:
    g = torch.tensor([values], dtype=torch.float64)
    room = draw(1, len(values), seed=len(values)) - 0.4
    v = sparse(g, torch.tensor([k]), room)
    free = float(v[room > 0].abs().sum())
    assert free == pytest.approx(1 if bool((g[room > 0] != 0).any()) else 0)
    assert bool((v * g >= 0).all())


@pytest.mark.parametrize("quantile", [0.99, 0.7])
def test_the_path_is_that_of_a_plain_rewrite(quantile: float) -> None:
    target = wrap(bent())
    x, y = rows(target, 5, edge=True)
    attack = SLIDE(steps=15, quantile=quantile, loss="margin")
    p = Problem(target, x, y, threat("l1", 2.0), Keys.of(0, torch.arange(5)))
    s = attack.start(p)
    for t in range(15):
        p.t = t
        new = attack.step(p, s, t)
        _, g = p.gradient(s, "margin")
        for i in range(5):
            close(
                new[i].flatten(),
                ordinary(p, s, g, i, 1 if quantile == 0.99 else 4),
                rtol=0,
                atol=1e-12,
            )
        s = new


def ordinary(p: Problem, s: Tensor, g: Tensor, i: int, k: int) -> Tensor:
    d, slope = s[i].flatten().clone(), g[i].flatten()
    low, high = p.lo[i].flatten(), p.hi[i].flatten()
    stuck = [j for j in range(16) if not (high[j] > d[j] if slope[j] > 0 else low[j] < d[j])]
    ranked = sorted((j for j in range(16) if j not in stuck), key=lambda j: -abs(float(slope[j])))[
        :k
    ]
    for j in ranked:
        d[j] += 0.1 * 2.0 / k * float(slope[j].sign())
    for j in stuck:
        if abs(float(slope[j])) >= abs(float(slope[ranked[-1]])):
            d[j] += 0.1 * 2.0 * float(slope[j].sign())
    return p.norm.project(d[None], p.eps[i].flatten()[None], low[None], high[None])[0]


@pytest.mark.parametrize("fields", [{"step_size": 0.0}, {"quantile": 1.5}, {"quantile": -0.1}])
def test_values_that_mean_nothing_are_refused(fields: dict[str, float]) -> None:
    with pytest.raises(SpecError, match="slide has"):
        SLIDE(**fields)  # pyright: ignore[reportArgumentType]

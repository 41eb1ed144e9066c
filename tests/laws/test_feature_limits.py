"""Eps, bounds and masks of each feature's own: the norm against a rescaled space, and the optimum
of linear models."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers.models import SHAPE, Linear, close, draw, linear, run, wrap
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from torch import Tensor

from holdfast.attacks import parse
from holdfast.errors import InputError, SpecError
from holdfast.evaluation import judge
from holdfast.norms import LINF, Linf, wide
from holdfast.rng import Keys
from holdfast.targets import TorchTarget
from holdfast.targets.target import Bounds
from holdfast.threats.threat import Threat

N, EPS = 24, 0.6
SCALE = 0.02 + 0.3 * draw(*SHAPE, seed=11)
LOW, HIGH = -draw(*SHAPE, seed=12), 1 + 5 * draw(*SHAPE, seed=13)
MASK = draw(*SHAPE, seed=14) < 0.7


def world() -> tuple[Linear, TorchTarget, Tensor, Tensor]:
    """Two classes, features in boxes of their own, a third of them at its edge."""
    model = linear(2)
    target = wrap(model, bounds=(LOW, HIGH))
    u = (draw(N, *SHAPE, seed=15) * 1.5 - 0.25).clamp(0, 1)
    x = target.bounds.clamp(LOW + u * (HIGH - LOW))
    return model, target, x, target.labels(x)


def threat(eps: float = EPS) -> Threat:
    return Threat.linf(eps, scale=SCALE, mask=MASK)


def fall(model: Linear, x: Tensor, y: int, eps: float) -> tuple[float, float]:
    """A row's margin and the most that it can fall, in closed form."""
    w, b = (part.detach().numpy() for part in (model.w, model.b))
    c, row = w[1 - y] - w[y], x.flatten().numpy()
    room = np.where(c > 0, HIGH.flatten().numpy() - row, row - LOW.flatten().numpy())
    reach = np.minimum(room, eps * SCALE.flatten().numpy()) * MASK.flatten().numpy()
    return float((w[y] - w[1 - y]) @ row + b[y] - b[1 - y]), float(np.abs(c) @ reach)


@pytest.mark.parametrize(
    "spec",
    ["pgd(steps=60)", "apgd(steps=60, loss='margin')", "square(steps=400)", "signhunter(steps=64)"],
)
def test_a_ball_is_searched_to_the_optimum(spec: str) -> None:
    model, target, x, y = world()
    ledger = run(parse(spec), target, x, y, threat(), stop=False)
    for i, found in enumerate(ledger.margin.tolist()):
        clean, most = fall(model, x[i], int(y[i]), EPS)
        assert 0.99 <= (clean - found) / most <= 1 + 1e-9
    assert 0 < int(ledger.broken.sum()) < N
    legal, size = judge.within(target, threat(), x, ledger.best)
    assert bool(legal.all())
    close(size[ledger.broken], ledger.size[ledger.broken], rtol=1e-12)


@pytest.mark.parametrize(
    ("spec", "slack"),
    [
        ("fmn(steps=200)", 1.01),
        ("fab(steps=40)", 1.01),
        ("deepfool", 1.05),
        ("rays(steps=400)", 1.2),
    ],
)
def test_the_smallest_is_found(spec: str, slack: float) -> None:
    model, target, x, y = world()
    ledger = run(parse(spec), target, x, y, threat(math.inf))
    for i, found in enumerate(ledger.size.tolist()):
        low, high = 0.0, 1e4
        if fall(model, x[i], int(y[i]), high)[1] < fall(model, x[i], int(y[i]), high)[0]:
            assert math.isinf(found)
            continue
        for _ in range(70):
            middle = (low + high) / 2
            clean, most = fall(model, x[i], int(y[i]), middle)
            low, high = (low, middle) if most >= clean else (middle, high)
        assert high * (1 - 1e-9) <= found <= high * slack


def test_a_scale_of_zero_is_a_mask() -> None:
    _, target, x, y = world()
    scale = torch.where(MASK, SCALE, 0)
    a, b = (
        run(parse("pgd(steps=9)"), target, x, y, t)
        for t in (threat(), Threat.linf(EPS, scale=scale))
    )
    assert torch.equal(a.best, b.best)
    assert bool((a.best == x)[:, ~MASK].all())


def test_one_scale_for_all_is_a_factor_of_eps() -> None:
    _, target, x, y = world()
    ordinary = run(parse("apgd(steps=9)"), target, x, y, Threat.linf(0.125))
    scaled = run(
        parse("apgd(steps=9)"), target, x, y, Threat.linf(0.25, scale=torch.full(SHAPE, 0.5))
    )
    assert torch.equal(ordinary.best, scaled.best)
    close(ordinary.size, scaled.size / 2)


numbers = st.floats(-4, 4)


@given(st.integers(0, 10**6), numbers, st.floats(0.01, 3))
def test_the_norm_is_linf_in_a_space_of_other_units(seed: int, gap: float, eps: float) -> None:
    w = 0.1 + 2 * draw(2, 3, seed=seed)
    norm = Linf(w)
    d, g = (4 * draw(4, 2, 3, seed=seed + i) - 2 for i in (1, 2))
    lo, hi = -draw(4, 2, 3, seed=seed + 3), draw(4, 2, 3, seed=seed + 4)
    share, all_ = draw(4, seed=seed + 5), torch.full((4, 1, 1), eps, dtype=d.dtype)
    gaps = torch.full((4,), gap, dtype=d.dtype)
    close(norm.size(d), LINF.size(d / w))
    close(norm.dual(g), LINF.dual(g * w))
    close((norm.steepest(g) * g).flatten(1).sum(1), norm.dual(g))
    close(norm.project(d, all_, lo, hi), w * LINF.project(d / w, all_, lo / w, hi / w), atol=1e-12)
    close(norm.reach(g, gaps, lo, hi), w * LINF.reach(g * w, gaps, lo / w, hi / w), atol=1e-9)
    close(norm.shrink(d, share), w * LINF.shrink(d / w, share), atol=1e-12)
    close((norm.across(g, gaps) * g).flatten(1).sum(1), gaps, atol=1e-9)
    for draw_ in (norm.sample, norm.extreme, norm.sphere):
        assert bool((norm.size(draw_(Keys.of(0, torch.arange(4)), d)) <= 1 + 1e-12).all())
    for row, weight in zip(d, draw(4, seed=seed + 6).tolist(), strict=True):
        found = norm.prox(row[None], torch.full((1, 1, 1), weight, dtype=d.dtype))

        def cost(level: float, row: Tensor = row, weight: float = weight) -> float:
            v = row.clamp(-level * w, level * w)
            return float((v - row).square().sum() / 2 + weight * level)

        best = minimize_scalar(cost, bounds=(0, 50), method="bounded", options={"xatol": 1e-10}).fun
        assert cost(float(norm.size(found))) <= best + 1e-7
        close(
            wide(norm.size(found), found) * 0 + found,
            row.clamp(-norm.size(found) * w, norm.size(found) * w)[None],
        )


def test_what_means_nothing_is_refused() -> None:
    _, target, x, y = world()
    with pytest.raises(SpecError, match="means something in linf"):
        Threat.l2(1.0).limited(scale=SCALE)
    for bad in (-SCALE, 0 * SCALE, SCALE * math.nan):
        with pytest.raises(SpecError, match="at least 0"):
            Threat.linf(1.0, scale=bad)
    with pytest.raises(SpecError, match="the scale has shape"):
        run(parse("pgd"), target, x, y, Threat.linf(1.0, scale=SCALE[0]))
    with pytest.raises(SpecError, match="the mask has shape"):
        run(parse("pgd"), target, x, y, Threat.l2(1.0, mask=MASK[0]))
    with pytest.raises(SpecError, match="no feature change"):
        run(parse("pgd"), target, x, y, Threat.l2(1.0, mask=torch.zeros(SHAPE)))
    with pytest.raises(InputError, match="not above the high"):
        Bounds.of((HIGH, LOW))
    with pytest.raises(InputError, match="the bounds have shape"):
        wrap(linear(2), bounds=(LOW[0], HIGH[0]))
    assert repr(threat()) != repr(Threat.linf(EPS, scale=SCALE))

"""Lines and intervals of every activation hold on the whole of what they are said of."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from holdfast.bounds.relaxations import RULES as TABLE
from holdfast.bounds.relaxations import Bent, Largest, Rule, Smooth, windows
from holdfast.errors import InputError

RULES = {
    **{name: TABLE[name]() for name in ("relu", "leaky_relu", "sigmoid", "tanh", "gelu", "silu")},
    "gelu of tanh": TABLE["gelu"](approximate="tanh"),
    "prelu below 0": Bent(torch.tensor(-0.7, dtype=torch.float64)),
    "prelu above 1": Bent(torch.tensor(2.5, dtype=torch.float64)),
}
each_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
end = st.one_of(st.sampled_from([0.0, 1.0, -1.0, 1e-9, -1e-9, 40.0, -40.0]), st.floats(-30, 30))


@each_rule
@given(a=end, b=end, share=st.floats(-1, 1))
def test_an_activation_stays_within_its_lines(rule: Rule, a: float, b: float, share: float) -> None:
    lo, hi = (torch.tensor([[end]], dtype=torch.float64) for end in (min(a, b), max(a, b)))
    x = torch.linspace(0, 1, 4001, dtype=torch.float64) * (hi - lo) + lo
    y, slack = rule.value(x), 1e-9 * (1 + float(x.abs().max()))
    lines = rule.lines(lo, hi, lo + hi + share)  # whichever slope that picks
    assert bool((lines.low * x + lines.low_at_0 <= y + slack).all())
    assert bool((lines.up * x + lines.up_at_0 >= y - slack).all())
    below, above = rule.interval(lo, hi)
    assert bool((below <= y + slack).all() & (above >= y - slack).all())
    if lines.least is not None and lines.most is not None:
        for slope in (lines.least, lines.most, (lines.least + lines.most) / 2):
            assert bool((slope * x + lines.low_at_0 <= y + slack).all())


@each_rule
def test_lines_touch_where_the_interval_is_a_point(rule: Rule) -> None:
    x = torch.tensor([[-3.0, -1e-3, 0.0, 0.5, 7.0]], dtype=torch.float64)
    lines = rule.lines(x, x, 2 * x)
    for slope, at_0 in ((lines.low, lines.low_at_0), (lines.up, lines.up_at_0)):
        assert torch.allclose(slope * x + at_0, rule.value(x), atol=1e-9)


@pytest.mark.parametrize("name", [n for n, rule in RULES.items() if isinstance(rule, Smooth)])
def test_slopes_and_curvatures_are_bounded(name: str) -> None:
    rule = RULES[name]
    assert isinstance(rule, Smooth)
    x = torch.linspace(-12, 12, 200_001, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(rule.value(x).sum(), x, create_graph=True)
    (bend,) = torch.autograd.grad(slope.sum(), x)
    x, slope = x.detach(), slope.detach()
    assert rule.steep / 1.1 < float(slope.abs().max()) <= rule.steep
    assert rule.bend / 1.1 < float(bend.abs().max()) <= rule.bend
    if rule.bottom is not None:
        least = rule.value(torch.tensor(rule.bottom, dtype=torch.float64)) - 1e-9
        assert float(rule.value(x).min()) >= float(least)
        assert bool(
            (slope[x < rule.bottom] <= 1e-6).all() & (slope[x > rule.bottom] >= -1e-6).all()
        )


@given(seed=st.integers(0, 10_000), width=st.sampled_from([0.01, 0.3, 2.0]))
def test_a_maximum_stays_within_its_lines(seed: int, width: float) -> None:
    draws = torch.Generator().manual_seed(seed)
    lo, width_of, *shares = torch.rand(52, 3, 5, 4, generator=draws, dtype=torch.float64)
    hi = lo + width * width_of
    rule = Largest()
    lines, (below, above) = rule.lines(lo, hi, lo + hi), rule.interval(lo, hi)
    for i, share in enumerate(shares):
        x = lo + (hi - lo) * share.round(decimals=3 * (i % 2))  # corners, too
        y = rule.value(x)
        assert bool(((lines.low * x).sum(-1) + lines.low_at_0 <= y + 1e-12).all())
        assert bool(((lines.up * x).sum(-1) + lines.up_at_0 >= y - 1e-12).all())
        assert bool((below <= y).all() & (y <= above).all())


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((1, 2, 6, 5), ([2, 2],)),
        ((1, 2, 7, 5), ([3, 2], [2, 1], [1, 0])),
        ((1, 1, 9, 9), ([3, 3], [2, 2], [1, 1], [2, 2])),
    ],
)
def test_windows_are_those_of_torch(shape: tuple[int, ...], options: tuple[list[int], ...]) -> None:
    x = torch.rand(shape)
    pooled = x.flatten()[windows(shape, *options)].amax(-1)
    assert torch.equal(pooled, torch.nn.functional.max_pool2d(x, *options))


def test_windows_of_one_axis() -> None:
    x = torch.rand(1, 3, 10)
    pooled = x.flatten()[windows((1, 3, 10), [3], [2], [1])].amax(-1)
    assert torch.equal(pooled, torch.nn.functional.max_pool1d(x, 3, 2, 1))


def test_a_pool_with_a_last_window_cut_off_is_refused() -> None:
    with pytest.raises(InputError, match="ceil_mode"):
        windows((1, 1, 5, 5), [2, 2], [2, 2], 0, 1, True)


def test_a_line_that_is_not_finite_is_no_line() -> None:
    """inf or nan in an interval never makes a number of a bound."""
    bad = torch.tensor([[-torch.inf, torch.nan]], dtype=torch.float64)
    lines = Bent().lines(bad, bad.new_tensor([[1.0, 1.0]]), bad)
    assert not bool(lines.up.isfinite().any())

"""Lines and intervals of every activation hold on the whole of what they are said of."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from holdfast.bounds.relaxations import RULES as TABLE
from holdfast.bounds.relaxations import (
    Bent,
    Largest,
    Product,
    Rule,
    Smooth,
    cells,
    gate,
    slices,
    windows,
)
from holdfast.errors import InputError

RULES = {
    **{name: make() for name, make in TABLE.items() if name != "prelu"},
    "elu of 2": TABLE["elu"](2.0, 1.5, 0.7),
    "celu of 0.5": TABLE["celu"](0.5),
    "softplus of 3": TABLE["softplus"](3.0),
    "gelu as a formula": gate("erf", 0.5, 0.5**0.5, 0.5),
    "swish": gate("sigmoid", 1.0, 1.7, 0.0),
    "gate": gate("tanh", 0.4, -2.0, -0.3),
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


@pytest.mark.parametrize("side", range(4, 11))
@pytest.mark.parametrize(
    "options", [(2, 2, 0, 1), (3, 2, 0, 1), (3, 3, 1, 1), (2, 3, 0, 1), (4, 3, 2, 1), (2, 2, 1, 2)]
)
def test_windows_cut_off_at_the_end_are_those_of_torch(side: int, options: tuple[int, ...]) -> None:
    x = torch.rand(1, 2, side, 11 - side // 2)
    given: Any = (*([option] * 2 for option in options), True)
    pooled = x.flatten()[windows(tuple(x.shape), *given)].amax(-1)
    assert torch.equal(pooled, torch.nn.functional.max_pool2d(x, *given))


def test_a_window_of_padding_alone_is_refused() -> None:
    with pytest.raises(InputError, match="padding alone"):
        windows((1, 1, 3), [2], [1], 1, 4)


@pytest.mark.parametrize("made", [1, 2, 3, 5])
def test_cells_are_those_of_torch(made: int) -> None:
    x = torch.rand(1, 2, 5, 7)
    pooled = x.flatten()[cells(tuple(x.shape), [made, 3])].amax(-1)
    assert torch.equal(pooled, torch.nn.functional.adaptive_max_pool2d(x, (made, 3)))


@pytest.mark.parametrize("axes", [[1], [-1, 1], [3, 2]])
@pytest.mark.parametrize("keepdim", [False, True])
def test_slices_are_those_of_torch(axes: list[int], keepdim: bool) -> None:
    x = torch.rand(1, 2, 5, 7)
    found = x.flatten()[slices(tuple(x.shape), axes, keepdim)].amax(-1)
    assert torch.equal(found, x.amax(axes, keepdim))


@given(seed=st.integers(0, 10_000), width=st.sampled_from([0.0, 0.3, 4.0]))
def test_a_product_stays_within_its_planes(seed: int, width: float) -> None:
    draws = torch.Generator().manual_seed(seed)
    lo, width_of, *shares = torch.rand(22, 5, 2, generator=draws, dtype=torch.float64)
    lo = 4 * lo - 2
    hi = lo + width * width_of
    rule = Product()
    lines, (below, above) = rule.lines(lo, hi, lo + hi), rule.interval(lo, hi)
    for i, share in enumerate(shares):
        x = lo + (hi - lo) * share.round(decimals=3 * (i % 2))  # corners, too
        y = rule.value(x)
        assert bool(((lines.low * x).sum(-1) + lines.low_at_0 <= y + 1e-12).all())
        assert bool(((lines.up * x).sum(-1) + lines.up_at_0 >= y - 1e-12).all())
        assert bool((below <= y + 1e-12).all() & (y <= above + 1e-12).all())


def test_a_line_that_is_not_finite_is_no_line() -> None:
    """inf or nan in an interval never makes a number of a bound."""
    bad = torch.tensor([[-torch.inf, torch.nan]], dtype=torch.float64)
    lines = Bent().lines(bad, bad.new_tensor([[1.0, 1.0]]), bad)
    assert not bool(lines.up.isfinite().any())

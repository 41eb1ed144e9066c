"""SimBA: its bases are orthonormal and in their order, and it finds the corner of a linear
model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.exact import best_margin
from helpers.models import EPS, Bent, close, linear, rows, threat, wrap
from scipy.fft import idctn

from holdfast.attacks import run
from holdfast.attacks.problem import Problem
from holdfast.attacks.score.simba import SimBA
from holdfast.attacks.shared.bases import BASES
from holdfast.attacks.shared.image_shape import ImageShape
from holdfast.errors import SpecError
from holdfast.rng import Keys


def problem(shape: tuple[int, ...], layout: str, n: int) -> Problem:
    target = wrap(Bent(3, int(np.prod(shape)), 5, 0, torch.float64), shape, layout=layout)
    x, y = rows(target, n)
    return Problem(target, x, y, threat("l2"), Keys.of(0, torch.arange(n)))


@pytest.mark.parametrize(("layout", "shape"), [("nchw", (2, 3, 5)), ("nhwc", (3, 5, 2))])
def test_waves_are_scipys(layout: str, shape: tuple[int, ...]) -> None:
    p = problem(shape, layout, 30)
    q = BASES["dct"].direction(ImageShape.of(p), torch.arange(30), p.x)
    images = (q if layout == "nchw" else q.movedim(-1, 1)).numpy()
    for i, unit in enumerate(np.eye(30).reshape(30, 2, 3, 5)):
        np.testing.assert_allclose(images[i], idctn(unit, axes=(1, 2), norm="ortho"), atol=1e-12)


def test_low_frequencies_come_first() -> None:
    """The authors': 28 of 224 frequencies a side, then 7 more at a time."""
    p = problem((1, 224, 224), "nchw", 1)
    band = BASES["dct"].band(ImageShape.of(p), p.x).view(224, 224)
    assert [int(band[k, 0]) for k in (0, 27, 28, 34, 35, 223)] == [0, 0, 1, 1, 2, 28]
    assert torch.equal(band, band.T)
    assert bool((BASES["pixel"].band(ImageShape.of(p), p.x) == 0).all())


def test_the_corner_of_a_linear_model_is_found_in_two_queries_a_feature() -> None:
    model = linear(2)
    target = wrap(model)
    x, y = rows(target, 15, edge=True)
    eps = EPS["linf"]
    ledger = run(SimBA(steps=32), target, x, y, threat("linf", eps), stop=False)
    w, b = model.w.detach().numpy(), model.b.detach().numpy()
    columns = zip(x.flatten(1).numpy(), y.tolist(), strict=True)
    best = torch.tensor(
        [best_margin("linf", w, b, row, label, eps) for row, label in columns], dtype=x.dtype
    )
    close(ledger.margin, best, rtol=0, atol=1e-9)


@pytest.mark.parametrize("basis", ["pixel", "dct"])
def test_a_row_turns_to_the_next_after_a_rise_or_both_sides(basis: str) -> None:
    p = problem((1, 4, 4), "nchw", 8)
    attack = SimBA(basis=basis, step_size=0.05)
    s = attack.start(p)
    assert bool((s.order.sort(1).values == torch.arange(16)).all())
    for t in range(50):
        p.t = t + 1
        after = attack.step(p, s, t)
        up = after.value > s.value
        assert torch.equal(after.turn, (s.turn + (up | s.back)) % 16)
        assert torch.equal(after.back, ~up & ~s.back)
        assert torch.equal(after.d[~up], s.d[~up])
        assert bool((p.norm.size(after.d - s.d) <= 0.05 * (1 + 1e-9)).all())
        s = after


def test_other_bases_are_refused() -> None:
    with pytest.raises(SpecError, match="known: dct, pixel"):
        SimBA(basis="haar")

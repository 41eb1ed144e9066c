"""Sparse-RS against the numbers of its paper, the exact optimum of a linear model."""

from __future__ import annotations

import pytest
import torch
from helpers.exact import best_margin
from helpers.models import SHAPE, bent, close, draw, linear, rows, threat, wrap
from torch import Tensor

from holdfast.attacks import run
from holdfast.attacks.problem import Problem
from holdfast.attacks.sparse.sparsers import SparseRS
from holdfast.errors import SpecError
from holdfast.rng import Keys


def problem(eps: Tensor | float, mask: Tensor | None = None, n: int = 8) -> Problem:
    target = wrap(bent())
    x, y = rows(target, n, edge=True)
    return Problem(target, x, y, threat("l0", eps, mask=mask), Keys.of(3, torch.arange(n)))


def test_the_share_is_the_papers() -> None:
    divisors = [
        0.3 / SparseRS().share(t)
        for t in (0, 1, 50, 51, 201, 501, 1001, 2001, 4001, 6001, 8001, 9999)
    ]
    assert divisors == pytest.approx([1, 2, 2, 4, 5, 6, 8, 10, 12, 15, 20, 20])
    assert SparseRS(schedule=100).share(3) == pytest.approx(0.3 / 5)  # as after 300 of 10,000


def test_the_best_set_of_a_linear_model_is_found() -> None:
    model = linear(2)
    target = wrap(model)
    x, y = rows(target, 12, edge=True)
    ledger = run(SparseRS(steps=1000), target, x, y, threat("l0", 3), stop=False)
    w, b = model.w.detach().numpy(), model.b.detach().numpy()
    columns = zip(x.flatten(1).numpy(), y.tolist(), strict=True)
    best = torch.tensor(
        [best_margin("l0", w, b, row, label, 3) for row, label in columns], dtype=torch.float64
    )
    close(ledger.margin, best, rtol=0, atol=1e-9)


def test_a_step_swaps_so_many_and_sends_each_to_an_end() -> None:
    mask = draw(*SHAPE) < 0.8
    assert 12 <= int(mask.sum()) < 16
    p = problem(torch.tensor([1.0, 2, 4, 6, 8, 3.7, 0.5, 5]), mask)
    attack = SparseRS(alpha=0.5)
    s = attack.start(p)
    for p.t in range(1, 30):
        after = attack.step(p, s._replace(value=torch.full_like(s.value, -torch.inf)), 0)
        size, changed = p.norm.size(after.d), ((after.d != 0) & (s.d == 0)).flatten(1).sum(1)
        assert size.tolist() == [1, 2, 4, 6, 8, 3, 0, 5]
        assert changed.tolist() == [1, 1, 2, 3, 4, 1, 0, 2]
        assert bool(((after.d == 0) | (after.d == p.lo) | (after.d == p.hi)).all())
        kept = (after.d != 0) & (s.d != 0)
        assert torch.equal(after.d[kept], s.d[kept])
        assert bool((after.d[:, ~mask] == 0).all())
        s = after


def test_the_kept_margin_never_falls() -> None:
    p = problem(4)
    attack = SparseRS()
    s = attack.start(p)
    for t in range(40):
        p.t = t + 1
        after = attack.step(p, s, t)
        assert bool((after.value >= s.value).all())
        close(after.value, p.value(after.d, "margin"), rtol=0, atol=1e-12)
        s = after


@pytest.mark.parametrize("fields", [{"alpha": -0.1}, {"alpha": 1.5}, {"schedule": 0}])
def test_values_that_mean_nothing_are_refused(fields: dict[str, float]) -> None:
    with pytest.raises(SpecError, match="sparsers has"):
        SparseRS(**fields)  # pyright: ignore[reportArgumentType]

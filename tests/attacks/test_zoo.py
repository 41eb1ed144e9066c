"""ZOO: the exact distance of a linear model, and one step of its coordinate Adam."""

from __future__ import annotations

import pytest
import torch
from helpers.exact import distance
from helpers.models import SHAPE, close, linear, rows, threat, wrap

from holdfast.attacks import run
from holdfast.attacks.problem import Problem
from holdfast.attacks.score.zoo import ZOO
from holdfast.errors import SpecError
from holdfast.rng import Keys


@pytest.mark.parametrize("box", [(0, 1), (-2, 3)])
def test_the_smallest_is_nearly_found(box: tuple[float, float]) -> None:
    model = linear(2)
    target = wrap(model, bounds=box)
    x, y = rows(target, 12, edge=True)
    ledger = run(ZOO(steps=360, samples=8), target, x, y, threat("l2", torch.inf))
    w, b = model.w.detach().numpy(), model.b.detach().numpy()
    for row, label, found in zip(
        x.flatten(1).numpy(), y.tolist(), ledger.size.tolist(), strict=True
    ):
        c, gap = w[1 - label] - w[label], (w[label] - w[1 - label]) @ row + b[label] - b[1 - label]
        best = distance("l2", c, gap, box[0] - row, box[1] - row)
        assert best * (1 - 1e-9) <= found <= 1.25 * best + 0.01 * (box[1] - box[0]), (best, found)


def test_a_step_moves_so_many_features_by_the_rate_against_the_slope() -> None:
    model = linear(2)
    target = wrap(model, bounds=(-2, 3))
    x, y = rows(target, 6)
    p = Problem(target, x, y, threat("l2", torch.inf), Keys.of(0, torch.arange(6)))
    attack = ZOO(samples=5)
    first = attack.start(p)
    p.t = 1
    s = attack.step(p, first, 0)
    assert (s.age != 0).flatten(1).sum(1).tolist() == [5] * 6
    uphill = (model.w.detach()[1] - model.w.detach()[0]).view(SHAPE) * (1 - 2 * y).view(-1, 1, 1, 1)
    close(s.d, 0.01 * 5 * uphill.sign() * (s.age != 0), rtol=1e-4)
    close(
        s.mean,
        torch.where(s.age != 0, -0.1 * 0.01 * 5 * uphill / s.unit.view(-1, 1, 1, 1), 0),
        rtol=1e-5,
    )


@pytest.mark.parametrize(
    "fields", [{"searches": 0}, {"samples": 0}, {"c": 0.0}, {"rate": -1.0}, {"h": 0.0}]
)
def test_values_that_mean_nothing_are_refused(fields: dict[str, float]) -> None:
    with pytest.raises(SpecError, match="zoo has"):
        ZOO(**fields)  # pyright: ignore[reportArgumentType]

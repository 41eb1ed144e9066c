"""One pixel: the optimum of a linear model, and evolution as its formula says."""

from __future__ import annotations

import pytest
import torch
from helpers.exact import best_margin
from helpers.models import bent, close, linear, rows, threat, wrap
from torch import Tensor

from holdfast.attacks import run
from holdfast.attacks.problem import Problem
from holdfast.attacks.sparse.onepixel import OnePixel, Population
from holdfast.errors import SpecError
from holdfast.rng import Keys


def problem(eps: Tensor | float, n: int = 6) -> Problem:
    target = wrap(bent())
    x, y = rows(target, n)
    return Problem(target, x, y, threat("l0", eps), Keys.of(3, torch.arange(n)))


@pytest.mark.parametrize(("eps", "share"), [(1, 0.99), (3, 0.65)])
def test_most_of_the_fall_of_a_linear_model_is_found(eps: int, share: float) -> None:
    model = linear(2)
    target = wrap(model)
    x, y = rows(target, 12)
    ledger = run(OnePixel(steps=1500), target, x, y, threat("l0", eps), stop=False)
    w, b = model.w.detach().numpy(), model.b.detach().numpy()
    columns = zip(x.flatten(1).numpy(), y.tolist(), strict=True)
    best = torch.tensor(
        [best_margin("l0", w, b, row, label, eps) for row, label in columns], dtype=x.dtype
    )
    clean = target.task.margin(target.scores(x), y)
    fall = (clean - ledger.margin) / (clean - best)
    assert bool(((fall >= share) & (fall <= 1 + 1e-6)).all())


def test_a_child_is_the_third_and_the_scaled_difference() -> None:
    p, attack = problem(3), OnePixel(population=5, scale=0.5)
    s = attack.start(p)
    for p.t in range(1, 20):
        child = attack.cross(p, s, 2)
        drawn = p.noise("anew").uniform(tuple(child.shape[1:]), child.dtype)
        others = [0, 1, 3, 4]
        for row in range(6):
            m = s.members[row]
            directions = [
                m[a] + 0.5 * (m[b] - m[c])
                for a in others
                for b in others
                for c in others
                if len({a, b, c}) == 3
            ]
            directions = [torch.where((w < 0) | (w > 1), drawn[row], w) for w in directions]
            assert any(torch.allclose(child[row], w) for w in directions)


def test_a_child_takes_its_parents_place_only_where_it_is_better() -> None:
    p, attack = problem(2), OnePixel(population=4)
    s = attack.start(p)
    for t in range(40):
        p.t = t + 1
        after = attack.step(p, s, t)
        assert isinstance(after, Population)
        changed = (after.members != s.members).flatten(2).any(2)
        better = after.fitness > s.fitness
        assert bool((changed <= better).all())
        assert torch.equal(better.sum(1) <= 1, torch.ones(6, dtype=torch.bool))
        close(
            torch.where(better, p.value(after.d, "margin")[:, None], after.fitness), after.fitness
        )
        s = after


def test_only_so_many_features_change_whatever_the_others_may() -> None:
    p = problem(torch.tensor([1.0, 2, 0.4, 4, 1.9, 9]))
    alone = problem(1, 1)
    attack = OnePixel(population=4)
    d = attack.paint(p, attack.start(p).members[:, 0])
    assert bool((p.norm.size(d) <= p.eps.flatten().floor()).all())
    assert torch.equal(attack.paint(alone, attack.start(alone).members[:, 0])[0], d[0])


def test_three_parents_are_needed() -> None:
    with pytest.raises(SpecError, match="three others for parents"):
        OnePixel(population=3)

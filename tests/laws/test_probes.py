"""Many points a row in one question: the counts and the answers are those of asking one point after
the other."""

from __future__ import annotations

import pytest
import torch
from helpers.models import EPS, SHAPE, Narrow, Then, bent, draw, rows, same, threat, wrap
from torch import Tensor

from holdfast.attacks.problem import Problem, legal_size
from holdfast.attacks.result import Outcome, SearchResult
from holdfast.rng import Keys
from holdfast.targets import Access

N, M = 12, 9


def problem(access: Access, budget: Tensor | None, *, stop: bool, sick: bool = False) -> Problem:
    inner = bent()
    model = Then(inner, lambda x, z: torch.where((x[:, 0, :1, 0] > 0.97) & sick, torch.nan, z))
    target = Narrow(wrap(model, batch_size=7), access)
    x, y = rows(wrap(inner), N)
    t = threat("l2")
    ledger = SearchResult.open(x, legal_size(t, target, N))
    return Problem(
        target, x, y, t, Keys.of(0, torch.arange(N)), result=ledger, budget=budget, stop=stop
    )


@pytest.mark.parametrize("access", [Access.LABELS, Access.SCORES])
@pytest.mark.parametrize("budget", [None, torch.arange(N)], ids=["free", "budget"])
@pytest.mark.parametrize("sick", [False, True])
def test_together_is_one_by_one(access: Access, budget: Tensor | None, sick: bool) -> None:
    loss = "margin" if access == Access.SCORES else None
    sick = sick and access == Access.SCORES
    many, single = (problem(access, budget, stop=False, sick=sick) for _ in range(2))
    d = EPS["l2"] * (draw(N, M, *SHAPE, seed=3) - 0.5)
    answer = many.probes(d, loss)
    for j in range(M):
        was = single.live.clone()
        found = single.adversarial(d[:, j]) if loss is None else single.value(d[:, j], loss)
        assert torch.equal(answer[was, j], found[was]) or sick
    ill = (
        single._counts.result.outcome == Outcome.FAILED
    )  # its later points are not asked about one by one
    assert bool((many._counts.result.outcome[ill] == Outcome.FAILED).all())
    assert bool(ill.any()) == sick
    same(
        many._counts.result, single._counts.result, ~ill, but=("outcome",)
    )  # a budget ends with the next question
    assert int(many._counts.result.broken.sum()) > 0
    assert int(many._counts.result.queries.min()) == (M if budget is None else 0)


def test_a_success_settles_the_row_after_all_its_points() -> None:
    p = problem(Access.SCORES, None, stop=True)
    p.probes(EPS["l2"] * (draw(N, M, *SHAPE, seed=3) - 0.5), "margin")
    assert torch.equal(p.live, ~p._counts.result.broken)
    assert p._counts.result.forwards.tolist() == [M] * N

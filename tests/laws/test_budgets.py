"""Every question is charged once, to the row that it was about, and budgets are hard; the last
point is judged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from helpers.catalogue import class_of, each_blind, every, short
from helpers.models import (
    EPS,
    POOLS,
    Narrow,
    bent,
    close,
    linear,
    pool,
    rows,
    run,
    same,
    threat,
    wrap,
)
from torch import Tensor

from holdfast.attacks import Outcome, parse
from holdfast.targets import Access, TorchTarget
from holdfast.targets.batch import Batch, Rows
from holdfast.targets.target import Cost, Pullback

N = 24
BUDGETS = torch.tensor([1, 7, 30]).repeat_interleave(N // 3)  # one a row


class Counting(TorchTarget):
    """A target that counts, by the row's first pixel, all that it is really asked."""

    def bind(self, shape: tuple[int, ...]) -> None:
        self.asked, self.returned = Counter(), Counter()
        super().bind(shape)
        self.asked.clear()

    def scores(self, x: Rows) -> Tensor:
        self.asked.update(marks(x))
        return super().scores(x)

    def linearize(self, x: Rows) -> tuple[Tensor, Pullback]:
        self.asked.update(marks(x))
        z, inner = super().linearize(x)

        def pullback(cotangent: Tensor) -> Tensor:
            self.returned.update(marks(x))
            return inner(cotangent)

        return z, pullback

    def pull(self, x: Rows, cotangent: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        self.asked.update(marks(x))
        self.returned.update(marks(x))
        return super().pull(x, cotangent)


def marks(x: Rows) -> list[float]:
    return Batch.of(x).x.flatten(1)[:, 0].tolist()


def marked(target: TorchTarget) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs whose first pixel names their row, and the mask that keeps it so."""
    x, _ = rows(target, N, edge=True)
    x[:, 0, 0, 0] = torch.arange(N) / 64
    y = target.labels(x)
    y[::5] = (y[::5] + 1) % target.task.k
    mask = torch.ones(target.shape, dtype=torch.bool)
    mask[0, 0, 0] = False
    return x, y, mask


@every(0)
@pytest.mark.parametrize(
    ("budgets", "stop"),
    [
        pytest.param(None, True, id="no budget, stop"),
        pytest.param(BUDGETS, False, id="budgets, no stop"),
        pytest.param(None, False, id="no budget, no stop", marks=pytest.mark.slow),
        pytest.param(BUDGETS, True, id="budgets, stop"),
    ],
)
def test_columns_are_what_the_model_was_asked(
    name: str, norm: str, budgets: Tensor | None, stop: bool
) -> None:
    target = Counting(bent(), shape=(1, 4, 4), batch_size=8)
    POOLS[target] = pool(target)
    x, y, mask = marked(target)
    target.asked.clear()
    attack = short(name, 10 if budgets is None else 40)
    ledger = run(attack, target, x, y, threat(norm, mask=mask), budget=budgets, stop=stop)
    assert ledger.forwards.tolist() == [target.asked[mark] for mark in marks(x)]
    assert ledger.backwards.tolist() == [target.returned[mark] for mark in marks(x)]
    assert torch.equal(ledger.queries, ledger.forwards)
    if budgets is not None:
        assert bool((ledger.forwards <= budgets).all())
        spent = ledger.outcome == Outcome.SPENT
        assert torch.equal(ledger.forwards[spent], budgets[spent])
    assert int(ledger.forwards.min()) >= 1


@every(1)
@pytest.mark.parametrize("budgets", [None, BUDGETS], ids=["no budget", "budgets"])
def test_a_question_of_many_passes_costs_them_all(
    name: str, norm: str, budgets: Tensor | None
) -> None:
    target = wrap(bent())
    target.cost = Cost(3)
    x, y = rows(target, N)
    ledger = run(
        short(name, 10 if budgets is None else 40), target, x, y, threat(norm), budget=budgets
    )
    assert torch.equal(ledger.forwards, 3 * ledger.queries)
    assert bool((ledger.backwards % 3 == 0).all())
    assert budgets is None or bool((ledger.forwards <= budgets).all())


@every(2)
def test_one_budget_a_row(name: str, norm: str) -> None:
    target = wrap(bent())
    x, y = rows(target, N)
    budget = torch.arange(N) + 1
    ledger = run(short(name, 40), target, x, y, threat(norm), budget=budget)
    assert bool((ledger.forwards <= budget).all())


@every(3)
def test_settled_rows_cost_nothing_more(name: str, norm: str) -> None:
    target = wrap(bent())
    x, y = rows(target, N, wrong=True)
    ledger = run(short(name), target, x, y, threat(norm))
    already = target.labels(x) != y
    assert int(already.sum()) > 0
    assert ledger.forwards[already].tolist() == [1] * int(already.sum())
    assert ledger.backwards[already].tolist() == [0] * int(already.sum())
    assert bool((ledger.size[already] == 0).all())


@every(4)
def test_clean_scores_that_are_known_are_not_asked_again(name: str, norm: str) -> None:
    target = wrap(bent())
    x, y = rows(target, N)
    asked = run(short(name), target, x, y, threat(norm))
    given = run(short(name), target, x, y, threat(norm), clean=target.scores(x))
    assert torch.equal(given.forwards, asked.forwards - 1)
    assert torch.equal(given.size, asked.size)
    assert torch.equal(given.best, asked.best)


def test_rows_known_to_be_wrong_are_settled_at_once() -> None:
    target = wrap(bent())
    x, y = rows(target, 8, wrong=True)
    ledger = run(parse("pgd(steps=3)"), target, x, y, threat("linf"), clean=target.scores(x))
    assert ledger.size[::4].tolist() == [0, 0]
    assert ledger.forwards[::4].tolist() == [0, 0]


@each_blind(5)
def test_less_access_finds_the_same(name: str, norm: str) -> None:
    target = wrap(bent())
    x, y = rows(target, N)
    full = run(short(name), target, x, y, threat(norm))
    for access in range(class_of(name).needs, Access.GRADIENTS):
        less = run(short(name), Narrow(target, Access(access)), x, y, threat(norm))
        if access < Access.SCORES:
            less.margin = full.margin  # not to be had from labels
        same(less, full, but=("best",) if access < Access.SCORES else ())
        close(less.best[less.broken], full.best[full.broken])


@pytest.mark.parametrize("start", ["ball", "sphere", "zero"])
@pytest.mark.parametrize("norm", ["linf", "l1", "l2"])
def test_bug_9_one_long_step_is_judged(norm: str, start: str) -> None:
    """From any start one step of 2 eps ends at the optimum of a linear model, in two forwards after
    the clean one."""
    if norm == "l2":
        start = "zero"  # elsewhere the start bends the direction
    model = linear(2)
    target = wrap(model, bounds=(-9, 10))
    x, y = rows(target, 60)
    ledger = run(
        parse(f"pgd(steps=1, step_size=2, start_at='{start}')"),
        target,
        x,
        y,
        threat(norm),
        stop=False,
    )
    w = model.w.detach()
    fall = threat(norm).norm.dual(w[:1] - w[1:])
    breakable = target.task.margin(target.scores(x), y) < EPS[norm] * fall
    assert 0 < int(breakable.sum()) < 60
    assert torch.equal(ledger.broken, breakable)
    assert ledger.forwards.tolist() == [3] * 60
    assert ledger.backwards.tolist() == [1] * 60
    last = threat(norm).norm.size(ledger.best - x)
    close(last[~breakable], torch.full_like(last[~breakable], EPS[norm]), rtol=1e-9)

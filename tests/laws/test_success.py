"""Success is real and legal when the unchanged model is asked again, and only the threat's goal
counts."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers.catalogue import OF_TWO, brief, every, losses_of, short
from helpers.models import EPS, Then, bent, close, rows, run, threat, wrap
from torch import Tensor

from holdfast.attacks import Outcome, SearchResult
from holdfast.attacks.attack import point
from holdfast.attacks.problem import Problem, legal_size, meets_goal
from holdfast.evaluation import judge
from holdfast.losses import LOSSES, without
from holdfast.rng import Keys
from holdfast.targets import TorchTarget
from holdfast.threats.threat import Targeted, Threat

N = 40


def check(
    ledger: SearchResult,
    model: torch.nn.Module,
    target: TorchTarget,
    x: Tensor,
    y: Tensor,
    t: Threat,
) -> None:
    """Re-ask the plain model, and measure by hand."""
    z = model(ledger.best).detach()
    d = (ledger.best.double() - x.double()).flatten(1)
    order = {"linf": torch.inf, "l2": 2, "l1": 1, "l0": 0}[t.norm.name]
    size = torch.linalg.vector_norm(d, order, dim=1)
    limit = torch.as_tensor(t.eps, dtype=torch.float64) * (1 + 1e-6)
    # what a search for the smallest found beyond eps
    over = ledger.size.isfinite() & ~ledger.broken
    if target.batcher.dtype == torch.float32:
        limit = limit + 16 * 2.0**-24
    assert bool((ledger.best >= target.bounds.low).all())
    assert bool((ledger.best <= target.bounds.high).all())
    assert bool(((size <= limit) | over).all()), "also a point that broke nothing is legal"
    if t.mask is not None:
        assert bool((d[:, ~t.mask.flatten()] == 0).all())
    expected = z.argmax(1) == t.goal.t if isinstance(t.goal, Targeted) else z.argmax(1) != y
    broken = ledger.outcome == Outcome.BROKEN
    assert torch.equal(broken | over, expected)
    assert torch.equal(ledger.broken, broken)
    close(ledger.size[expected], size[expected], rtol=1e-9, atol=1e-12)
    assert bool(ledger.size[~expected].isinf().all())
    assert bool((ledger.margin <= target.task.margin(z, y).double() + 1e-12)[~over].all())
    legal, found = judge.within(target, t, x, ledger.best)
    assert bool((legal | over).all())
    close(found, size, rtol=1e-9, atol=1e-12)
    assert torch.equal(meets_goal(t, judge.rule(target, ledger.best).label, y), expected)


@every(0)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("stop", [True, False])
def test_success_is_real_and_legal(name: str, norm: str, stop: bool, dtype: torch.dtype) -> None:
    model = bent(dtype=dtype)
    target = wrap(copy.deepcopy(model))
    x, y = (
        torch.cat(both) for both in zip(rows(target, N), rows(target, N, edge=True), strict=True)
    )
    for fields in losses_of(name):
        t = threat(norm)
        ledger = run(brief(name, **fields), target, x, y, t, stop=stop)
        for half in ledger.broken.split(N):
            assert 0 < int(half.sum()) < N
        check(ledger, model, target, x, y, t)


@every(1)
def test_the_mask_is_kept(name: str, norm: str) -> None:
    model = bent()
    target = wrap(model)
    x, y = rows(target, N, edge=True)
    mask = torch.rand(1, 4, 4, generator=torch.Generator().manual_seed(2)) < 0.6
    t = threat(norm, 2 * EPS[norm], mask=mask)
    ledger = run(brief(name), target, x, y, t)
    assert int(ledger.broken.sum()) > 0
    check(ledger, model, target, x, y, t)


@every(2)
def test_only_the_goal_counts(name: str, norm: str) -> None:
    model = bent()
    target = wrap(model)
    x, y = rows(target, N)
    for goal in (2, (y + 1) % 5):
        t = threat(norm, 2 * EPS[norm], goal=Targeted(goal))
        for fields in losses_of(name):
            check(run(brief(name, **fields), target, x, y, t), model, target, x, y, t)


@every(3)
def test_an_eps_a_row(name: str, norm: str) -> None:
    model = bent()
    target = wrap(model)
    x, y = rows(target, N)
    t = threat(norm, EPS[norm] * (torch.arange(N, dtype=torch.float64) + 1) / N * 2)
    ledger = run(brief(name), target, x, y, t)
    assert int(ledger.broken.sum()) > 0
    check(ledger, model, target, x, y, t)


@every(4)
def test_other_bounds(name: str, norm: str) -> None:
    inner = bent()
    model = Then(inner, lambda x, _: inner((x + 1) / 2))
    target = wrap(model, bounds=(-1, 1))
    x = rows(target, N)[0] * 2 - 1
    y, t = target.labels(x), threat(norm, 2 * EPS[norm])
    ledger = run(brief(name), target, x, y, t)
    assert int(ledger.broken.sum()) > 0
    check(ledger, model, target, x, y, t)


@every(5)
def test_pixels_at_the_edge_still_move(name: str, norm: str) -> None:
    """Binary images: no pixel is stuck at 0 or 1, as under an atanh that is infinite there."""
    target = wrap(bent())
    x, _ = rows(target, N, edge=True)
    x = x.round()
    y = target.labels(x)
    ledger = run(brief(name, 15), target, x, y, threat(norm, 3 * EPS[norm]))
    shifted = ((ledger.best - x) != 0).flatten(1).any(1)
    assert bool(shifted[ledger.outcome != Outcome.SURVIVED].all())
    assert int(ledger.broken.sum()) > 0


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("r", [1, 2, 3, 4])
def test_an_aim_is_pulled_up_by_rank(loss: str, r: int) -> None:
    """Aimed at its r-th wrong class an attack raises that one's loss; any wrong class counts."""
    target = wrap(bent())
    x, y = rows(target, N)
    z = target.scores(x)
    aim = without(z, y).argsort(1, descending=True)[:, r - 1]
    attack = short("pgd", loss=loss, start_at="zero", step_size=1.0, steps=1)
    p = Problem(target, x, y, threat("linf"), Keys.of(0, torch.arange(N)))
    p.aim = aim
    shifted = point(attack.step(p, attack.start(p), 0))
    before, after = (LOSSES[loss](scores, y, aim) for scores in (z, target.scores(x + shifted)))
    assert float((after > before).float().mean()) > 0.95
    ledger = run(attack, target, x, y, threat("linf"), rank=r)
    assert torch.equal(ledger.broken, target.labels(ledger.best) != y)


@every(6)
@pytest.mark.parametrize("k", [1, 2, pytest.param(3, marks=pytest.mark.slow)])
def test_two_classes_and_one_logit_have_aims_too(name: str, norm: str, k: int) -> None:
    target = wrap(bent(k))
    x, y = rows(target, N)
    for fields in losses_of(name):
        attack = brief(name, OF_TWO.get(name, 6), **fields)
        aimed = [run(attack, target, x, y, threat(norm), rank=r) for r in range(1, target.task.k)]
        assert all(bool((a.outcome != Outcome.FAILED).all()) for a in aimed)
        assert sum(int(a.broken.sum()) for a in aimed) > 0


def test_the_limit_is_eps_and_rounding() -> None:
    target = wrap(bent(dtype=torch.float32))
    for norm, rounding in (("linf", 2.0**-24), ("l2", 4 * 2.0**-24), ("l1", 16 * 2.0**-24)):
        assert float(legal_size(threat(norm), target, 1, 0.5)) == pytest.approx(
            0.5 * (1 + 1e-6) + rounding, abs=1e-12
        )

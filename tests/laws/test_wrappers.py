"""Targets around targets."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import models
from torch import nn

import holdfast
from holdfast.attacks import PGD, run
from holdfast.errors import InputError
from holdfast.targets import Access, wrap
from holdfast.targets.wrappers import (
    Ensemble,
    Estimated,
    ExpectationOverTransformation,
    StraightThrough,
    Surrogate,
)
from holdfast.threats.threat import Threat


class Noisy(nn.Module):
    """A linear model of one logit behind noise that hides it: the sign of w x is right in the
    mean."""

    def __init__(self, spread: float) -> None:
        super().__init__()
        self.spread = spread

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.flatten(1)
        x = x + self.spread * torch.randn_like(x)
        z = x.sum(1) - 8
        return torch.stack([-z, z], 1)


def test_expectation_finds_what_one_draw_does_not() -> None:
    """Known answer: the mean decision of a row at distance m from the boundary flips at eps = m /
    16, not before."""
    x = torch.full((20, 1, 4, 4), 0.5) + torch.linspace(0.02, 0.1, 20).view(-1, 1, 1, 1)
    y = torch.ones(20, dtype=torch.int64)
    # these keep the right mean under linf(0.06)
    exact = int((torch.linspace(0.02, 0.1, 20) > 0.06).sum())
    noisy = wrap(Noisy(0.1))
    ordinary = holdfast.evaluate(noisy, (x, y), "linf(0.06)", attacks=["pgd(steps=30)"])
    mean = ExpectationOverTransformation(wrap(Noisy(0.1)), draws=200)
    eot = holdfast.evaluate(mean, (x, y), "linf(0.06)", attacks=["pgd(steps=30)"])
    assert "randomised" in {f.check for f in ordinary.verdict.findings}
    statuses = eot.samples.column("status").to_pylist()
    assert abs(statuses.count("robust") - exact) <= 1
    assert ordinary.samples.column("status").to_pylist().count("unstable") > 10
    assert statuses[:6] == ["broken"] * 6
    assert statuses[-4:] == ["robust"] * 4
    assert eot.manifest.costs.forwards >= 200 * 20


def test_straight_through_sees_past_a_threshold() -> None:
    net = models.bent(dtype=torch.float32)
    hidden = models.wrap(models.Then(nn.Identity(), lambda x, z: net((x > 0.5).float())))
    open_ = StraightThrough(models.wrap(net), lambda x: (x > 0.5).to(x.dtype))
    x, y = models.rows(hidden, 32)
    threat = Threat.linf(0.3)
    naive = run(PGD(steps=10), hidden, x, y, threat)
    through = run(PGD(steps=10), open_, x, y, threat)
    assert int(naive.zero_gradients.sum()) > 0
    assert int(through.broken.sum()) > int(naive.broken.sum())
    smooth = StraightThrough(
        models.wrap(net), lambda x: (x > 0.5).to(x.dtype), lambda x: torch.sigmoid(8 * (x - 0.5))
    )
    assert not torch.equal(
        smooth.linearize(x)[1](torch.ones(32, 5)), open_.linearize(x)[1](torch.ones(32, 5))
    )
    assert torch.equal(smooth.scores(x), hidden.scores(x))


def test_estimated_gradients_point_the_right_way_and_are_charged() -> None:
    inner = models.wrap(models.linear(3))
    target = Estimated(models.Narrow(inner, Access.SCORES), probes=400)
    x, y = models.rows(inner, 4)
    cotangent = torch.eye(3, dtype=x.dtype)[[0, 1, 2, 0]]
    exact, found = inner.linearize(x)[1](cotangent), target.linearize(x)[1](cotangent)
    assert bool((torch.cosine_similarity(exact.flatten(1), found.flatten(1)) > 0.95).all())
    # a row's probes depend on it alone
    assert torch.equal(target.linearize(x[2:3])[1](cotangent[2:3])[0], found[2])
    ledger = run(PGD(steps=2), Estimated(inner, probes=3), x, y, Threat.linf(1e-6))
    assert ledger.forwards.tolist() == [1 + 2 * (1 + 6) + 1] * 4
    assert ledger.backwards.tolist() == [0] * 4


def test_a_surrogate_gives_gradients_and_the_target_judges() -> None:
    net = models.bent()
    victim, twin = models.Narrow(models.wrap(net), Access.LABELS), models.wrap(models.bent())
    other = models.wrap(models.bent(seed=5))
    x, y = models.rows(twin, 40)
    threat = Threat.linf(0.1)
    white = run(PGD(steps=10), twin, x, y, threat).broken
    same = Surrogate(victim, twin)
    ledger = run(PGD(steps=10), same, x, y, threat)
    assert torch.equal(ledger.broken, white)
    stranger = run(PGD(steps=10), Surrogate(victim, other), x, y, threat)
    assert 0 < int(stranger.broken.sum()) < int(white.sum())
    assert bool((twin.labels(stranger.best[stranger.broken]) != y[stranger.broken]).all())
    assert same.fingerprint() == victim.fingerprint()
    open_ = run(PGD(steps=10), Surrogate(models.wrap(net), other), x, y, threat)
    margin = twin.task.margin(twin.scores(open_.best), y).double()
    # the target's own, at a point it was asked about
    models.close(open_.margin[~open_.broken], margin[~open_.broken])
    with pytest.raises(InputError, match="gradients"):
        Surrogate(victim, victim)


def test_an_ensemble_is_the_mean_of_its_members() -> None:
    members = [models.wrap(models.bent(seed=s)) for s in (0, 3)]
    both = Ensemble(members)
    x, _ = models.rows(members[0], 6)
    models.close(
        both.scores(x).softmax(1), sum(m.scores(x).softmax(1) for m in members) / 2, rtol=1e-12
    )
    z, pullback = both.linearize(x)
    models.close(z, both.scores(x))
    leaf = x.clone().requires_grad_()
    value = sum(m.model(leaf).softmax(1) for m in members).log()[:, 0].sum()  # pyright: ignore
    unit = torch.zeros(6, 5, dtype=x.dtype)
    unit[:, 0] = 1
    models.close(pullback(unit), torch.autograd.grad(value, leaf)[0], rtol=1e-9, atol=1e-12)


def test_a_wrapper_follows_what_its_target_learns_when_bound() -> None:
    """A function of numpy arrays is known by trial; a batch norm gives a twin that may differ in
    the last digits."""

    def by_numpy(x: np.ndarray) -> np.ndarray:
        return np.asarray(x).reshape(len(x), -1)[:, :3] * 5

    function = ExpectationOverTransformation(wrap(by_numpy), draws=2)
    function.bind((1, 4, 4))
    assert function.access == Access.SCORES
    inner = wrap(
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))
    )
    folded = ExpectationOverTransformation(inner, draws=2)
    folded.bind((1, 4, 4))
    assert folded.gradients.approximate == inner.gradients.approximate
    with pytest.raises(InputError, match="has none"):
        Surrogate(models.wrap(models.bent(dtype=torch.float32)), wrap(by_numpy)).bind((1, 4, 4))
    estimated = Estimated(wrap(by_numpy), probes=3)
    estimated.bind((1, 4, 4))
    assert (estimated.access, estimated.cost.pullback) == (Access.GRADIENTS, 6)

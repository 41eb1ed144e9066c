"""Sigma-zero, VFGA and JSMA against plain rewrites, one row at a time, and what they promise beyond
the laws."""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
from helpers.models import Bent, rows, threat, wrap
from torch import Tensor

from holdfast.attacks import SearchResult, parse, run
from holdfast.attacks.attack import _noise_of
from holdfast.attacks.problem import Problem
from holdfast.attacks.sparse.jsma import JSMA
from holdfast.losses import LOSSES, without
from holdfast.rng import Keys
from holdfast.targets import TorchTarget
from holdfast.threats.threat import Targeted

N = 8
FEATURES = 100


def world(n: int = N) -> tuple[Bent, TorchTarget, Tensor, Tensor]:
    """The surest rows of many: it takes several of their features to break them."""
    model = Bent(5, FEATURES, 12, 3, torch.float64)
    target = wrap(model, (1, 10, 10))
    x, y = rows(target, 300)
    sure = target.task.margin(target.scores(x), y).topk(n).indices
    return model, target, x[sure], y[sure]


def pull(model: Bent, x: Tensor, y: int, loss: str, t: int | None = None) -> tuple[float, Tensor]:
    """The loss of one row, and its gradient."""
    leaf = x.clone().requires_grad_()
    aim = None if t is None else torch.tensor([t])
    value = LOSSES[loss](model(leaf[None]), torch.tensor([y]), aim)[0]
    return value.item(), torch.autograd.grad(value, leaf)[0]


def test_sigma_zero_is_adam_on_the_hinge_and_the_smooth_count() -> None:
    model, target, x, y = world()
    steps = 25
    ledger = run(parse(f"sigmazero(steps={steps})"), target, x, y, threat("l0", math.inf))
    for i in range(N):
        d, m, v, tau, best = torch.zeros_like(x[i]), 0.0, 0.0, 0.3, math.inf
        for t in range(steps + 1):
            value, g = pull(model, x[i] + d, int(y[i]), "margin")
            if value > 0:
                best = min(best, int((d != 0).sum()))
                leaf = d.clone().requires_grad_()
                g = -torch.autograd.grad((leaf**2 / (leaf**2 + 1e-3)).mean(), leaf)[0]
            eta = 0.1 + 0.9 * (1 + math.cos(math.pi * t / steps)) / 2
            g = g / g.abs().max()
            m, v = m + (g - m) / 10, v + (g * g - v) / 1000
            d = d + eta * m / (1 - 0.9 ** (t + 1)) / (torch.sqrt(v / (1 - 0.999 ** (t + 1))) + 1e-8)
            d = (x[i] + d).clamp(0, 1) - x[i]
            tau = min(max(tau + (0.01 * eta if value > 0 else -0.01 * eta), 0), 1)
            d = torch.where(d.abs() < tau, 0, d)
        assert ledger.size[i] == best


def test_sigma_zero_works_with_a_goal_too() -> None:
    """Peers refuse targets, or return their inputs."""
    _, target, x, y = world()
    t = threat("l0", math.inf, goal=Targeted((y + 1) % 5))
    ledger = run(parse("sigmazero(steps=200)"), target, x, y, t)
    assert torch.equal(target.labels(ledger.best), (y + 1) % 5)
    assert float(ledger.size.mean()) < 12


def test_vfga_is_its_box_of_the_paper() -> None:
    model, target, x, y = world()
    attack = parse("vfga(steps=6, draws=3, loss='margin')")
    ledger = run(attack, target, x, y, threat("l0", math.inf))
    keys = Keys.of(0, torch.arange(N)).fold(_noise_of(attack), 0, 0)
    for i in range(N):
        at, best, clean = x[i].clone(), math.inf, x[i].flatten()
        for t in range(6):
            _, g = pull(model, at, int(y[i]), "margin")
            lengths = keys.fold(t + 1, "move").normal((6,), torch.float64)[i].abs()
            free = [j for j in range(FEATURES) if at.flatten()[j] == clean[j]]
            rooms = (1 - clean, -clean)
            chosen = [max(free, key=lambda j, r=r: float(g.flatten()[j] * r[j])) for r in rooms]
            tried = []
            for j in range(6):
                point = at.flatten().clone()
                feature = chosen[j % 2]
                point[feature] = (point[feature] + lengths[j] * rooms[j % 2][feature]).clamp(0, 1)
                tried.append(
                    (pull(model, point.view_as(at), int(y[i]), "margin")[0], point.view_as(at))
                )
                if tried[-1][0] > 0:
                    best = min(best, int((point != clean).sum()))
            at = max(tried, key=lambda pair: pair[0])[1]
            if int((at != x[i]).sum()) + 1 > best - 1:
                at = x[i].clone()
        assert ledger.size[i] == best


def test_a_vfga_that_can_add_nothing_begins_again() -> None:
    """The peers' first success is their last; here more steps go on to lower counts."""
    _, target, x, y = world(40)
    few, many = (
        run(parse(f"vfga(steps={s}, draws=2)"), target, x, y, threat("l0", math.inf))
        for s in (8, 30)
    )
    assert bool(few.size.isfinite().all())
    assert bool((many.size <= few.size).all())
    assert float(many.size.sum()) < float(few.size.sum())


def test_the_pair_of_jsma_is_the_most_salient_of_all_pairs() -> None:
    """By the paper's map, over every pair, on the softmax's full Jacobian."""
    model, target, x, y = world()
    result = SearchResult.open(x, torch.full((N,), math.inf, dtype=torch.float64))
    p = Problem(target, x, y, threat("l0", math.inf), Keys.of(0, torch.arange(N)), result=result)
    aim = without(target.scores(x), y).argmax(1)
    g = torch.stack([pull(model, x[i], int(y[i]), "ce", int(aim[i]))[1] for i in range(N)])
    move = (0.05 * g.sign()).clamp(-x, 1 - x).flatten(1)
    attack = JSMA(theta=0.05)
    shifted = attack.step(p, attack.start(p), 0).d.flatten(1)
    for i in range(N):
        jacobian = torch.autograd.functional.jacobian(
            lambda v: model(v[None])[0].softmax(0), x[i]
        ).flatten(1)
        effect = jacobian * move[i]
        gain, loss = effect[aim[i]], effect.sum(0) - effect[aim[i]]
        pairs = list(itertools.combinations(range(FEATURES), 2))
        saliency = [-float((gain[a] + gain[b]) * (loss[a] + loss[b])) for a, b in pairs]
        best = pairs[int(np.argmax(saliency))]
        assert set(shifted[i].nonzero()[:, 0].tolist()) == set(best)
        np.testing.assert_allclose(shifted[i][list(best)], move[i][list(best)])


def test_jsma_costs_two_forwards_and_a_backward_a_step() -> None:
    _, target, x, y = world()
    ledger = run(parse("jsma(steps=7)"), target, x, y, threat("l0", math.inf))
    assert bool((ledger.forwards == 1 + 1 + 2 * 7 + 1).all())
    assert bool((ledger.backwards == 7).all())


def test_jsma_takes_the_wrong_classes_in_turn() -> None:
    """First the best wrong class of the clean scores; a broken row goes on with the next."""
    _, target, x, y = world()
    asked: list[Tensor] = []

    class Watched(JSMA):
        def step(self, p: Problem, s, t: int):
            asked.append(s.others[:, 0])
            return super().step(p, s, t)

    run(Watched(steps=40), target, x, y, threat("l0", math.inf))
    order = without(target.scores(x), y).argsort(1, descending=True)[:, :4]
    turns = torch.stack(asked, 1)
    for i in range(N):
        seen = [c for c, _ in itertools.groupby(turns[i].tolist())]
        assert len(seen) > 4
        assert seen == [int(order[i, j % 4]) for j in range(len(seen))]

"""APGD's own clockwork, against the numbers of the paper and a plain rewrite of its loop."""

from __future__ import annotations

import pytest
import torch
from helpers.models import EPS, bent, rows, threat, wrap
from torch import Tensor

from holdfast.attacks import parse, run
from holdfast.attacks.gradient.apgd import APGD
from holdfast.attacks.problem import Problem
from holdfast.attacks.shared.checkpoints import Climb, check, checkpoints, stage
from holdfast.rng import Keys


def test_checkpoints_are_the_papers() -> None:
    assert checkpoints(100)[1:] == [22, 41, 57, 70, 80, 87, 93, 99]


@pytest.mark.parametrize("steps", [1, 2, 5, 10, 33, 1000])
def test_checkpoints_rise_within_the_steps(steps: int) -> None:
    marks = checkpoints(steps)
    assert marks[0] == 0
    assert marks == sorted(set(marks))
    assert marks[-1] <= steps


def test_the_first_step_is_two_eps_and_costs_are_as_stated() -> None:
    target = wrap(bent())
    x, y = rows(target, 10)
    p = Problem(target, x, y, threat("linf"), Keys.of(0, torch.arange(10)))
    state = APGD().start(p)
    assert bool((state.size == 2).all())
    ledger = run(parse("apgd(steps=20)"), target, x, y, threat("linf", 1e-4), stop=False)
    # One for the clean scores, one for the start, one a step; the last point is asked again where a
    # check moved it.
    assert bool(((ledger.forwards == 22) | (ledger.forwards == 23)).all())
    assert bool((ledger.backwards == 21).all())


@pytest.mark.parametrize("loss", ["ce", "margin"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_path_is_that_of_a_plain_rewrite(norm: str, loss: str) -> None:
    """Step sizes, halvings and losses of each row, followed one row at a time in plain Python."""
    target = wrap(bent())
    x, y = rows(target, 8)
    attack = APGD(steps=50, loss=loss)
    for i in range(len(x)):
        p = Problem(
            target,
            x[i : i + 1],
            y[i : i + 1],
            threat(norm, 2 * EPS[norm]),
            Keys.of(3, torch.tensor([i])),
        )
        state, twin = attack.start(p), Twin(attack, p)
        for t in range(attack.steps):
            p.t = t + 1
            state = attack.step(p, state, t)
            twin.step(t)
            assert float(state.size) == twin.size, f"step size of row {i} after step {t}"
            assert float(state.best_value) == pytest.approx(twin.best[0], rel=1e-9)
            assert torch.allclose(state.d, twin.d, rtol=0, atol=1e-9), (
                f"point of row {i} after step {t}"
            )
        assert twin.halvings >= 1


class Twin:
    """Algorithm 1 of arXiv:2003.01690 for one row, as the paper tells it."""

    def __init__(self, attack: APGD, p: Problem) -> None:
        self.attack, self.p = attack, p
        self.size, self.halvings = 2.0, 0
        self.d = self.before = p.random_start("sphere")
        self.value, self.g = self.ask(self.d)
        self.best = (self.value, self.d, self.g)
        self.last_best, self.last_halved, self.rises = self.value, True, 0
        # of N = 50: the first 0.22 N, each next one less
        self.marks = {11: 11, 21: 10, 30: 9, 38: 8, 45: 7}

    def ask(self, d: Tensor) -> tuple[float, Tensor]:
        value, g = self.p.gradient(d, self.attack.loss)
        return float(value), g

    def step(self, t: int) -> None:
        p = self.p
        ahead = p.project(self.d + self.size * p.eps * p.steepest(self.g))
        # the sum also where a is 1: an ulp off the box's edge frees a coordinate
        a = 0.75 if t else 1.0
        new = p.project(self.d + a * (ahead - self.d) + (1 - a) * (self.d - self.before))
        value, g = self.ask(new)
        self.rises += value > self.value
        self.before, self.d, self.value, self.g = self.d, new, value, g
        if value > self.best[0]:
            self.best = (value, new.clone(), g.clone())
        if t + 1 in self.marks:
            few = self.rises <= 0.75 * self.marks[t + 1]
            stuck = not self.last_halved and self.last_best >= self.best[0]
            self.last_halved, self.last_best, self.rises = few or stuck, self.best[0], 0
            if few or stuck:
                self.size, self.halvings = self.size / 2, self.halvings + 1
                _, self.d, self.g = self.best


def test_the_best_and_the_checked_are_not_the_same_point() -> None:
    """A best value that rises after a checkpoint leaves the value noted there alone."""
    n = 2
    d, value = torch.zeros(n, 3), torch.tensor([1.0, 1.0])
    never = torch.zeros(n)
    state = Climb(d, d, d, value, d, d, value, value, never, never == 0, never + 2)
    _, checked = check(state._replace(best_value=value + 1), 100, 21, 0.75)
    assert checked.checked.tolist() == [2, 2]
    assert state.checked.tolist() == [1, 1]


def test_the_l1_radius_falls_to_eps() -> None:
    """3 eps, 2 eps and eps for 0.3, 0.3 and 0.4 of the steps, and eps alone where there are few."""
    stages = {n: [stage(n, t) for t in range(n)] for n in (100, 10, 3, 1)}
    assert stages[100] == [(0, 30, 3.0)] * 30 + [(30, 30, 2.0)] * 30 + [(60, 40, 1.0)] * 40
    assert stages[10] == [(0, 3, 3.0)] * 3 + [(3, 3, 2.0)] * 3 + [(6, 4, 1.0)] * 4
    assert stages[3] == [(0, 3, 1.0)] * 3
    assert stages[1] == [(0, 1, 1.0)]


def test_the_l1_path_is_that_of_a_plain_rewrite() -> None:
    target = wrap(bent())
    x, y = rows(target, 3, edge=True)
    attack = APGD(steps=60)
    for i in range(len(x)):
        p = Problem(
            target,
            x[i : i + 1],
            y[i : i + 1],
            threat("l1", 2 * EPS["l1"]),
            Keys.of(3, torch.tensor([i])),
        )
        state, twin = attack.start(p), SparseTwin(p)
        for t in range(attack.steps):
            p.t = t + 1
            state = attack.step(p, state, t)
            twin.step(t)
            assert float(state.size) == pytest.approx(twin.size), (
                f"step size of row {i} after step {t}"
            )
            assert torch.allclose(state.d, twin.d, rtol=0, atol=1e-9), (
                f"point of row {i} after step {t}"
            )
            assert float(p.norm.size(state.d)) <= twin.radius * (1 + 1e-9)
        assert twin.radius == float(p.eps)


class SparseTwin:
    """Algorithm 1 of arXiv:2103.01208 for one row, in 60 steps: stages of 18, 18 and 24, a check at
    every step."""

    def __init__(self, p: Problem) -> None:
        self.p, self.radius, self.size = p, 3 * float(p.eps), 1.0
        noise = p.noise("start").normal(tuple(p.x.shape[1:]), p.x.dtype)
        self.enter(self.project(noise))

    def project(self, d: Tensor) -> Tensor:
        return self.p.norm.project(
            d, torch.full_like(self.p.eps, self.radius), self.p.lo, self.p.hi
        )

    def enter(self, d: Tensor) -> None:
        self.d, self.size = d, 1.0
        value, self.g = self.p.gradient(d, "ce")
        self.best = (float(value), d, self.g)
        self.entries = self.inside(d)

    def inside(self, d: Tensor) -> int:
        return int(((d != 0) & (d > self.p.lo) & (d < self.p.hi)).sum())

    def step(self, t: int) -> None:
        if t in (18, 36):
            self.radius -= float(self.p.eps)
            if t == 36:
                self.radius = float(self.p.eps)
            self.enter(self.project(self.best[1]))
            return
        k = max(int(self.entries / 1.5), 1)
        free = torch.where(self.g > 0, self.p.hi > self.d, self.p.lo < self.d)
        least = sorted(self.g[free].abs().tolist(), reverse=True)[:k][-1]
        steep = self.g.abs() >= least
        move = steep.double() / torch.where(free, (steep & free).sum(), 1) * self.g.sign()
        self.d = self.project(self.d + self.size * self.radius * move)
        value, self.g = self.p.gradient(self.d, "ce")
        if float(value) > self.best[0]:
            self.best = (float(value), self.d, self.g)
        entries = self.inside(self.best[1])
        if entries < 0.95 * self.entries:
            self.size, self.d, self.g = 1.0, *self.best[1:]
        else:
            self.size = max(self.size / 1.5, 0.1)
        self.entries = entries

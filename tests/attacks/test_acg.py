"""ACG against a plain rewrite of its loop, and the share of the last direction against numbers by
hand."""

from __future__ import annotations

import pytest
import torch
from helpers.models import EPS, Linear, bent, draw, rows, threat, wrap
from torch import Tensor

from holdfast.attacks.gradient.acg import ACG, Conjugate, _beta
from holdfast.attacks.problem import Problem
from holdfast.losses import ce
from holdfast.rng import Keys


def row(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float64)


def test_beta_is_hestenes_and_stiefels() -> None:
    # turn (-1, 1), <g, turn> = 1, <way, turn> = -1 (times 3): the share is 1 (a third of three)
    assert float(_beta(row(0, 1), row(-1, 2), row(1, 0))) == 1
    assert float(_beta(row(0, 1), row(-1, 2), row(3, 0))) == pytest.approx(1 / 3)
    assert float(_beta(row(0, 1), row(1, 2), row(1, 0))) == 0  # below 0: the gradient alone
    assert float(_beta(row(0, 1), row(0, 1), row(1, 0))) == 0  # the gradient has not turned
    assert float(_beta(row(0, 1), row(1, 1), row(0, 1))) == 0  # nor along the last direction


def smooth_loss(z: Tensor, y: Tensor, t: Tensor | None) -> Tensor:
    return ce(torch.sin(3 * z), y, t)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_path_is_that_of_a_plain_rewrite(norm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss whose gradient turns at every point: conjugate steps differ from plain ones, and
    halvings go back."""
    target = wrap(bent())
    x, y = rows(target, 3)
    attack = ACG(steps=50)
    bends = 0
    for i in range(len(x)):
        p = Problem(
            target,
            x[i : i + 1],
            y[i : i + 1],
            threat(norm, 4 * EPS[norm]),
            Keys.of(3, torch.tensor([i])),
        )
        asked = p.gradient
        monkeypatch.setattr(p, "gradient", lambda d, _, asked=asked: asked(d, smooth_loss))
        state, twin = attack.start(p), Twin(p)
        for t in range(attack.steps):
            p.t = t + 1
            state = attack.step(p, state, t)
            twin.step(t)
            assert float(state.climb.size) == twin.size, f"step size of row {i} after step {t}"
            assert torch.allclose(state.climb.d, twin.d, rtol=0, atol=1e-9), (
                f"point of row {i} after step {t}"
            )
            twin.follow(state)
        bends += twin.bends
        assert twin.size < 2
    assert bends > 10


class Twin:
    """Algorithm 1 of arXiv:2206.09628 for one row, its gradients brought to length 1."""

    def __init__(self, p: Problem) -> None:
        self.p, self.size, self.bends = p, 2.0, 0
        self.d = p.random_start("ball")
        self.value, self.g = self.ask()
        self.before, self.direction = self.g, torch.zeros_like(self.g)
        self.best = (self.value, self.d, self.g, self.before, self.direction)
        self.last_best, self.halved, self.rises = self.value, True, 0
        self.marks = {11: 11, 21: 10, 30: 9, 38: 8, 45: 7}

    def ask(self) -> tuple[float, Tensor]:
        value, g = self.p.gradient(self.d, "ce")
        return float(value), g / g.flatten().norm()

    def follow(self, s: Conjugate) -> None:
        """Steps are compared one by one: a conjugate direction enlarges what rounding differs."""
        c = s.climb
        self.value, self.d, self.g, self.before, self.direction = (
            float(c.value),
            c.d,
            c.g,
            *s.turn.unbind(1),
        )
        self.best = (float(c.best_value), c.best, c.best_g, *s.best_turn.unbind(1))

    def step(self, t: int) -> None:
        turn = self.before - self.g  # y of the paper, for ascent
        beta = 0.0
        if float(turn.abs().max()) > 1e-4 and float((self.direction * turn).sum()) != 0:
            beta = max(-float((self.g * turn).sum()) / float((self.direction * turn).sum()), 0.0)
        self.bends += beta > 0
        direction = self.g + beta * self.direction
        self.direction = direction / direction.flatten().norm()
        self.d = self.p.project(self.d + self.size * self.p.eps * self.p.steepest(self.direction))
        self.before = self.g
        old, (self.value, self.g) = self.value, self.ask()
        self.rises += self.value > old
        if self.value > self.best[0]:
            self.best = (self.value, self.d, self.g, self.before, self.direction)
        if t + 1 in self.marks:
            few = self.rises <= 0.75 * self.marks[t + 1]
            stuck = not self.halved and self.last_best >= self.best[0]
            self.halved, self.last_best, self.rises = few or stuck, self.best[0], 0
            if few or stuck:
                self.size /= 2
                _, self.d, self.g, self.before, self.direction = self.best


def test_a_gradient_of_zero_moves_nothing_and_is_no_nan() -> None:
    target = wrap(Linear(torch.zeros(3, 16, dtype=torch.float64), draw(3)))
    x, y = rows(target, 4)
    p = Problem(target, x, y, threat("l2"), Keys.of(0, torch.arange(4)))
    attack = ACG(steps=30)
    state = attack.start(p)
    start = state.climb.d
    for t in range(30):
        state = attack.step(p, state, t)
    assert torch.equal(state.climb.d, start)

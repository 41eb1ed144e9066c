"""Objectives with Gaussian noise: for networks that are to be smoothed by it.

The noise leaves the box, as it does where a smoothed network is asked.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from holdfast.attacks.attack import Attack, wide
from holdfast.attacks.problem import Problem
from holdfast.spec import option
from holdfast.targets.target import Access, Bounds
from holdfast.training.inner_attack import InnerAttack
from holdfast.training.objective import Objective, Searching


@dataclass(frozen=True)
class Noise(Objective):
    """CE(f(x + noise), y), Gaussian (Cohen et al. 2019, arXiv:1902.02918)."""

    raw = True
    sigma: float = option(0.25, "of the noise, in raw input units", at_least=0)
    steps = 0
    smoothing: float = option(0.0, "share of a label spread over all classes", at_least=0)

    def points(self, inner: InnerAttack, x: Tensor, y: Tensor) -> Tensor:
        return x + self.sigma * inner.keys(x, "noise").normal(x.shape[1:], x.dtype)


@dataclass(frozen=True)
class SmoothAdv(Searching, steps=4, step_size=0.5):
    """CE(f(x' + noise), y), x' where the smoothed network errs most (Salman et al. 2019,
    arXiv:1906.04584).

    Differs from the paper: the loss draws noise of its own, not that of the attack.
    """

    raw = True
    sigma: float = option(0.25, "of the noise, in raw input units", at_least=0)
    draws: int = option(
        2, "of noise: for the attack's mean of softmax, and points a row to train at", at_least=1
    )

    @property
    def passes(self) -> int:
        return 2 * self.draws * (self.steps + 1)

    def points(self, inner: InnerAttack, x: Tensor, y: Tensor) -> Tensor:
        low, high = inner.live.bounds.low, inner.live.bounds.high
        open_ = copy.copy(inner.live)
        open_.bounds = Bounds(
            2 * low - high - 1000 * self.sigma, 2 * high - low + 1000 * self.sigma
        )
        attack = _Smooth(
            self.steps, self.step_size, self.sigma, self.draws, float(low), float(high)
        )
        x = inner.live.bounds.clamp(inner(attack, x, y, on=open_))
        return torch.cat(
            [
                x + self.sigma * inner.keys(x, f"noise {i}").normal(x.shape[1:], x.dtype)
                for i in range(self.draws)
            ]
        )


@dataclass(frozen=True)
class _Smooth(Attack):
    """Ascent of -log of the mean p_y under noise, the same at each step. It asks beyond the box; d
    stays in."""

    needs = Access.GRADIENTS
    steps: int
    step_size: float
    sigma: float
    draws: int
    low: float
    high: float

    def step(self, p: Problem, s: Tensor, t: int) -> Tensor:
        answers = []
        for i in range(self.draws):
            noise = self.sigma * p.keys.fold("noise", i).normal(p.x.shape[1:], p.x.dtype)
            answers.append(
                p.gradient(s + noise, lambda z, y, aim: F.cross_entropy(z, y, reduction="none"))
            )
        # The logarithm of a mean has the mean of the gradients, each weighed by its share.
        weights = torch.stack([-value for value, _ in answers]).softmax(0)
        g = sum(wide(w, g) * g for w, (_, g) in zip(weights, answers, strict=True))
        lo, hi = self.low - p.x, self.high - p.x
        assert isinstance(g, Tensor)
        return p.norm.project(s + p.norm.stride(g, self.step_size, p.eps, lo, hi), p.eps, lo, hi)

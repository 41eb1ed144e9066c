"""Sweep: try points of the ball without asking for any direction; the baseline that every attack must beat."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from holdfast.attacks.attack import Attack
from holdfast.attacks.problem import Problem
from holdfast.errors import SpecError
from holdfast.targets.target import Access


@dataclass(frozen=True)
class Sweep(Attack):
    """Random or exhaustive search: one point a step, labels only.

    In random order, extreme points of the ball and uniform points in it take turns. In exhaustive order the corners
    of the ball are walked one by one: with 2^f steps (Linf) or 2f (L1) on f features it is an exact search over them.
    """

    needs = Access.LABELS

    steps: int = 100  # points tried
    order: str = "random"  # random or exhaustive

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.order not in ("random", "exhaustive"):
            raise SpecError(f"sweep has order {self.order!r}; it is random or exhaustive.")

    def start(self, p: Problem) -> Tensor:
        return torch.zeros_like(p.x)

    def step(self, p: Problem, s: Tensor, t: int) -> Tensor:
        if self.order == "exhaustive":
            unit = p.norm.corner(t, p.x)
        elif t % 2:
            unit = p.norm.sample(p.noise("inside"), p.x)
        else:
            unit = p.norm.extreme(p.noise("extreme"), p.x)
        d = p.project(p.eps * unit)
        p.adversarial(d)
        return d

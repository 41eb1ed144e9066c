"""Objectives against several threats at once: the one that is measured, and further ones."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from holdfast import spec
from holdfast.attacks.attack import Attack
from holdfast.attacks.gradient.pgd import PGD as Ascent
from holdfast.attacks.problem import Problem
from holdfast.errors import SpecError
from holdfast.spec import option
from holdfast.targets.target import Access
from holdfast.threats.threat import Targeted, Threat
from holdfast.training.inner_attack import InnerAttack
from holdfast.training.objective import Searching


@dataclass(frozen=True)
class MultipleThreats(Searching):
    """Trains against the threat and those that `also` lists, with as many steps for each."""

    also: str = option(
        "", "further threats, in addition to the one that is measured: 'l2(2), l1(10)'"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for threat in self.others:
            if isinstance(threat.goal, Targeted) or not Ascent.works_in(threat.norm):
                raise SpecError(
                    f"{self!r} also has {threat}, but ascent takes untargeted threats in linf, l2 "
                    "and l1."
                )

    @cached_property
    def others(self) -> list[Threat]:
        return [Threat.parse(text) for text in spec.parts(self.also)]

    def ends(self, inner: InnerAttack, x: Tensor, y: Tensor) -> list[Tensor]:
        """Where ascent ends under each threat."""
        attack = Ascent(steps=self.steps, step_size=self.step_size, loss="ce")
        return [inner(attack, x, y, threat) for threat in inner.threats(self.others)]


@dataclass(frozen=True)
class Avg(MultipleThreats):
    """The mean over several threats of CE(f(x'), y) (Tramer and Boneh 2019, arXiv:1904.13000)."""

    @property
    def passes(self) -> int:
        return super().passes * (1 + len(self.others))

    def points(self, inner: InnerAttack, x: Tensor, y: Tensor) -> Tensor:
        return torch.cat(self.ends(inner, x, y))


@dataclass(frozen=True)
class Max(MultipleThreats):
    """CE(f(x'), y) under that of several threats where it is highest (Tramer and Boneh 2019,
    arXiv:1904.13000)."""

    @property
    def passes(self) -> int:
        return (2 * self.steps + 1) * (1 + len(self.others)) + 2

    def points(self, inner: InnerAttack, x: Tensor, y: Tensor) -> Tensor:
        return inner.worst(self.ends(inner, x, y), y)


@dataclass(frozen=True)
class EAT(MultipleThreats):
    """CE(f(x'), y) under one of several threats, drawn for each row (E-AT: Croce and Hein 2022,
    arXiv:2105.12508).

    As cheap as one threat; meant for a few epochs from a robust network. Differs from the paper:
    the threat is drawn for a row, not for a batch, and each is as likely.
    """

    def points(self, inner: InnerAttack, x: Tensor, y: Tensor) -> Tensor:
        attack = Ascent(steps=self.steps, step_size=self.step_size, loss="ce")
        threats, x_adv = inner.threats(self.others), x.clone()
        drawn = inner.keys(x, "threat").integers(len(threats))
        for i, threat in enumerate(threats):
            rows = (drawn == i).nonzero()[:, 0]
            x_adv[rows] = inner(attack, x[rows], y[rows], threat, among=rows)
        return x_adv


@dataclass(frozen=True)
class MSD(MultipleThreats):
    """CE(f(x'), y) at the end of ascent, each step of which is under the one of several threats
    that gains most.

    Multi steepest descent (Maini et al. 2020, arXiv:1909.04068).
    """

    raw = True

    @property
    def passes(self) -> int:
        return super().passes + self.steps * (1 + len(self.others))

    def points(self, inner: InnerAttack, x: Tensor, y: Tensor) -> Tensor:
        bounds = inner.live.bounds
        threats = ", ".join(repr(threat) for threat in inner.threats(self.others))
        # The union of balls is no ball: this one holds them all.
        return inner(
            _Steepest(self.steps, self.step_size, threats),
            x,
            y,
            Threat.linf(bounds.high - bounds.low),
        )


@dataclass(frozen=True)
class _Steepest(Attack):
    """Of one step under each of several threats, the one after which the cross-entropy is
    highest."""

    needs = Access.GRADIENTS
    steps: int
    step_size: float
    threats: str

    def start(self, p: Problem) -> Tensor:
        return torch.zeros_like(p.x)

    def step(self, p: Problem, s: Tensor, t: int) -> Tensor:
        _, g = p.gradient(s, "ce")
        steps = []
        for threat in map(Threat.parse, spec.parts(self.threats)):
            eps = torch.full_like(p.eps, float(threat.eps))
            stride = threat.norm.stride(g, self.step_size, eps, p.lo, p.hi)
            steps.append(threat.norm.project(s + stride, eps, p.lo, p.hi))
        gains = torch.stack([p.value(d, "ce") for d in steps])
        return torch.stack(steps)[gains.argmax(0), torch.arange(len(s), device=s.device)]

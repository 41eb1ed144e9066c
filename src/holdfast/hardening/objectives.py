"""Objectives: the ways to train, by name. Those for several threats, and those with noise, have
files of their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from holdfast import spec
from holdfast.attacks.attack import Attack
from holdfast.attacks.gradient.pgd import PGD as Ascent
from holdfast.attacks.problem import Problem
from holdfast.hardening.learned_attacker import AdvGAN
from holdfast.hardening.noise import Noise, SmoothAdv
from holdfast.hardening.several_threats import EAT, MSD, Avg, Max
from holdfast.targets.target import Access
from holdfast.training.inner_attack import Craft
from holdfast.training.objective import (
    PGD,
    Net,
    Objective,
    Standard,
    crossed,
    distance,
    divergence,
)


@dataclass(frozen=True)
class FGSM(Objective):
    """CE(f(x'), y) one step from x (Goodfellow et al. 2015, arXiv:1412.6572)."""

    step_size: float = 1.0  # fraction of eps
    smoothing: float = 0.0  # share of a label spread over all classes

    def near(self, craft: Craft, x: Tensor, y: Tensor) -> Tensor:
        return craft(Ascent(steps=1, step_size=self.step_size, start_at="zero", loss="ce"), x, y)


@dataclass(frozen=True)
class Fast(Objective):
    """CE(f(x'), y) one long step from a random point of the ball (FGSM-RS: Wong et al. 2020,
    arXiv:2001.03994)."""

    step_size: float = 1.25  # fraction of eps
    smoothing: float = 0.0  # share of a label spread over all classes


@dataclass(frozen=True)
class NFGSM(Objective):
    """CE(f(x'), y) one step from strong noise, not drawn back into the ball (de Jorge et al. 2022,
    arXiv:2202.01181).

    Differs from the paper: in other norms than Linf the noise is uniform in the ball of `noise`
    eps.
    """

    noise: float = 2.0  # size of the noise, multiples of eps
    step_size: float = 1.0  # fraction of eps
    smoothing: float = 0.0  # share of a label spread over all classes

    def near(self, craft: Craft, x: Tensor, y: Tensor) -> Tensor:
        widen = self.noise + self.step_size
        wide = craft.threat.at(float(craft.threat.eps) * widen)
        return craft(_Noisy(share=self.noise / widen, step_size=self.step_size / widen), x, y, wide)


@dataclass(frozen=True)
class Free(Objective):
    """CE(f(x'), y), each batch several times: one backward moves the weights and x' (Shafahi 2019,
    arXiv:1904.12843).

    A recipe's epochs count batches, so it needs so many times fewer of them. Differs from the
    paper: x' of a new batch starts at random, not from where the last batch's ended.
    """

    batch_replays: int = 8  # steps of the optimiser a batch (m in the paper)
    step_size: float = 1.0  # fraction of eps, from one replay to the next
    smoothing: float = 0.0  # share of a label spread over all classes

    @property
    def inner(self) -> int:
        return 0  # its attack is its training

    @property
    def passes(self) -> int:
        return 2 * self.batch_replays

    @property
    def replays(self) -> int:
        return self.batch_replays

    def near(self, craft: Craft, x: Tensor, y: Tensor) -> Tensor:
        return craft.around(x, "start")


@dataclass(frozen=True)
class ALP(Objective):
    """CE(f(x'), y) and CE(f(x), y), half each, + weight |f(x) - f(x')|^2 / k (Kannan et al. 2018,
    arXiv:1803.06373)."""

    asks = 2
    weight: float = 0.5  # of the distance between the logits
    steps: int = 10  # of the inner attack
    step_size: float = 0.25  # fraction of eps
    smoothing: float = 0.0  # share of a label spread over all classes

    def loss(self, net: Net, x: Tensor, near: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        (clean, z), (crafted, there) = (crossed(net, at, y, self.smoothing) for at in (x, near))
        return (clean + crafted) / 2 + self.weight * (there - z).square().mean(1), there


@dataclass(frozen=True)
class Trades(Objective):
    """CE(f(x), y) + beta KL(p, p'), x' where that divergence is large (Zhang et al. 2019,
    arXiv:1901.08573)."""

    asks = 2
    beta: float = 6.0  # of the divergence: more robust, less accurate
    steps: int = 10  # of the inner attack
    step_size: float = 0.25  # fraction of eps
    smoothing: float = 0.0  # share of a label spread over all classes

    @property
    def passes(self) -> int:
        return super().passes + 1  # the inner attack asks for p too

    def near(self, craft: Craft, x: Tensor, y: Tensor) -> Tensor:
        return craft(_Apart(steps=self.steps, step_size=self.step_size), x, y)

    def loss(self, net: Net, x: Tensor, near: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        (clean, z), there = crossed(net, x, y, self.smoothing), net(near)
        return clean + self.beta * divergence(there, z), there


@dataclass(frozen=True)
class LSE(Objective):
    """|p - y|^2 + beta |p - p'|^2, x' where the latter is large (SCORE: Pang et al. 2022,
    arXiv:2202.10103).

    y is smoothed. Differs from the authors' code: label smoothing spreads over all classes, also
    the true one.
    """

    asks = 2
    beta: float = 4.0  # of the distance between the probabilities
    steps: int = 10  # of the inner attack
    step_size: float = 0.25  # fraction of eps
    smoothing: float = 0.1  # share of a label spread over all classes

    @property
    def passes(self) -> int:
        return super().passes + 1  # the inner attack asks for p too

    def near(self, craft: Craft, x: Tensor, y: Tensor) -> Tensor:
        return craft(_Apart(steps=self.steps, step_size=self.step_size, measure="distance"), x, y)

    def loss(self, net: Net, x: Tensor, near: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        z, there = net(x), net(near)
        k = z.shape[1]
        label = F.one_hot(y, k) * (1 - self.smoothing) + self.smoothing / k
        clean = (z.softmax(1) - label).square().sum(1)
        return clean + self.beta * distance(there, z), there


@dataclass(frozen=True)
class HAT(Objective):
    """TRADES + gamma CE(f(x''), h), x'' beyond x' (helper examples: Rade and Moosavi-Dezfooli, ICLR
    2022).

    x'' = x + reach (x' - x). The label h is what the network as it was given to hardening says at
    x': so give one that is trained, as the paper does.
    """

    asks = 3
    beta: float = 2.5  # of the divergence
    gamma: float = 0.5  # of the helper examples
    reach: float = 2.0  # of the helper examples, multiples of x' - x
    steps: int = 10  # of the inner attack
    step_size: float = 0.25  # fraction of eps
    smoothing: float = 0.0  # share of a label spread over all classes

    @property
    def passes(self) -> int:
        return super().passes + 2  # the inner attack asks for p too, and the loss for h

    def near(self, craft: Craft, x: Tensor, y: Tensor) -> Tensor:
        return craft(_Apart(steps=self.steps, step_size=self.step_size), x, y)

    def loss(self, net: Net, x: Tensor, near: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        (clean, z), there = crossed(net, x, y, self.smoothing), net(near)
        helped, _ = crossed(net, x + self.reach * (near - x), net.given(near).argmax(1), 0)
        return clean + self.beta * divergence(there, z) + self.gamma * helped, there


@dataclass(frozen=True)
class Mart(Objective):
    """BCE(p', y) + beta KL(p, p') (1 - p_y): misclassified rows weigh more (Wang et al., ICLR
    2020).

    BCE(p', y) = -log p'_y - log(1 - the largest wrong p').
    """

    asks = 2
    beta: float = 5.0  # of the divergence (lambda in the paper)
    steps: int = 10  # of the inner attack
    step_size: float = 0.25  # fraction of eps

    def loss(self, net: Net, x: Tensor, near: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        z, there = net(x), net(near)
        own = y[:, None]
        rival = there.softmax(1).scatter(1, own, 0).amax(1)
        bce = F.cross_entropy(there, y, reduction="none") - torch.log((1 - rival).clamp_min(1e-4))
        unsure = 1 - z.softmax(1).gather(1, own)[:, 0]
        return bce + self.beta * divergence(there, z) * unsure, there


@dataclass(frozen=True)
class Ensemble(Objective):
    """CE(f(x), y) and CE(f(x'), y), half of the x' against another network (Tramer et al. 2018,
    arXiv:1705.07204).

    The other network is this one as it was given to hardening: so give one that is trained. What is
    not there: an ensemble of several.
    """

    asks = 2
    steps: int = 1  # of the inner attack
    step_size: float = 1.0  # fraction of eps
    smoothing: float = 0.0  # share of a label spread over all classes

    def near(self, craft: Craft, x: Tensor, y: Tensor) -> Tensor:
        attack = Ascent(steps=self.steps, step_size=self.step_size, start_at="zero", loss="ce")
        near, odd = x.clone(), craft.start % 2
        for part, target in (
            (slice(odd, None, 2), craft.given),
            (slice(1 - odd, None, 2), craft.live),
        ):
            near[part] = craft(attack, x[part], y[part], on=target)
        return near

    def loss(self, net: Net, x: Tensor, near: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        (clean, _), (crafted, there) = (crossed(net, at, y, self.smoothing) for at in (x, near))
        return (clean + crafted) / 2, there


OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "standard": Standard,
    "noise": Noise,
    "fgsm": FGSM,
    "fast": Fast,
    "fgsm_rs": Fast,
    "nfgsm": NFGSM,
    "free": Free,
    "pgd": PGD,
    "alp": ALP,
    "trades": Trades,
    "lse": LSE,
    "hat": HAT,
    "mart": Mart,
    "avg": Avg,
    "max": Max,
    "msd": MSD,
    "eat": EAT,
    "ensemble": Ensemble,
    "advgan": AdvGAN,
    "smoothadv": SmoothAdv,
}


def parse(text: str) -> Objective:
    """The objective that a spec such as `trades(beta=6)` spells."""
    return spec.build(text, OBJECTIVES, "objective")


@dataclass(frozen=True)
class _Noisy(Attack):
    """One step from noise; the whole reach is the threat's eps."""

    needs = Access.GRADIENTS
    steps: int = 1
    share: float = 2 / 3  # of eps, the noise
    step_size: float = 1 / 3  # of eps

    def start(self, p: Problem) -> Tensor:
        return p.project(self.share * p.eps * p.norm.sample(p.noise("ball"), p.x))

    def step(self, p: Problem, s: Tensor, t: int) -> Tensor:
        _, g = p.gradient(s, "ce")
        return p.project(s + p.stride(g, self.step_size))


class _Pair(NamedTuple):
    d: Tensor
    clean: Tensor  # [n, k] scores at x


@dataclass(frozen=True)
class _Apart(Attack):
    """Ascent of KL(p, p') or |p - p'|^2, from near x, where both are flat."""

    needs = Access.GRADIENTS
    steps: int = 10
    step_size: float = 0.25
    measure: str = "divergence"

    def start(self, p: Problem) -> _Pair:
        d = p.project(0.001 * p.width * p.noise("start").normal(p.x.shape[1:], p.x.dtype))
        return _Pair(d, p.scores(torch.zeros_like(d)))

    def step(self, p: Problem, s: _Pair, t: int) -> _Pair:
        measure = {"divergence": divergence, "distance": distance}[self.measure]
        _, g = p.gradient(s.d, lambda z, y, aim, clean: measure(z, clean), s.clean)
        return _Pair(p.project(s.d + p.stride(g, self.step_size)), s.clean)

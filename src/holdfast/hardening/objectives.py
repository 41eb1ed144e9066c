"""Objectives: how to train, by name. Those for several threats, and those with noise, have
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
from holdfast.attacks.universal.advgan import changed, perturber, priced
from holdfast.hardening.certified import CROWN_IBP, IBP, MTL_IBP
from holdfast.hardening.multiple_threats import EAT, MSD, Avg, Max
from holdfast.hardening.noise import Noise, SmoothAdv
from holdfast.spec import option
from holdfast.targets import TorchTarget
from holdfast.targets.target import Access
from holdfast.training.inner_attack import AttackNetwork, InnerAttack, evaluating
from holdfast.training.objective import (
    PGD,
    Net,
    Objective,
    Searching,
    Standard,
    crossed,
    distance,
    divergence,
)


@dataclass(frozen=True)
class FGSM(Objective):
    """CE(f(x'), y) one step from x (Goodfellow et al. 2015, arXiv:1412.6572)."""

    step_size: float = option(1.0, "fraction of eps", at_least=0)
    smoothing: float = option(0.0, "share of a label spread over all classes", at_least=0)

    def points(self, inner: InnerAttack, x: Tensor, y: Tensor) -> Tensor:
        return inner(Ascent(steps=1, step_size=self.step_size, start_at="zero", loss="ce"), x, y)


@dataclass(frozen=True)
class Fast(Objective):
    """CE(f(x'), y) one long step from a random point of the ball (FGSM-RS: Wong et al. 2020,
    arXiv:2001.03994)."""

    step_size: float = option(1.25, "fraction of eps", at_least=0)
    smoothing: float = option(0.0, "share of a label spread over all classes", at_least=0)


@dataclass(frozen=True)
class NFGSM(Objective):
    """CE(f(x'), y) one step from strong noise, not drawn back into the ball (de Jorge et al. 2022,
    arXiv:2202.01181).

    Differs from the paper: in other norms than Linf the noise is uniform in the ball of `noise`
    eps.
    """

    noise: float = option(2.0, "size of the noise, multiples of eps", at_least=0)
    step_size: float = option(1.0, "fraction of eps", at_least=0)
    smoothing: float = option(0.0, "share of a label spread over all classes", at_least=0)

    def points(self, inner: InnerAttack, x: Tensor, y: Tensor) -> Tensor:
        widen = self.noise + self.step_size
        wide = inner.threat.at(float(inner.threat.eps) * widen)
        return inner(_Noisy(share=self.noise / widen, step_size=self.step_size / widen), x, y, wide)


@dataclass(frozen=True)
class Free(Objective):
    """CE(f(x'), y), each batch several times: one backward changes the weights and x' (Shafahi
    2019, arXiv:1904.12843).

    A recipe's epochs count batches, so it needs so many times fewer of them. Differs from the
    paper: x' of a new batch starts at random, not from where the last batch's ended.
    """

    steps = 0  # its attack is its training
    batch_replays: int = option(8, "steps of the optimiser a batch (m in the paper)", at_least=1)
    step_size: float = option(1.0, "fraction of eps, from one replay to the next", at_least=0)
    smoothing: float = option(0.0, "share of a label spread over all classes", at_least=0)

    @property
    def passes(self) -> int:
        return 2 * self.batch_replays

    @property
    def replays(self) -> int:
        return self.batch_replays

    def points(self, inner: InnerAttack, x: Tensor, y: Tensor) -> Tensor:
        return inner.around(x, "start")


@dataclass(frozen=True)
class ALP(Searching):
    """CE(f(x'), y) and CE(f(x), y), half each, + weight |f(x) - f(x')|^2 / k (Kannan et al. 2018,
    arXiv:1803.06373)."""

    asks = 2
    weight: float = option(0.5, "of the distance between the logits", at_least=0)

    def loss(self, net: Net, x: Tensor, x_adv: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        (clean, z), (crafted, there) = (crossed(net, at, y, self.smoothing) for at in (x, x_adv))
        return (clean + crafted) / 2 + self.weight * (there - z).square().mean(1), there


@dataclass(frozen=True)
class Trades(Searching):
    """CE(f(x), y) + beta KL(p, p'), x' where that divergence is large (Zhang et al. 2019,
    arXiv:1901.08573)."""

    asks = 2
    further = 1  # the inner attack asks for p too
    beta: float = option(6.0, "of the divergence: more robust, less accurate", at_least=0)

    def points(self, inner: InnerAttack, x: Tensor, y: Tensor) -> Tensor:
        return inner(_Apart(steps=self.steps, step_size=self.step_size), x, y)

    def loss(self, net: Net, x: Tensor, x_adv: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        (clean, z), there = crossed(net, x, y, self.smoothing), net(x_adv)
        return clean + self.beta * divergence(there, z), there


@dataclass(frozen=True)
class LSE(Searching, smoothing=0.1):
    """|p - y|^2 + beta |p - p'|^2, x' where the latter is large (SCORE: Pang et al. 2022,
    arXiv:2202.10103).

    y is smoothed. Differs from the authors' code: label smoothing spreads over all classes, also
    the true one.
    """

    asks = 2
    further = 1  # the inner attack asks for p too
    beta: float = option(4.0, "of the distance between the probabilities", at_least=0)

    def points(self, inner: InnerAttack, x: Tensor, y: Tensor) -> Tensor:
        return inner(_Apart(steps=self.steps, step_size=self.step_size, measure="distance"), x, y)

    def loss(self, net: Net, x: Tensor, x_adv: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        z, there = net(x), net(x_adv)
        k = z.shape[1]
        label = F.one_hot(y, k) * (1 - self.smoothing) + self.smoothing / k
        clean = (z.softmax(1) - label).square().sum(1)
        return clean + self.beta * distance(there, z), there


@dataclass(frozen=True)
class HAT(Trades, beta=2.5):
    """TRADES + gamma CE(f(x''), h), x'' beyond x' (helper examples: Rade and Moosavi-Dezfooli, ICLR
    2022).

    x'' = x + reach (x' - x). The label h is the class that the network gave to x' before the
    training: so give a trained network, as the paper does.
    """

    asks = 3
    further = 2  # the inner attack asks for p too, and the loss for h
    gamma: float = option(0.5, "of the helper examples", at_least=0)
    reach: float = option(2.0, "of the helper examples, multiples of x' - x", at_least=0)

    def loss(self, net: Net, x: Tensor, x_adv: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        paid, there = super().loss(net, x, x_adv, y)
        helped, _ = crossed(net, x + self.reach * (x_adv - x), net.given(x_adv).argmax(1), 0)
        return paid + self.gamma * helped, there


@dataclass(frozen=True)
class Mart(Objective):
    """BCE(p', y) + beta KL(p, p') (1 - p_y): misclassified rows weigh more (Wang et al., ICLR
    2020).

    BCE(p', y) = -log p'_y - log(1 - the largest wrong p').
    """

    asks = 2
    beta: float = option(5.0, "of the divergence (lambda in the paper)", at_least=0)
    steps: int = option(10, "of the inner attack", at_least=1)
    step_size: float = option(0.25, "fraction of eps", at_least=0)

    def loss(self, net: Net, x: Tensor, x_adv: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        z, there = net(x), net(x_adv)
        own = y[:, None]
        other = there.softmax(1).scatter(1, own, 0).amax(1)
        bce = F.cross_entropy(there, y, reduction="none") - torch.log((1 - other).clamp_min(1e-4))
        unsure = 1 - z.softmax(1).gather(1, own)[:, 0]
        return bce + self.beta * divergence(there, z) * unsure, there


@dataclass(frozen=True)
class Ensemble(Searching, steps=1, step_size=1.0):
    """CE(f(x), y) and CE(f(x'), y), half of the x' against another network (Tramer et al. 2018,
    arXiv:1705.07204).

    The other network is this one as it was given to hardening: so give one that is trained. What is
    not there: an ensemble of several.
    """

    asks = 2

    def points(self, inner: InnerAttack, x: Tensor, y: Tensor) -> Tensor:
        attack = Ascent(steps=self.steps, step_size=self.step_size, start_at="zero", loss="ce")
        x_adv, odd = x.clone(), inner.start % 2
        for part, target in (
            (slice(odd, None, 2), inner.given),
            (slice(1 - odd, None, 2), inner.live),
        ):
            x_adv[part] = inner(attack, x[part], y[part], on=target)
        return x_adv

    def loss(self, net: Net, x: Tensor, x_adv: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        (clean, _), (crafted, there) = (crossed(net, at, y, self.smoothing) for at in (x, x_adv))
        return (clean + crafted) / 2, there


@dataclass(frozen=True)
class AdvGAN(Objective):
    """CE(f(x), y) and CE(f(x'), y), half each, x' made by a network that is trained in turns with
    it (AdvGAN: arXiv:1801.02610).

    Trained in turns, as the generative adversarial trainer is (Lee et al. 2017, arXiv:1705.03387):
    one step of Adam towards a larger margin of the wrong classes, then one of the network. Differs
    from AdvGAN: no second network asks for realism. It costs as much as one step of ascent, and
    gives one point a row, so other attacks may still succeed.
    """

    asks = 2
    raw = True
    width: int = option(16, "channels of the perturbing network's first layer", at_least=1)
    rate: float = option(1e-3, "of its Adam", at_least=0)
    smoothing: float = option(0.0, "share of a label spread over all classes", at_least=0)

    def attack_network(self, target: TorchTarget) -> AttackNetwork:
        assert target.shape is not None
        net = perturber(
            target,
            target.batcher.place(torch.zeros(1, *target.shape)),
            self.width,
        )
        return AttackNetwork(net, torch.optim.Adam(net.parameters(), self.rate))

    def teach(self, inner: InnerAttack, x: Tensor, y: Tensor) -> None:
        assert inner.attack_network is not None
        inner.attack_network.optimiser.zero_grad()
        with evaluating(inner.live.model):
            priced(inner.attack_network.net, inner.problem(x, y), inner.threat)[1].backward()
        inner.attack_network.optimiser.step()

    def points(self, inner: InnerAttack, x: Tensor, y: Tensor) -> Tensor:
        assert inner.attack_network is not None
        with torch.no_grad():
            return changed(inner.attack_network.net, inner.live, inner.threat, x)

    def loss(self, net: Net, x: Tensor, x_adv: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        (clean, _), (crafted, there) = (crossed(net, at, y, self.smoothing) for at in (x, x_adv))
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
    "ibp": IBP,
    "mtl_ibp": MTL_IBP,
    "crown_ibp": CROWN_IBP,
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
    """Ascent of KL(p, p') or |p - p'|^2. It starts close to x, since both have no slope at x."""

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

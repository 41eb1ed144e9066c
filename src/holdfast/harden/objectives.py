"""Objectives: where a network is trained, and what it pays there.

Each has two parts: `near` crafts the points x' to train at, with the attack rules of `holdfast.attacks` against the
network as it is; `loss` is what is then minimised. Below, p = softmax f(x) and p' = softmax f(x').
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from holdfast import spec
from holdfast.attacks.attack import Attack
from holdfast.attacks.pgd import PGD as Ascent
from holdfast.attacks.problem import Problem
from holdfast.errors import SpecError
from holdfast.targets.target import Access

Net = Callable[[Tensor], Tensor]


class Craft(Protocol):
    """Run an attack's rule on rows: x [n, *shape], y [n] to points near x, at `widen` times the threat's eps."""

    def __call__(self, attack: Attack, x: Tensor, y: Tensor, widen: float = 1.0) -> Tensor: ...


@dataclass(frozen=True)
class Objective(ABC):
    """One way to train. The fields are its hyperparameters; they only store."""

    asks: ClassVar[int] = 1  # forward and backward passes of the loss

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            whole = name == "steps"
            if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
                kind = "a whole number" if whole else "a number"
                raise SpecError(f"{type(self).__name__.lower()} has {name}={value!r}, but it is {kind}.")
            if value < whole:
                raise SpecError(f"{type(self).__name__.lower()} has {name}={value!r}, which is too small.")

    @property
    def inner(self) -> int:
        """Gradient steps of the inner attack."""
        return getattr(self, "steps", 1)

    @property
    def passes(self) -> int:
        """Forward and backward passes that a row of one training step costs."""
        return 2 * self.inner + 2 * self.asks

    @abstractmethod
    def near(self, craft: Craft, x: Tensor, y: Tensor) -> Tensor:
        """The points x' [n, *shape] to train at."""

    @abstractmethod
    def loss(self, net: Net, x: Tensor, near: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The mean loss, and the scores [n, k] at x'."""

    def __repr__(self) -> str:
        return spec.write(self)

    def __init_subclass__(cls) -> None:
        cls.__repr__ = Objective.__repr__


@dataclass(frozen=True)
class Standard(Objective):
    """CE(f(x), y): the undefended baseline."""

    smoothing: float = 0.0  # share of a label spread over all classes

    @property
    def inner(self) -> int:
        return 0

    def near(self, craft: Craft, x: Tensor, y: Tensor) -> Tensor:
        return x

    def loss(self, net: Net, x: Tensor, near: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return _ce(net, near, y, self.smoothing)


@dataclass(frozen=True)
class Fast(Objective):
    """CE(f(x'), y) one long step from a random point of the ball (FGSM-RS: Wong et al. 2020, arXiv:2001.03994)."""

    step_size: float = 1.25  # fraction of eps
    smoothing: float = 0.0  # share of a label spread over all classes

    def near(self, craft: Craft, x: Tensor, y: Tensor) -> Tensor:
        return craft(Ascent(steps=1, step_size=self.step_size, loss="ce"), x, y)

    def loss(self, net: Net, x: Tensor, near: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return _ce(net, near, y, self.smoothing)


@dataclass(frozen=True)
class NFGSM(Objective):
    """CE(f(x'), y) one step from strong noise, not drawn back into the ball (de Jorge et al. 2022, arXiv:2202.01181).

    Differs from the paper: in other norms than Linf the noise is uniform in the ball of `noise` eps.
    """

    noise: float = 2.0  # size of the noise, multiples of eps
    step_size: float = 1.0  # fraction of eps
    smoothing: float = 0.0  # share of a label spread over all classes

    def near(self, craft: Craft, x: Tensor, y: Tensor) -> Tensor:
        widen = self.noise + self.step_size
        return craft(_Noisy(share=self.noise / widen, step_size=self.step_size / widen), x, y, widen)

    def loss(self, net: Net, x: Tensor, near: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return _ce(net, near, y, self.smoothing)


@dataclass(frozen=True)
class PGD(Objective):
    """CE(f(x'), y) at the end of projected gradient ascent (Madry et al. 2018, arXiv:1706.06083)."""

    steps: int = 10  # of the inner attack
    step_size: float = 0.25  # fraction of eps
    smoothing: float = 0.0  # share of a label spread over all classes

    def near(self, craft: Craft, x: Tensor, y: Tensor) -> Tensor:
        return craft(Ascent(steps=self.steps, step_size=self.step_size, loss="ce"), x, y)

    def loss(self, net: Net, x: Tensor, near: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return _ce(net, near, y, self.smoothing)


@dataclass(frozen=True)
class ALP(Objective):
    """CE(f(x'), y) and CE(f(x), y), half each, + weight |f(x) - f(x')|^2 / k (Kannan et al. 2018, arXiv:1803.06373)."""

    asks = 2
    weight: float = 0.5  # of the distance between the logits
    steps: int = 10  # of the inner attack
    step_size: float = 0.25  # fraction of eps
    smoothing: float = 0.0  # share of a label spread over all classes

    def near(self, craft: Craft, x: Tensor, y: Tensor) -> Tensor:
        return craft(Ascent(steps=self.steps, step_size=self.step_size, loss="ce"), x, y)

    def loss(self, net: Net, x: Tensor, near: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        (clean, z), (crafted, there) = (_ce(net, at, y, self.smoothing) for at in (x, near))
        return (clean + crafted) / 2 + self.weight * F.mse_loss(there, z), there


@dataclass(frozen=True)
class Trades(Objective):
    """CE(f(x), y) + beta KL(p, p'), x' where that divergence is large (Zhang et al. 2019, arXiv:1901.08573)."""

    asks = 2
    beta: float = 6.0  # of the divergence: more robust, less accurate
    steps: int = 10  # of the inner attack
    step_size: float = 0.25  # fraction of eps
    smoothing: float = 0.0  # share of a label spread over all classes

    @property
    def passes(self) -> int:
        return super().passes + 1  # the inner attack asks for p too

    def near(self, craft: Craft, x: Tensor, y: Tensor) -> Tensor:
        return craft(_Diverge(steps=self.steps, step_size=self.step_size), x, y)

    def loss(self, net: Net, x: Tensor, near: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        (clean, z), there = _ce(net, x, y, self.smoothing), net(near)
        return clean + self.beta * _divergence(there, z).mean(), there


@dataclass(frozen=True)
class Mart(Objective):
    """BCE(p', y) + beta KL(p, p') (1 - p_y): misclassified rows weigh more (Wang et al., ICLR 2020).

    BCE(p', y) = -log p'_y - log(1 - the largest wrong p').
    """

    asks = 2
    beta: float = 5.0  # of the divergence (lambda in the paper)
    steps: int = 10  # of the inner attack
    step_size: float = 0.25  # fraction of eps

    def near(self, craft: Craft, x: Tensor, y: Tensor) -> Tensor:
        return craft(Ascent(steps=self.steps, step_size=self.step_size, loss="ce"), x, y)

    def loss(self, net: Net, x: Tensor, near: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        z, there = net(x), net(near)
        own = y[:, None]
        rival = there.softmax(1).scatter(1, own, 0).amax(1)
        bce = F.cross_entropy(there, y, reduction="none") - torch.log((1 - rival).clamp_min(1e-4))
        unsure = 1 - z.softmax(1).gather(1, own)[:, 0]
        return (bce + self.beta * _divergence(there, z) * unsure).mean(), there


OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "standard": Standard,
    "fast": Fast,
    "fgsm_rs": Fast,
    "nfgsm": NFGSM,
    "pgd": PGD,
    "alp": ALP,
    "trades": Trades,
    "mart": Mart,
}


def parse(text: str) -> Objective:
    """The objective that a spec such as `trades(beta=6)` spells."""
    return spec.build(text, OBJECTIVES, "objective")


def stronger(objective: Objective) -> Objective:
    """What to go on with where the inner attack no longer finds what there is: plain PGD of twice the steps."""
    steps = max(2, 2 * objective.inner)
    return PGD(steps=steps, step_size=max(0.25, 1 / steps), smoothing=getattr(objective, "smoothing", 0.0))


def _ce(net: Net, x: Tensor, y: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    z = net(x)
    return F.cross_entropy(z, y, label_smoothing=smoothing), z


def _divergence(there: Tensor, z: Tensor) -> Tensor:
    """KL(p, p') of scores z at x and `there` at x': [n]."""
    return F.kl_div(there.log_softmax(1), z.log_softmax(1), reduction="none", log_target=True).sum(1)


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


class _Apart(NamedTuple):
    d: Tensor
    clean: Tensor  # [n, k] scores at x


@dataclass(frozen=True)
class _Diverge(Attack):
    """Ascent of KL(p, p'), from near x, where it is flat."""

    needs = Access.GRADIENTS
    steps: int = 10
    step_size: float = 0.25

    def start(self, p: Problem) -> _Apart:
        d = p.project(0.001 * p.width * p.noise("start").normal(p.x.shape[1:], p.x.dtype))
        return _Apart(d, p.scores(torch.zeros_like(d)))

    def step(self, p: Problem, s: _Apart, t: int) -> _Apart:
        def apart(z: Tensor, y: Tensor, aim: Any, clean: Tensor) -> Tensor:
            return _divergence(z, clean)

        _, g = p.gradient(s.d, apart, s.clean)
        return _Apart(p.project(s.d + p.stride(g, self.step_size)), s.clean)

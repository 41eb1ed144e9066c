"""Regularisers: penalties in addition to the objective, for scores that change less with the input.

Below, l is the cross-entropy of a row and g its gradient on the input. The network is in eval mode
meanwhile, so that its batch norms take no statistics of points that are no data.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from holdfast import spec
from holdfast.attacks.attack import Attack
from holdfast.attacks.problem import Problem
from holdfast.norms import wide
from holdfast.spec import option
from holdfast.targets.target import Access
from holdfast.training.inner_attack import InnerAttack
from holdfast.training.objective import Net, Regularizer


@dataclass(frozen=True)
class GradAlign(Regularizer):
    """weight (1 - cos(g at x, g at a random point of the ball)) (Andriushchenko et al. 2020,
    arXiv:2007.02617).

    Against catastrophic overfitting of one-step training. As in the authors' code, g at x is held
    fixed.
    """

    costs = 6
    raw = True
    weight: float = option(0.2, "lambda: 0.2 at 8/255, 0.063 at 4/255", at_least=0)

    def penalty(self, net: Net, inner: InnerAttack, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        here, there = slopes(net, x, y).detach(), slopes(net, inner.around(x, "gradalign"), y)
        return self.weight * (1 - F.cosine_similarity(here.flatten(1), there.flatten(1))).mean()


@dataclass(frozen=True)
class ELLE(Regularizer):
    """weight (l(c) - (1 - a) l(u) - a l(v))^2, c = (1 - a) u + a v, of random u and v in the ball.

    Local linearity without a second derivative (Abad Rocamora et al., ICLR 2024). Its weight is
    fixed: no ELLE-A.
    """

    costs = 6
    weight: float = option(1000.0, "lambda: 1,000 to 8/255, 5,000 from 10/255", at_least=0)

    def penalty(self, net: Net, inner: InnerAttack, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        u, v = inner.around(x, "first"), inner.around(x, "second")
        a = inner.keys(x, "between").uniform((), x.dtype)
        at = [u, v, u + wide(a, x) * (v - u)]
        first, second, between = (F.cross_entropy(net(p), y, reduction="none") for p in at)
        return self.weight * (between - (1 - a) * first - a * second).square().mean()


@dataclass(frozen=True)
class Gradient(Regularizer):
    """weight |g|^2 (input-gradient penalty: Ross and Doshi-Velez 2018, arXiv:1711.09404)."""

    costs = 4
    raw = True
    weight: float = option(1.0, "grows with the square of the inputs' unit", at_least=0)

    def penalty(self, net: Net, inner: InnerAttack, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        return self.weight * slopes(net, x, y).flatten(1).square().sum(1).mean()


@dataclass(frozen=True)
class Jacobian(Regularizer):
    """weight |J|_F^2 / 2 of the scores, by random projections (Hoffman et al. 2019,
    arXiv:1908.02729)."""

    raw = True
    weight: float = option(0.01, "of the penalty", at_least=0)
    projections: int = option(
        1, "random directions of the scores; without a bias however few", at_least=1
    )

    @property
    def passes(self) -> int:
        return 1 + 3 * self.projections

    def penalty(self, net: Net, inner: InnerAttack, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        leaf = x.detach().requires_grad_()
        scores, total = net(leaf), x.new_zeros(len(x))
        k = scores.shape[1]
        for i in range(self.projections):
            v = F.normalize(inner.keys(x, f"projection {i}").normal((k,), x.dtype))
            pulled = torch.autograd.grad((scores * v).sum(), leaf, create_graph=True)[0]
            total = total + k / self.projections * pulled.flatten(1).square().sum(1)
        return self.weight / 2 * total.mean()


@dataclass(frozen=True)
class CURE(Regularizer):
    """weight |g at x + h z - g|^2, z steepest ascent (Moosavi-Dezfooli et al. 2019,
    arXiv:1811.09716).

    Differs from the paper: z is one of the threat's norm, and h a multiple of eps.
    """

    costs = 8
    raw = True
    weight: float = option(4.0, "lambda", at_least=0)
    h: float = option(1.5, "how far the gradients are compared, multiples of eps", at_least=0)

    def penalty(self, net: Net, inner: InnerAttack, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        here = slopes(net, x, y)
        far = x + self.h * float(inner.threat.eps) * inner.threat.norm.steepest(here.detach())
        return self.weight * (slopes(net, far, y) - here).flatten(1).square().sum(1).mean()


@dataclass(frozen=True)
class LLR(Regularizer):
    """weight |l(x + d) - l - <d, g>| + slope |<d, g>|, d where the former is largest.

    Local linearity (Qin et al. 2019, arXiv:1907.02610). Meant to go with the standard objective.
    """

    raw = True
    weight: float = option(4.0, "lambda", at_least=0)
    slope: float = option(3.0, "mu", at_least=0)
    steps: int = option(5, "of the search for d", at_least=1)
    step_size: float = option(0.5, "fraction of eps", at_least=0)

    @property
    def passes(self) -> int:
        return 2 * self.steps + 8

    def penalty(self, net: Net, inner: InnerAttack, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        d = (inner(_Bent(self.steps, self.step_size), x, y) - x).detach()
        leaf = x.detach().requires_grad_()
        here = F.cross_entropy(net(leaf), y, reduction="none")
        g = torch.autograd.grad(here.sum(), leaf, create_graph=True)[0]
        line = (d * g).flatten(1).sum(1)
        bend = F.cross_entropy(net(x + d), y, reduction="none") - here - line
        return (self.weight * bend.abs() + self.slope * line.abs()).mean()


@dataclass(frozen=True)
class Squeeze(Regularizer):
    """weight |z|^2 / k of the scores trained at (logit squeezing: Kannan et al. 2018,
    arXiv:1803.06373)."""

    weight: float = option(0.05, "of the penalty", at_least=0)

    def penalty(self, net: Net, inner: InnerAttack, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        return self.weight * z.square().mean()


@dataclass(frozen=True)
class Spectral(Regularizer):
    """weight s^2 / 2 summed over layers, s the largest singular value (Yoshida and Miyato 2017,
    arXiv:1705.10941).

    The product of these bounds the network's Lipschitz constant, of a convolution up to the size of
    its kernel.
    """

    weight: float = option(0.01, "of the penalty", at_least=0)

    def penalty(self, net: Net, inner: InnerAttack, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        assert isinstance(inner.live.model, torch.nn.Module)
        layers = [w for w in inner.live.model.parameters() if w.requires_grad and w.ndim > 1]
        squares = [torch.linalg.matrix_norm(w.flatten(1), 2).square() for w in layers]
        return self.weight / 2 * torch.stack(squares).sum()


REGULARIZERS: dict[str, Callable[..., Regularizer]] = {
    "gradalign": GradAlign,
    "elle": ELLE,
    "gradient": Gradient,
    "jacobian": Jacobian,
    "cure": CURE,
    "llr": LLR,
    "squeeze": Squeeze,
    "spectral": Spectral,
}


def parse(text: str) -> list[Regularizer]:
    """The regularisers that a list such as `gradalign(weight=0.2), spectral` spells."""
    return [spec.build(part, REGULARIZERS, "regularizer") for part in spec.parts(text)]


def slopes(net: Net | Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    """The gradient of each row's cross-entropy on its input, [n, *shape], itself differentiable."""
    leaf = x.detach().requires_grad_()
    return torch.autograd.grad(
        F.cross_entropy(net(leaf), y, reduction="sum"), leaf, create_graph=True
    )[0]


class _Bow(NamedTuple):
    d: Tensor
    here: Tensor  # [n] the loss at x
    g: Tensor  # its gradient there


@dataclass(frozen=True)
class _Bent(Attack):
    """Ascent of |l(x + d) - l(x) - <d, g>|."""

    needs = Access.GRADIENTS
    steps: int
    step_size: float

    def start(self, p: Problem) -> _Bow:
        return _Bow(p.random_start(), *p.gradient(torch.zeros_like(p.x), _crossed))

    def step(self, p: Problem, s: _Bow, t: int) -> _Bow:
        value, g = p.gradient(s.d, _crossed)
        bend = value - s.here - (s.d * s.g).flatten(1).sum(1)
        return s._replace(
            d=p.project(s.d + p.stride(wide(bend.sign(), g) * (g - s.g), self.step_size))
        )


def _crossed(z: Tensor, y: Tensor, aim: Tensor | None) -> Tensor:
    return F.cross_entropy(z, y, reduction="none")

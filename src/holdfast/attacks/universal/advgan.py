"""A network that makes adversarial examples in one pass (AdvGAN, Xiao et al. 2018,
arXiv:1801.02610).

No `Attack`: its rows share what was learnt from other rows. Those that it is judged on are never
the ones that it learnt from; given the network, each input is attacked alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from holdfast.attacks.problem import Problem
from holdfast.attacks.shared.common_perturbation import Fooled, InputSet, check, slope
from holdfast.errors import SpecError
from holdfast.norms import wide
from holdfast.targets.target import Target, sealed
from holdfast.threats.images import channels_first, from_channels_first
from holdfast.threats.threat import Threat


@dataclass(frozen=True)
class AdversarialGenerator(Fooled):
    """A perturbing network, and which inputs it fools the model on, with one pass of its own for
    each."""

    net: nn.Module
    target: Target
    threat: Threat

    def __call__(self, x: Tensor) -> Tensor:
        """Adversarial examples for inputs x, [n, *shape] both: in the box, and in the ball around
        x."""
        x = self.target.batcher.place(x)
        with torch.no_grad():
            net, batcher = self.net.eval(), self.target.batcher
            parts = batcher.parts(lambda at: changed(net, self.target, self.threat, x[at]), len(x))
            return torch.cat(list(parts))


def advgan(
    target: Target,
    x: Tensor,
    held_out: Tensor,
    threat: Threat,
    *,
    steps: int = 1000,
    rows: int = 64,
    width: int = 16,
    rate: float = 1e-3,
    realism: float = 0.01,
    seed: int = 0,
) -> AdversarialGenerator:
    """Train a network to change inputs, within the threat's ball, so that they fool the model.

    An input is fooled as in `universal`. The network pays the model's margin, and what a second
    network, which learns to tell changed inputs from real ones, holds against it.

    Differs from the paper: the ball is kept by projection, through which gradients pass as if it
    were not there, in place of a hinge on the length; the networks are smaller.

    ```python
    made = advgan(holdfast.wrap(model), x[:5000], x[5000:], Threat.linf(0.3))
    made.rate  # of x[5000:]
    made(x_new)
    ```

    Args:
        x: inputs [n, *shape] to learn from.
        held_out: inputs [m, *shape] to judge it on.
        threat: norm, one finite eps, and the goal.
        steps: of Adam: one forward and one backward of the model on each of `rows` inputs.
        rows: inputs of a step, drawn anew each time.
        width: channels of the network's first layer.
        rate: Adam's learning rate at first; it falls to 0.
        realism: weight of the second network's word; 0: there is none.
        seed: of the initial weights and of the draws.

    Raises:
        AccessError: the target gives no gradients.
        SpecError: eps is not one finite number, or a count is less than 1.
    """
    check(steps=steps, rows=rows, width=width)
    if isinstance(threat.eps, Tensor) or not math.isfinite(threat.eps) or threat.mask is not None:
        raise SpecError(f"advgan needs one finite eps and no mask, but the threat is {threat}.")
    with sealed(seed):
        inputs, others = InputSet(target, x, threat), InputSet(target, held_out, threat)
        net = perturber(target, inputs.x, width)
        judge = _judge(_inward(inputs.x[:1], target).shape[1:], width).to(inputs.x)
        adam, other = (torch.optim.Adam(part.parameters(), rate) for part in (net, judge))
        for t in range(steps):
            for group in adam.param_groups:
                group["lr"] = rate * (1 - t / steps)
            p = inputs.problem(inputs.drawn(rows, seed, "advgan", t))
            _learn(net, judge, (adam, other), p, threat, realism)
        none = torch.zeros(0, dtype=torch.bool)
        made = AdversarialGenerator(none, none, net.eval().requires_grad_(False), target, threat)
        fooled, held = (c.fooled(made(c.x)) for c in (inputs, others))
        return replace(made, fooled=fooled, held_out=held)


def _learn(
    net: nn.Module,
    judge: nn.Module,
    optimizers: tuple[torch.optim.Optimizer, torch.optim.Optimizer],
    p: Problem,
    threat: Threat,
    realism: float,
) -> None:
    """One step of both networks on the inputs of a problem."""
    adam, other = optimizers
    with torch.enable_grad():
        perturbed, paid = priced(net, p, threat)
        if realism:
            paid = paid + realism * (judge(_inward(perturbed, p.target)) - 1).square().mean()
        adam.zero_grad()
        paid.backward()
        adam.step()
        if realism:
            real, made = judge(_inward(torch.cat([p.x, perturbed.detach()]), p.target)).chunk(2)
            other.zero_grad()
            ((real - 1).square() + made.square()).mean().backward()
            other.step()


def changed(net: nn.Module, target: Target, threat: Threat, x: Tensor) -> Tensor:
    """Inputs as the network changes them, in the ball and the box; gradients pass through the
    projection unchanged."""
    width = target.bounds.high - target.bounds.low
    u = net(_inward(x, target))
    d = width * (
        from_channels_first(u, tuple(x.shape[1:]), target.inputs.layout)
        if x.ndim in (3, 4)
        else u.view_as(x)
    )
    eps = wide(x.new_full((len(x),), float(threat.eps)), x)
    with torch.no_grad():
        legal = threat.norm.project(d, eps, target.bounds.low - x, target.bounds.high - x)
        legal = (x + legal).clamp(target.bounds.low, target.bounds.high)
    return legal + (d - d.detach())


def priced(net: nn.Module, p: Problem, threat: Threat) -> tuple[Tensor, Tensor]:
    """The inputs of a problem as the network changes them, and what it pays there: the margin, to
    first order."""
    perturbed = changed(net, p.target, threat, p.x)
    return perturbed, -(perturbed * slope(p, perturbed.detach())).sum() / len(perturbed)


def _inward(x: Tensor, target: Target) -> Tensor:
    """Inputs as the networks see them: [n, c, h, w] or [n, f], in [-1, 1]."""
    u = 2 * (x - target.bounds.low) / (target.bounds.high - target.bounds.low) - 1
    return channels_first(u, target.inputs.layout) if x.ndim in (3, 4) else u.flatten(1)


def perturber(target: Target, x: Tensor, width: int) -> nn.Module:
    """A network for inputs such as x [n, *shape], n from 1: from one to a change of it, in [-1, 1].

    Of images, layers that see ever wider, with the input itself.
    """
    shape = _inward(x[:1], target).shape[1:]
    if len(shape) > 1:
        return _Perturber(shape[0], width).to(x)
    return nn.Sequential(
        nn.Linear(shape[0], 8 * width), nn.ReLU(), nn.Linear(8 * width, 8 * width), nn.ReLU(),
        nn.Linear(8 * width, shape[0]), nn.Tanh(),
    ).to(x)  # fmt: skip


class _Perturber(nn.Module):
    """At a half and a quarter of the resolution, and back."""

    def __init__(self, c: int, width: int) -> None:
        super().__init__()
        self.fine = nn.Conv2d(c, width, 3, padding=1)
        self.halved = _step(width, 2 * width, 2)
        self.quarter = _step(2 * width, 4 * width, 2)
        self.deep = nn.Sequential(*(_step(4 * width, 4 * width, 1) for _ in range(3)))
        self.back = _step(4 * width, 2 * width, 1)
        self.out = _step(2 * width, width, 1)
        self.last = nn.Conv2d(width, c, 3, padding=1)

    def forward(self, u: Tensor) -> Tensor:
        fine = F.relu(self.fine(u))
        half = self.halved(fine)
        v = self.deep(self.quarter(half))
        v = half + self.back(F.interpolate(v, half.shape[2:]))
        return self.last(fine + self.out(F.interpolate(v, fine.shape[2:]))).tanh()


def _step(a: int, b: int, stride: int) -> nn.Module:
    """No norm over the batch: a row's change is its own."""
    return nn.Sequential(nn.Conv2d(a, b, 3, stride, 1), nn.GroupNorm(1, b), nn.ReLU())


def _judge(shape: Sequence[int], width: int) -> nn.Module:
    if len(shape) == 1:
        return nn.Sequential(
            nn.Linear(shape[0], 8 * width),
            nn.LeakyReLU(0.2),
            nn.Linear(8 * width, 1),
            nn.Flatten(0),
        )
    return nn.Sequential(
        nn.Conv2d(shape[0], width, 3, 2, 1), nn.LeakyReLU(0.2),
        nn.Conv2d(width, 2 * width, 3, 2, 1), nn.LeakyReLU(0.2),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(8 * width, 1), nn.Flatten(0),
    )  # fmt: skip

"""Defences that were published, and broken: each keeps an attack from finding what is there."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from holdfast.data import open_data
from holdfast.targets import TorchTarget
from holdfast.targets.demo import demo_net
from holdfast.targets.target import sealed
from holdfast.testing.sound import mlp, own, seeded, trained
from holdfast.training.train import train


class Defence(nn.Module):
    """A network behind or before a trick; `bare` is what an adversary who knows it would attack
    instead."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def before(self, x: Tensor) -> Tensor:
        return x

    def after(self, z: Tensor) -> Tensor:
        return z

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.inner(self.before(x)))

    def bare(self, x: Tensor) -> Tensor:
        """The scores, or scores of the same order, through functions that have gradients."""
        return self.inner(x)


class Scaled(Defence):
    """Logits times 300: in float32 the softmax of a plain cross-entropy is one-hot, and its
    gradient zero."""

    def after(self, z: Tensor) -> Tensor:
        return 300 * z


class Saturated(Defence):
    """Probabilities of a softmax so sharp that float32 holds nothing but zeros and ones."""

    def after(self, z: Tensor) -> Tensor:
        return (200 * z).softmax(1)


class Thermometer(Defence):
    """Each pixel as eight thresholds (Buckman et al. 2018)."""

    def before(self, x: Tensor) -> Tensor:
        return torch.cat([(x > level).to(x.dtype) for level in self.levels()], 1)

    def levels(self) -> list[float]:
        return [(i + 0.5) / 8 for i in range(8)]

    def bare(self, x: Tensor) -> Tensor:
        return self.inner(
            torch.cat([(0.5 + (x - level) / 0.25).clamp(0, 1) for level in self.levels()], 1)
        )


class Quantised(Defence):
    """Pixels rounded to five levels (Xu et al. 2018, arXiv:1704.01155)."""

    def before(self, x: Tensor) -> Tensor:
        return (4 * x).round() / 4


class Resized(Defence):
    """Every batch at a random size, in a random place (Xie et al. 2018, arXiv:1711.01991)."""

    def before(self, x: Tensor) -> Tensor:
        side = int(torch.randint(7, 11, ()))
        left, top = (int(torch.randint(0, 11 - side, ())) for _ in range(2))
        x = F.interpolate(x, (side, side), mode="bilinear", align_corners=False)
        return F.pad(x, (left, 10 - side - left, top, 10 - side - top))

    def bare(self, x: Tensor) -> Tensor:
        return self(x)


class Noisy(Defence):
    """Gaussian noise on the input."""

    def before(self, x: Tensor) -> Tensor:
        return x + 0.15 * torch.randn_like(x)

    def bare(self, x: Tensor) -> Tensor:
        return self(x)


class Pruning(nn.Module):
    """Stochastic activation pruning: activations are kept at random, the large ones more often
    (arXiv:1803.01442)."""

    def forward(self, a: Tensor) -> Tensor:
        share = a.abs() / a.abs().sum(1, keepdim=True).clamp_min(1e-12)
        kept = 1 - (1 - share).pow(a.shape[1])
        return a * (torch.rand_like(a) < kept) / kept.clamp_min(1e-6)


class Winners(nn.Module):
    """k-winners-take-all: all activations but the largest are zero (arXiv:1905.10510)."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k

    def forward(self, a: Tensor) -> Tensor:
        return torch.where(a >= a.topk(self.k, 1).values[:, -1:], a, 0.0)


class Sign(nn.Module):
    """-1 or 1, learnt straight through, and without a gradient afterwards."""

    def forward(self, a: Tensor) -> Tensor:
        return a.tanh() + (a.sign() - a.tanh()).detach() if self.training else a.sign()


class Shattered(Defence):
    """A fine ripple on every pixel: hardly to be seen, and most of the gradient."""

    def before(self, x: Tensor) -> Tensor:
        return x + 0.02 * torch.sin(400 * x)


class Purified(Defence):
    """Inputs replaced by their projection on the main directions of the training data, outside the
    graph."""

    def __init__(self, inner: nn.Module, mean: Tensor, basis: Tensor) -> None:
        super().__init__(inner)
        self.mean, self.basis = nn.Buffer(mean), nn.Buffer(basis)

    def _project(self, x: Tensor) -> Tensor:
        flat = x.flatten(1) - self.mean
        return (flat @ self.basis.T @ self.basis + self.mean).view_as(x)

    def before(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self._project(x)

    def bare(self, x: Tensor) -> Tensor:
        return self.inner(self._project(x))


class Detected(Purified):
    """What lies far from the main directions of the training data is answered by another network,
    out of reach.

    The detector is hidden in the model; one that is declared is attacked through:
    `holdfast.targets.defences.detectors`.
    """

    def __init__(
        self, inner: nn.Module, fallback: nn.Module, mean: Tensor, basis: Tensor, limit: float
    ) -> None:
        super().__init__(inner, mean, basis)
        self.fallback, self.limit = fallback, limit

    def distance(self, x: Tensor) -> Tensor:
        return (x - self._project(x)).flatten(1).norm(dim=1)

    def forward(self, x: Tensor) -> Tensor:
        caught = self.distance(x) > self.limit
        return torch.where(
            caught[:, None], self.fallback(Sign()(4 * x - 1.5)).detach(), self.inner(x)
        )

    def bare(self, x: Tensor) -> Tensor:
        other = self.fallback((4 * x - 1.5).tanh())
        caught = (20 * (self.distance(x) - self.limit)).sigmoid()[:, None]
        return caught * other + (1 - caught) * self.inner(x)


class Stairs(Defence):
    """The lead of the best class bent into stairs that go down where it rises: scores mislead,
    labels are the same.

    In the manner of the adversarial attack on attackers (Chen et al. 2022, arXiv:2205.12134).
    """

    period = 2.0

    def after(self, z: Tensor) -> Tensor:
        top, best = z.topk(2, 1).values, z.argmax(1, keepdim=True)
        lead = top[:, :1] - top[:, 1:]
        step = (lead / self.period).floor() * self.period
        bent = (step + self.period - (lead - step)).clamp_min(1e-3)
        return z.scatter_add(1, best, bent - lead)


class Tempered(Defence):
    """A network that trains at temperature 100, and answers at 1: its logits are so many times as
    large."""

    def after(self, z: Tensor) -> Tensor:
        return z / 100 if self.training else z


def distilled() -> nn.Module:
    """Defensive distillation at temperature 100 (Papernot et al. 2016, arXiv:1511.04508)."""
    data = open_data("digits", split="train")
    x = torch.from_numpy(data.rows(0, len(data))[0])
    teacher = train(
        TorchTarget(seeded(lambda: Tempered(demo_net()), 0), shape=(1, 8, 8)),
        data,
        epochs=12,
        rate=1e-2,
    )
    with torch.no_grad():
        soft = (teacher(x) / 100).softmax(1)
    student = seeded(lambda: Tempered(demo_net()), 1).train()
    adam = torch.optim.Adam(student.parameters(), 1e-2)
    with sealed(0), torch.enable_grad():
        for _ in range(12):
            for rows in torch.randperm(len(x)).split(64):
                loss = -(soft[rows] * student(x[rows]).log_softmax(1)).sum(1).mean()
                adam.zero_grad()
                loss.backward()
                adam.step()
    return student.eval()


def _main_directions(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and main directions of the training digits, and the digits."""
    data = open_data("digits", split="train")
    x = torch.from_numpy(data.rows(0, len(data))[0]).flatten(1)
    _, _, v = np.linalg.svd((x - x.mean(0)).numpy().astype(np.float64), full_matrices=False)
    return x.mean(0), torch.from_numpy(v[:count].astype(np.float32)), x


def _purified() -> nn.Module:
    mean, basis, _ = _main_directions(24)
    return Purified(trained(demo_net), mean, basis).eval()


def _detected() -> nn.Module:
    mean, basis, x = _main_directions(40)
    fallback = trained(_signed_input).get_submodule("2")
    found = Detected(trained(demo_net), fallback, mean, basis, 0.0)
    found.limit = float(found.distance(x.view(-1, 1, 8, 8)).quantile(0.95))
    return found.eval()


class _Darkened(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 4 * x - 1.5


def _signed_input() -> nn.Module:
    return nn.Sequential(_Darkened(), Sign(), demo_net())


def _wide_net() -> nn.Module:
    net = demo_net()
    net[0] = nn.Conv2d(8, 16, 3, padding=1)
    return Thermometer(net)


def _large_net() -> nn.Module:
    net = demo_net()
    net[6] = nn.Linear(800, 32)
    return Resized(net)


def _with(activation: Callable[[], nn.Module]) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 128),
        activation(),
        nn.Linear(128, 64),
        activation(),
        nn.Linear(64, 10),
    )


# One object each, so that what is trained once is found again.
_PRUNED = functools.partial(_with, Pruning)
_WINNERS = functools.partial(_with, functools.partial(Winners, 12))
_SIGNED = functools.partial(_with, Sign)

BROKEN: dict[str, Callable[[], nn.Module]] = {
    "distillation": own(distilled),
    "scaled": lambda: Scaled(trained(demo_net)).eval(),
    "saturated": lambda: Saturated(trained(demo_net)).eval(),
    "thermometer": lambda: trained(_wide_net),
    "quantised": lambda: Quantised(trained(demo_net)).eval(),
    "resized": lambda: trained(_large_net),
    "noisy": lambda: Noisy(trained(demo_net)).eval(),
    "pruning": lambda: trained(_PRUNED),
    "winners": lambda: trained(_WINNERS),
    "signed": lambda: trained(_SIGNED),
    "shattered": lambda: Shattered(trained(mlp)).eval(),
    "purified": _purified,
    "detected": _detected,
    "stairs": lambda: Stairs(trained(demo_net)).eval(),
}

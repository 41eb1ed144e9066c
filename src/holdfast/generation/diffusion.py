"""Diffusion: one network that takes noise away, at any strength; a sample is noise, denoised bit by
bit.

The parametrisation, training and sampler of Karras et al. 2022 (EDM, arXiv:2206.00364).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from holdfast.errors import SpecError
from holdfast.generation.model import Model
from holdfast.generation.nets import halvings
from holdfast.norms import wide
from holdfast.rng import Keys
from holdfast.spec import option

_DATA = 0.5  # the standard deviation that the parametrisation takes the data to have


@dataclass(frozen=True)
class Diffusion(Model, steps=6000, rate=2e-3, ema=0.999, rounds=10, glance=200):
    """A class-conditional diffusion model, sampled by Heun's method.

    A tenth of the rows is shown without its class, so that the denoiser also serves where no class
    is known. The rate falls to a tenth, linearly.
    Differs from the paper: a far smaller network, without attention or dropout.
    """

    width: int = option(32, "channels at the first resolution; double at the next", at_least=1)
    heun: int = option(18, "steps of the sampler, two passes each", at_least=2)
    low: float = option(0.002, "the least noise, where inputs span [-1, 1]", above=0)
    high: float = option(80.0, "the most noise, which sampling starts from", at_least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.low >= self.high:
            raise SpecError(f"{self!r} cannot sample; low is below high.")

    def nets(self, shape: tuple[int, ...], k: int) -> nn.ModuleDict:
        return nn.ModuleDict({"generator": Denoiser(shape, k, self.width)})

    def optimiser(self, nets: nn.ModuleDict) -> torch.optim.Optimizer:
        return torch.optim.Adam(nets.parameters(), self.rate)

    def learn(
        self,
        nets: nn.ModuleDict,
        optimiser: torch.optim.Optimizer,
        u: Tensor,
        y: Tensor,
        keys: Keys,
        t: int,
    ) -> tuple[Tensor | None, Tensor]:
        net: Any = nets["generator"]
        warm = min(1.0, (t + 1) / 200)
        for group in optimiser.param_groups:
            group["lr"] = self.rate * warm * (1 - 0.9 * t / self.steps)
        sigma = (1.2 * keys.fold("sigma").normal(()) - 1.2).exp()
        noise = keys.fold("noise").normal(u.shape[1:]) * wide(sigma, u)
        y = torch.where(keys.fold("hide").uniform(()) < 0.1, net.k, y)
        weight = wide((sigma**2 + _DATA**2) / (sigma * _DATA) ** 2, u)
        loss = (weight * (net(u + noise, sigma, y) - u).square()).mean()
        optimiser.zero_grad()
        loss.backward()
        length = nn.utils.clip_grad_norm_(nets.parameters(), 1.0)
        optimiser.step()
        # a gradient that is not finite shows in the loss
        return (loss + 0 * length).detach(), loss.new_zeros(())

    def draw(self, net: nn.Module, shape: tuple[int, ...], y: Tensor, keys: Keys) -> Tensor:
        u = self.high * keys.fold("noise").normal(shape)
        return sample(net, u, y, self.sigmas()).clamp(-1, 1)

    def sigmas(self) -> list[float]:
        """The noise levels that sampling passes through, the last 0."""
        a, b = self.high ** (1 / 7), self.low ** (1 / 7)
        return [(a + i / (self.heun - 1) * (b - a)) ** 7 for i in range(self.heun)] + [0.0]


def sample(net: nn.Module, u: Tensor, y: Tensor | None, sigmas: list[float]) -> Tensor:
    """From u [n, *shape], which holds noise of sigmas[0], down to sigmas[-1], by Heun's method
    (algorithm 1)."""
    for now, then in pairwise(sigmas):
        slope = (u - net(u, u.new_full((len(u),), now), y)) / now
        euler = u + (then - now) * slope
        if then:
            ahead = (euler - net(euler, u.new_full((len(u),), then), y)) / then
            euler = u + (then - now) * (slope + ahead) / 2
        u = euler
    return u


class Denoiser(nn.Module):
    """u with noise [n, *shape], sigma [n], y [n] (None, or k: unknown) to u without it: [n,
    *shape]."""

    def __init__(self, shape: tuple[int, ...], k: int, width: int) -> None:
        super().__init__()
        self.k = k
        self.inner = (
            _UNet(shape, width, 4 * width) if len(shape) == 3 else _Rows(shape[0], 4 * width)
        )
        self.of_noise = nn.Sequential(
            nn.Linear(32, 4 * width), nn.SiLU(), nn.Linear(4 * width, 4 * width)
        )
        self.of_class = nn.Embedding(k + 1, 4 * width)
        self.pitch = nn.Buffer(torch.exp(torch.linspace(-3, 4, 16)), persistent=False)

    def forward(self, u: Tensor, sigma: Tensor, y: Tensor | None = None) -> Tensor:
        if y is None:
            y = torch.full((len(u),), self.k, device=u.device)
        wave = (sigma.log() / 4)[:, None] * self.pitch
        embedding = F.silu(self.of_noise(torch.cat([wave.sin(), wave.cos()], 1)) + self.of_class(y))
        s = wide(sigma, u)
        whole = (s**2 + _DATA**2).sqrt()
        return _DATA**2 / whole**2 * u + s * _DATA / whole * self.inner(u / whole, embedding)


class _UNet(nn.Module):
    """Two resolutions; of images of 16 pixels or more, squares of 2x2 are first made channels."""

    def __init__(self, shape: tuple[int, ...], width: int, embedding: int) -> None:
        super().__init__()
        c, h, w = shape
        self.fold = 2 if min(h, w) >= 16 and h % 2 == 0 and w % 2 == 0 else 1
        self.scale = 2 if halvings(h // self.fold, w // self.fold) else 1
        c = c * self.fold**2
        self.first = nn.Conv2d(c, width, 3, padding=1)
        self.down = _Block(width, width, embedding)
        self.deep = nn.ModuleList(
            [_Block(width, 2 * width, embedding), _Block(2 * width, 2 * width, embedding)]
        )
        self.up = _Block(3 * width, width, embedding)
        self.norm, self.last = _norm(width), _quiet(nn.Conv2d(width, c, 3, padding=1))

    def forward(self, u: Tensor, embedding: Tensor) -> Tensor:
        fine = self.down(self.first(F.pixel_unshuffle(u, self.fold)), embedding)
        coarse = F.avg_pool2d(fine, self.scale)
        for block in self.deep:
            coarse = block(coarse, embedding)
        u = self.up(torch.cat([fine, F.interpolate(coarse, scale_factor=self.scale)], 1), embedding)
        return F.pixel_shuffle(self.last(F.silu(self.norm(u))), self.fold)


class _Block(nn.Module):
    """Two convolutions and a shortcut around them; noise level and class scale what is between."""

    def __init__(self, a: int, b: int, embedding: int) -> None:
        super().__init__()
        self.before, self.first = _norm(a), nn.Conv2d(a, b, 3, padding=1)
        self.told = nn.Linear(embedding, 2 * b)
        self.between, self.second = _norm(b), _quiet(nn.Conv2d(b, b, 3, padding=1))
        self.short = nn.Identity() if a == b else nn.Conv2d(a, b, 1)

    def forward(self, u: Tensor, embedding: Tensor) -> Tensor:
        gain, shift = self.told(embedding)[..., None, None].chunk(2, 1)
        v = self.between(self.first(F.silu(self.before(u)))) * (1 + gain) + shift
        return self.short(u) + self.second(F.silu(v))


class _Rows(nn.Module):
    """Rows of a table: three layers with shortcuts, each given noise level and class."""

    def __init__(self, f: int, width: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(f, width), _quiet(nn.Linear(width, f))
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.told = nn.ModuleList(nn.Linear(width, width) for _ in range(3))

    def forward(self, u: Tensor, embedding: Tensor) -> Tensor:
        v = self.first(u)
        for layer, given in zip(self.layers, self.told, strict=True):
            v = v + layer(F.silu(v + given(embedding)))
        return self.last(F.silu(v))


def _norm(channels: int) -> nn.Module:
    return nn.GroupNorm(math.gcd(8, channels), channels)


def _quiet(layer: Any) -> Any:
    """A layer that says nothing at first."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer

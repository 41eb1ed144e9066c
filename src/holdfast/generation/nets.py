"""The networks: small ones, for images of 8x8 to 64x64 and for rows of a table.

All work in the frame: images [n, c, h, w] or rows [n, f] with values in [-1, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from holdfast.errors import InputError
from holdfast.threats.images import channels_first, from_channels_first

Wrap = Callable[[nn.Module], nn.Module]


class Frame(nn.Module):
    """Raw inputs [n, *shape] within low..high (numbers, or one a feature) as the networks see them,
    and back."""

    def __init__(self, shape: tuple[int, ...], layout: str, low: Tensor, high: Tensor) -> None:
        super().__init__()
        self.raw, self.layout = tuple(shape), layout
        self.low, self.high = nn.Buffer(low), nn.Buffer(high)
        self.middle = nn.Buffer((high + low) / 2)
        self.reach = nn.Buffer(((high - low) / 2).clamp_min(1e-6))
        if len(shape) > 3:
            raise InputError(f"inputs of shape {self.raw} are neither images nor rows of a table.")
        self.shape = self.inward(torch.zeros(1, *shape)).shape[1:]
        if len(self.shape) == 3 and not (min(self.shape[1:]) >= 4 and max(self.shape[1:]) <= 128):
            raise InputError(
                f"images of shape {self.raw} cannot be generated; expected sides of 4 to 128 "
                "pixels."
            )

    def inward(self, x: Tensor) -> Tensor:
        u = (x.to(self.middle) - self.middle) / self.reach
        return u if len(self.raw) == 1 else channels_first(u, self.layout)

    def outward(self, u: Tensor) -> Tensor:
        if len(self.raw) > 1:
            u = from_channels_first(u, self.raw, self.layout)
        return self.middle + self.reach * u


class Conditional(nn.Module):
    """Batch norm whose gain and shift are the class's own (arXiv:1610.07629)."""

    def __init__(self, channels: int, k: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(channels, affine=False)
        self.own = nn.Embedding(k, 2 * channels)
        nn.init.zeros_(self.own.weight)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        gain, shift = self.own(y)[..., None].chunk(2, 1)
        return (
            (1 + gain) * self.norm(x.flatten(2) if x.ndim > 2 else x[..., None]) + shift
        ).view_as(x)


class Decoder(nn.Module):
    """The generator of a GAN: z [n, latent], y [n] to u [n, *shape]. A DCGAN (arXiv:1511.06434), or
    three layers."""

    def __init__(self, shape: tuple[int, ...], k: int, width: int, latent: int) -> None:
        super().__init__()
        self.latent, self.shape = latent, tuple(shape)
        if len(shape) == 1:
            self.first, self.bottom = nn.Linear(latent, 4 * width), (4 * width,)
            self.ups: nn.ModuleList = nn.ModuleList([nn.Linear(4 * width, 4 * width)])
            self.last: nn.Module = nn.Linear(4 * width, shape[0])
            channels = [4 * width] * 2
        else:
            c, h, w = shape
            deep = halvings(h, w)
            channels = [_channels(width, i) for i in range(deep, -1, -1)]
            self.bottom = (channels[0], h >> deep, w >> deep)
            self.first = nn.Linear(latent, math.prod(self.bottom))
            self.ups = nn.ModuleList(
                nn.ConvTranspose2d(a, b, 4, 2, 1) for a, b in pairwise(channels)
            )
            self.last = nn.Conv2d(channels[-1], c, 3, padding=1)
        self.norms = nn.ModuleList(Conditional(m, k) for m in channels)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        u = F.relu(self.norms[0](self.first(z).view(-1, *self.bottom), y))
        norms = self.norms[1:]
        for up, norm in zip(self.ups, norms, strict=True):  # pyright: ignore[reportArgumentType]
            u = F.relu(norm(up(u), y))
        return self.last(u).tanh()


class Critic(nn.Module):
    """u [n, *shape], y [n] to a score [n]: its own, plus the class's projection (arXiv:1802.05637).

    `wrap` is laid around each layer: spectral norm (arXiv:1802.05957), or nothing.
    """

    def __init__(self, shape: tuple[int, ...], k: int, width: int, wrap: Wrap) -> None:
        super().__init__()
        hidden = 4 * width
        self.body = trunk(tuple(shape), width, hidden, lambda: nn.LeakyReLU(0.2), wrap)
        self.own, self.of_class = wrap(nn.Linear(hidden, 1)), wrap(nn.Embedding(k, hidden))

    def forward(self, u: Tensor, y: Tensor) -> Tensor:
        seen = self.body(u)
        return self.own(seen)[:, 0] + (self.of_class(y) * seen).sum(1)


class Reader(nn.Module):
    """A small classifier of raw inputs [n, *shape]; what it sees before it decides are the
    `features` [n, 64].

    Their mean square over real rows is 1, once `size` is set.
    """

    def __init__(self, frame: Frame, k: int) -> None:
        super().__init__()
        self.frame = frame
        self.body = trunk(tuple(frame.shape), 32, 64, nn.ReLU, lambda layer: layer)
        self.head = nn.Linear(64, k)
        self.size: Tensor = nn.Buffer(torch.ones(()))

    def features(self, x: Tensor) -> Tensor:
        return self.body(self.frame.inward(x)) / self.size

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x) * self.size)


def trunk(
    shape: tuple[int, ...], width: int, out: int, act: Callable[[], nn.Module], wrap: Wrap
) -> nn.Sequential:
    """From u [n, *shape] to [n, out], with an activation after every layer."""
    if len(shape) == 1:
        return nn.Sequential(
            wrap(nn.Linear(shape[0], 4 * width)), act(), wrap(nn.Linear(4 * width, out)), act()
        )
    c, h, w = shape
    deep = halvings(h, w)
    channels = [_channels(width, i) for i in range(deep + 1)]
    layers: list[nn.Module] = [wrap(nn.Conv2d(c, channels[0], 3, padding=1)), act()]
    for a, b in pairwise(channels):
        layers += [wrap(nn.Conv2d(a, b, 4, 2, 1)), act()]
    flat = channels[-1] * (h >> deep) * (w >> deep)
    return nn.Sequential(*layers, nn.Flatten(), wrap(nn.Linear(flat, out)), act())


def halvings(h: int, w: int) -> int:
    """How often both sides can be halved, down to 4 or an odd number."""
    n = 0
    while (h >> n) % 2 == 0 and (w >> n) % 2 == 0 and min(h, w) >> n > 4:
        n += 1
    return n


def _channels(width: int, level: int) -> int:
    return max(8, min(4 * width, width << level >> 1))

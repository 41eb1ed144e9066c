"""Small random networks of many operators, and the smallest margins that can be found of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.optimize import Bounds, LinearConstraint, milp
from torch import Tensor, nn
from torch.nn import functional as F

from holdfast.bounds import Region

SHAPE = (2, 4, 4)
CLASSES = 3
KINDS = ("dense", "residual", "pooled", "smooth", "leaky", "joined", "limited", "gated")


class Residual(nn.Module):
    """Two branches that fork twice, the second time before the first has met again."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 3, 3, padding=1)
        self.second = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.short = nn.Conv2d(2, 3, 1)
        self.activation = activation
        self.last = nn.Linear(48, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = self.activation(self.first(x))
        h = h - self.norm(self.second(h))
        h = self.activation(h + self.short(x))
        return self.last(h.flatten(1)) - 0.5 * h.mean((2, 3))


class Joined(nn.Module):
    """Preprocessing, concatenation, slices, products with constants, views."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.3, 0.6]).view(2, 1, 1))
        self.wide = nn.Linear(16, 6)
        self.last = nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = (x - self.mean) / 0.25
        h = self.wide(x.flatten(2)).relu()
        h = torch.cat([h, 1 - h.transpose(1, 2).reshape(-1, 2, 6)], 2)
        return self.last(h.reshape(len(x), -1).relu()) + 2 * x[:, 0, :3, 1]


class Limited(nn.Module):
    """Piecewise linear: limits, sizes, larger ones of two, maxima over axes, larger images."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        # of these float32 and float64 make the same: constants of a graph are those of float32
        self.register_buffer("limit", torch.tensor([-0.25, 0.125, 0.0, 0.375]).view(4, 1, 1))
        self.norm = nn.InstanceNorm2d(4, affine=True, track_running_stats=True)
        self.last = nn.Linear(4 + 8 + 4, CLASSES)
        self.seed = seed

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.first(x))
        limits: list[Any] = [
            lambda: F.relu6(3 * h, inplace=True),
            lambda: h.clamp(-0.3, 0.5),
            lambda: torch.maximum(h, self.limit).clamp_max(0.6),
            lambda: F.hardtanh(h, -0.5, 0.2),
            lambda: F.hardsigmoid(4 * h),
            lambda: torch.clamp(h, self.limit, 2 * self.limit + 1),
        ]
        h = limits[self.seed % len(limits)]()
        a, b = h.chunk(2, 1)
        h = torch.cat([torch.minimum(a, b.flip(1)), (a - b).abs()], 1)
        pooled = F.max_pool2d(h, 3, 2, ceil_mode=True)
        wide = F.interpolate(pooled, scale_factor=2)[:, :2, ::2, 1:3]
        first, _ = h.max(1)
        return self.last(
            torch.cat([F.adaptive_max_pool2d(h, 1).flatten(1), wide.flatten(1), first.amax(1)], 1)
        )


class Gated(nn.Module):
    """Activations that are smooth, as functions and as formulas, squares, and products."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.gate = nn.Linear(4, 4)
        self.last = nn.Linear(64 + 16, CLASSES)
        self.seed = seed

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        smooth: list[Any] = [
            lambda: h * torch.sigmoid(h),
            lambda: 0.5 * h * (1 + torch.erf(h / 2**0.5)),
            lambda: F.elu(h, 1.5),
            lambda: F.softplus(h, 2.0),
            lambda: F.selu(h),
            lambda: F.mish(h),
            lambda: F.hardswish(3 * h),
            lambda: 0.5 * h * torch.sigmoid(1.7 * h),
            lambda: F.celu(h, 0.5) + F.logsigmoid(h),
            lambda: h**2 - h * h / 2 + h.square(),
        ]
        h = smooth[self.seed % len(smooth)]()
        h = h * torch.sigmoid(self.gate(h.mean((2, 3))))[:, :, None, None]
        return self.last(torch.cat([h.flatten(1), F.glu(h, 1)[:, :1].flatten(1)], 1))


def network(kind: str, seed: int) -> nn.Module:
    """A random network of this kind, for rows of SHAPE in [0, 1], in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        smooth = [nn.Sigmoid(), nn.Tanh(), nn.GELU(), nn.SiLU(), nn.GELU("tanh")][seed % 5]
        leaky = nn.PReLU(3) if seed % 2 else [nn.LeakyReLU(0.3), nn.PReLU()][seed // 2 % 2]
        made = {
            "dense": lambda: _dense(nn.ReLU()),
            "residual": lambda: Residual(nn.ReLU()),
            "pooled": _pooled,
            "smooth": lambda: Residual(smooth) if seed % 2 else _dense(smooth),
            "leaky": lambda: Residual(leaky) if seed % 2 else _dense(leaky),
            "joined": Joined,
            "limited": lambda: Limited(seed),
            "gated": lambda: Gated(seed),
        }[kind]()
        for part in made.modules():
            if isinstance(part, (nn.Linear, nn.Conv2d)):
                nn.init.normal_(part.weight, std=1.5 / part.weight[0].numel() ** 0.5)
                nn.init.normal_(part.bias, std=0.3)
            if isinstance(part, (nn.BatchNorm2d, nn.InstanceNorm2d)):
                nn.init.normal_(part.weight)
                nn.init.uniform_(part.running_var, 0.5, 2)
                nn.init.normal_(part.running_mean)
            if isinstance(part, nn.PReLU):
                nn.init.uniform_(part.weight, -0.5, 2)
    return made.eval()


def _dense(activation: nn.Module) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(32, 10),
        activation,
        nn.Linear(10, 8),
        activation,
        nn.Linear(8, CLASSES),
    )


def _pooled() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2, 1, padding=1),
        nn.Conv2d(4, 3, 2),
        nn.MaxPool2d(2),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.ReLU(),
        nn.Linear(3, CLASSES),
    )


def smallest(
    network: Callable[[Tensor], Tensor],
    region: Region,
    y: Tensor,
    samples: int,
    steps: int,
    classes: int = CLASSES,
    seed: int | None = None,
) -> Tensor:
    """The smallest margins [n, k] that random points, corners and PGD find: above every sound
    bound. inf for the true class. The network is one of float64."""
    own = torch.arange(classes) == y[:, None]
    draws = torch.Generator().manual_seed(len(y) if seed is None else seed)
    width = float(region.hi.max() - region.lo.min())

    def asked(part: Region, d: Tensor) -> Tensor:
        scores = network(part.x + d).view(len(y), -1, classes)
        at = y[:, None, None].expand(-1, scores.shape[1], 1)
        return scores.gather(2, at) - scores

    with torch.no_grad():
        many = region.at(torch.arange(len(y)).repeat_interleave(samples))
        d = torch.randn(many.x.shape, generator=draws, dtype=torch.float64) * width
        d[::2] = d[::2].sign()
        least = asked(many, many.norm.project(d, many.eps, many.lo, many.hi)).amin(1)
    # one descent for each class, all at once
    part = region.at(torch.arange(len(y)).repeat_interleave(classes))
    d = torch.zeros_like(part.x)
    for i in range(steps + 1):
        d.requires_grad_()
        found = asked(part, d)
        least = torch.minimum(least, found.detach().amin(1))
        (g,) = torch.autograd.grad(found.diagonal(dim1=1, dim2=2).sum(), d)
        stride = part.norm.stride(-g, 0.5 / (1 + i / 4), part.eps, part.lo, part.hi)
        d = part.norm.project(d.detach() + stride, part.eps, part.lo, part.hi)
    return least.masked_fill(own, torch.inf)


def exact(layers: list[nn.Linear], lo: np.ndarray, hi: np.ndarray, c: np.ndarray) -> float:
    """The smallest <c, scores> of Linear-ReLU-...-Linear over a box, by a mixed integer program."""
    n = len(lo)
    cost, rows = [np.zeros(n)], []
    limits, whole = [(lo, hi)], [np.zeros(n)]
    before = np.arange(n)
    low, high = lo, hi
    for layer in layers[:-1]:
        w, b = (part.detach().double().numpy() for part in (layer.weight, layer.bias))
        centre, radius = w @ (low + high) / 2 + b, abs(w) @ (high - low) / 2
        low, high = centre - radius - 1e-3, centre + radius + 1e-3
        m = len(b)
        z, on = n + np.arange(m), n + m + np.arange(m)
        for i in range(m):
            flat = np.r_[before, z[i], on[i]]
            # z >= w x + b;  z <= w x + b - low (1 - on);  z <= high on
            rows.append((flat, np.r_[-w[i], 1, 0], b[i], np.inf))
            rows.append((flat, np.r_[-w[i], 1, -min(low[i], 0)], -np.inf, b[i] - min(low[i], 0)))
            rows.append((np.r_[z[i], on[i]], np.r_[1, -max(high[i], 0)], -np.inf, 0))
        limits += [(np.maximum(low, 0), np.maximum(high, 0)), (1.0 * (low >= 0), 1.0 * (high > 0))]
        low, high = limits[-2]
        whole += [np.zeros(m), np.ones(m)]
        cost += [np.zeros(m), np.zeros(m)]
        before, n = z, n + 2 * m
    w, b = (part.detach().double().numpy() for part in (layers[-1].weight, layers[-1].bias))
    cost_all = np.concatenate(cost)
    cost_all[before] = c @ w
    matrix = np.zeros((len(rows), n))
    for row, (at, values, _, _) in enumerate(rows):
        matrix[row, at] = values
    found = milp(
        cost_all,
        constraints=LinearConstraint(matrix, [r[2] for r in rows], [r[3] for r in rows]),
        bounds=Bounds(*(np.concatenate(side) for side in zip(*limits, strict=True))),
        integrality=np.concatenate(whole),
        options={"mip_rel_gap": 0},
    )
    assert found.status == 0, found.message
    return float(found.fun + c @ b)

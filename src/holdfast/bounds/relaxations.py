"""Lines below and above each activation on an interval.

Intervals are l <= u, [n, *shape]. All that is said of a function here holds on the whole of [l, u];
`tests/certification` tries it. Bounds on lines follow Zhang et al. 2018 (CROWN, arXiv:1811.00866).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from holdfast.errors import InputError


@dataclass
class Lines:
    """low * x + low_at_0 <= f(x) <= up * x + up_at_0, [n, *shape] each.

    Where `free` is true, any slope of the lower line from `least` to `most` holds, too.
    """

    low: Tensor
    low_at_0: Tensor
    up: Tensor
    up_at_0: Tensor
    free: Tensor | None = None
    least: Tensor | float = 0.0
    most: float = 1.0


class Rule(ABC):
    """What is known of one activation."""

    @abstractmethod
    def value(self, x: Tensor) -> Tensor:
        """The function itself."""

    @abstractmethod
    def interval(self, l: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """Bounds of its values on [l, u]."""

    @abstractmethod
    def lines(self, l: Tensor, u: Tensor) -> Lines:
        """A line below and one above."""

    def asks(self, l: Tensor, u: Tensor) -> Tensor:
        """Where a tighter [l, u] would make its lines better: bool."""
        return u > l

    def widened(self, a: Tensor) -> Tensor:
        """Coefficients on its results, shaped to multiply slopes."""
        return a


class Bent(Rule):
    """x where x > 0, else slope * x: ReLU, leaky ReLU and PReLU (slope: one, or broadcast to a
    row)."""

    def __init__(self, slope: Tensor | float = 0.0) -> None:
        self.slope = slope

    def value(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, x, self.slope * x)

    def interval(self, l: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        ends = self.value(l), self.value(u)
        low, high = torch.minimum(*ends), torch.maximum(*ends)
        across = self.asks(l, u)
        return (
            torch.where(across, low.clamp_max(0), low),
            torch.where(across, high.clamp_min(0), high),
        )

    def asks(self, l: Tensor, u: Tensor) -> Tensor:
        return (l < 0) & (u > 0)

    def lines(self, l: Tensor, u: Tensor) -> Lines:
        across = self.asks(l, u)
        slope = torch.as_tensor(self.slope, dtype=l.dtype, device=l.device).expand_as(l)
        side = torch.where(l >= 0, 1, torch.where(u <= 0, slope, torch.nan))
        chord = (u - slope * l) / (u - l)
        touch = torch.where(u > -l, 1, slope)  # the lesser area between the lines
        at_0 = torch.where(across, u * (1 - chord), 0)
        chord, touch = torch.where(across, chord, side), torch.where(across, touch, side)
        none, convex = torch.zeros_like(l), slope <= 1
        return Lines(
            torch.where(convex, touch, chord),
            torch.where(convex, none, at_0),
            torch.where(convex, chord, touch),
            torch.where(convex, at_0, none),
            across & convex,
            self.slope,
        )


class Largest(Rule):
    """The largest entry along the last axis: a maximum over windows."""

    def value(self, x: Tensor) -> Tensor:
        return x.amax(-1)

    def interval(self, l: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        return l.amax(-1), u.amax(-1)

    def asks(self, l: Tensor, u: Tensor) -> Tensor:
        able = u >= l.amax(-1, keepdim=True)  # the others are never the largest
        return able & (able.sum(-1, keepdim=True) > 1)

    def lines(self, l: Tensor, u: Tensor) -> Lines:
        first = F.one_hot(l.argmax(-1), l.shape[-1]).bool()
        rest = u.masked_fill(first, -torch.inf).amax(-1)
        rules = l.amax(-1) >= rest
        chosen = first.to(l.dtype)
        return Lines(
            chosen,
            torch.zeros_like(rest),
            chosen * rules[..., None],
            torch.where(rules, 0, u.amax(-1)),
        )

    def widened(self, a: Tensor) -> Tensor:
        return a[..., None]


class Smooth(Rule):
    """A function whose second derivative is at most `bend` in size everywhere, and which has no
    lowest point, or one at `bottom`; it rises to the right of that.

    Of all lines below, the one that is highest in the middle of [l, u] is sought among samples; it
    is then lowered by what the function can fall between two samples, bend * step^2 / 8.
    """

    samples = 64

    def __init__(
        self, function: Callable[[Tensor], Tensor], bend: float, bottom: float | None = None
    ) -> None:
        self.value = function  # type: ignore[method-assign]
        self.bend = bend
        self.bottom = bottom

    def value(self, x: Tensor) -> Tensor:  # pragma: no cover  # each object has its own
        raise NotImplementedError

    def interval(self, l: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        ends = self.value(l), self.value(u)
        low, high = torch.minimum(*ends), torch.maximum(*ends)
        if self.bottom is not None:
            least = self.value(l.new_tensor(self.bottom)) - 1e-9
            low = torch.where((l < self.bottom) & (u > self.bottom), least, low)
        return low, high

    def lines(self, l: Tensor, u: Tensor) -> Lines:
        share = torch.linspace(0, 1, self.samples + 1, dtype=l.dtype, device=l.device)
        x = torch.lerp(l[..., None], u[..., None], share)
        y = self.value(x)
        drop = self.bend * ((u - l) / self.samples).square() / 8
        low, low_at_0 = _below(x, y)
        up, up_at_0 = _below(x, -y)
        return Lines(low, low_at_0 - drop, -up, drop - up_at_0)


def _below(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Slope and value at 0 of the line below points (x, y), [..., points], that is highest in the
    middle of them."""
    middle = (x[..., :1] + x[..., -1:]) / 2
    width = (x[..., 1:] - x[..., :-1]).clamp_min(1e-12)
    slopes = (y[..., 1:] - y[..., :-1]) / width
    least, most = slopes.amin(-1, keepdim=True), slopes.amax(-1, keepdim=True)
    for _ in range(24):
        slope = (least + most) / 2
        lowest = (y - slope * x).argmin(-1, keepdim=True)
        left = x.gather(-1, lowest) < middle  # a steeper line would stand higher in the middle
        least, most = torch.where(left, slope, least), torch.where(left, most, slope)
    slope = (least + most) / 2
    return slope[..., 0], (y - slope * x).amin(-1)


def _gelu(approximate: str = "none") -> Smooth:
    bottom = {"none": -0.7517916, "tanh": -0.7524614}[approximate]
    return Smooth(lambda x: F.gelu(x, approximate=approximate), 0.83, bottom)


def windows(
    shape: tuple[int, ...],
    size: list[int],
    stride: list[int] | None = None,
    padding: list[int] | int = 0,
    dilation: list[int] | int = 1,
    ceil_mode: bool = False,
) -> Tensor:
    """The entries that each result of a max-pool over the last axes of [*shape] is chosen from, as
    places in the flat input: [*pooled, window].

    A place beyond the edge is replaced by another one of its window, which changes no maximum.
    """
    if ceil_mode:
        raise InputError("not supported: a max-pool with ceil_mode.")
    axes = len(size)
    padding, dilation = (
        option if isinstance(option, list) and len(option) == axes else [_one(option)] * axes
        for option in (padding, dilation)
    )
    places = torch.arange(math.prod(shape)).reshape(shape)
    places = F.pad(places, [side for p in reversed(padding) for side in (p, p)], value=-1)
    for i in range(axes):
        reach = dilation[i] * (size[i] - 1) + 1
        places = places.unfold(len(shape) - axes + i, reach, (stride or size)[i])
        places = places[..., :: dilation[i]]
    places = places.flatten(-axes)
    return torch.where(places < 0, places.amax(-1, keepdim=True), places)


def _one(option: list[int] | int) -> int:
    return option[0] if isinstance(option, list) else option


# The rule of an operator, from its further arguments.
RULES: dict[str, Callable[..., Rule]] = {
    "relu": Bent,
    "leaky_relu": lambda slope=0.01: Bent(slope),
    "prelu": Bent,
    "sigmoid": lambda: Smooth(torch.sigmoid, 0.097),
    "tanh": lambda: Smooth(torch.tanh, 0.77),
    "gelu": _gelu,
    "silu": lambda: Smooth(F.silu, 0.51, -1.2784645),
}
POOLS = {"max_pool1d", "max_pool2d", "max_pool3d"}

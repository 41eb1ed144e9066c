"""Lines below and above each activation on an interval.

Intervals are lo <= hi, [n, *shape]. All that is said of a function here holds on the whole of
[lo, hi]; `tests/certification` tries it. The lines of ReLU are those of Zhang et al. 2018 (CROWN,
arXiv:1811.00866).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from holdfast.errors import InputError


@dataclass
class Lines:
    """low * x + low_at_0 <= f(x) <= up * x + up_at_0, [n, *shape] each.

    Where given, any slope of the lower line from `least` to `most` holds, too.
    """

    low: Tensor
    low_at_0: Tensor
    up: Tensor
    up_at_0: Tensor
    least: Tensor | None = None
    most: Tensor | None = None

    def each(self, change: Callable[[Tensor], Tensor]) -> Lines:
        """The same with every tensor changed."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{k: change(part) for k, part in given.items() if part is not None})


class Rule(ABC):
    """What is known of one activation."""

    bent = False  # whether its lines are exact where its argument has one sign

    @abstractmethod
    def value(self, x: Tensor) -> Tensor:
        """The function itself."""

    @abstractmethod
    def interval(self, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
        """Bounds of its values on [lo, hi]."""

    @abstractmethod
    def lines(self, lo: Tensor, hi: Tensor, total: Tensor) -> Lines:
        """A line below and one above."""

    def asks(self, lo: Tensor, hi: Tensor) -> Tensor:
        """Where a tighter [lo, hi] would make its lines better: bool."""
        return hi > lo

    @abstractmethod
    def noise(self, lo: Tensor, hi: Tensor, unit: float) -> Tensor | None:
        """The most that its result is off by its own rounding where its argument is in [lo, hi];
        None: 0."""


class Bent(Rule):
    """x where x > 0, else slope * x: ReLU, leaky ReLU and PReLU (slope: one, or broadcast to a
    row)."""

    bent = True

    def __init__(self, slope: Tensor | float = 0.0) -> None:
        self.slope = slope

    def value(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, x, self.slope * x)

    def interval(self, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
        ends = self.value(lo), self.value(hi)
        low, high = torch.minimum(*ends), torch.maximum(*ends)
        across = self.asks(lo, hi)
        return (
            torch.where(across, low.clamp_max(0), low),
            torch.where(across, high.clamp_min(0), high),
        )

    def asks(self, lo: Tensor, hi: Tensor) -> Tensor:
        return (lo < 0) & (hi > 0)

    def noise(self, lo: Tensor, hi: Tensor, unit: float) -> Tensor | None:
        slope = torch.as_tensor(self.slope, dtype=lo.dtype, device=lo.device).abs()
        return unit * slope * (-lo).clamp_min(0) if bool(slope.any()) else None

    def lines(self, lo: Tensor, hi: Tensor, total: Tensor) -> Lines:
        across = self.asks(lo, hi)
        slope = torch.as_tensor(self.slope, dtype=lo.dtype, device=lo.device).expand_as(lo)
        side = torch.where(lo >= 0, 1, torch.where(hi <= 0, slope, torch.nan))
        chord = (hi - slope * lo) / (hi - lo)
        touch = torch.where(total > 0, 1, slope)  # the lesser area between the lines
        at_0 = torch.where(across, hi * (1 - chord), 0)
        chord, touch = torch.where(across, chord, side), torch.where(across, touch, side)
        none, convex = torch.zeros_like(lo), slope <= 1
        low = torch.where(convex, touch, chord)
        return Lines(
            low,
            torch.where(convex, none, at_0),
            torch.where(convex, chord, touch),
            torch.where(convex, at_0, none),
            torch.where(across & convex, slope, low),
            torch.where(across & convex, 1, low),
        )


class Largest(Rule):
    """The largest entry along the last axis: a maximum over windows."""

    def value(self, x: Tensor) -> Tensor:
        return x.amax(-1)

    def interval(self, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
        return lo.amax(-1), hi.amax(-1)

    def asks(self, lo: Tensor, hi: Tensor) -> Tensor:
        able = hi >= lo.amax(-1, keepdim=True)  # the others are never the largest
        return able & (able.sum(-1, keepdim=True) > 1)

    def lines(self, lo: Tensor, hi: Tensor, total: Tensor) -> Lines:
        first = F.one_hot(lo.argmax(-1), lo.shape[-1]).bool()
        rest = hi.masked_fill(first, -torch.inf).amax(-1)
        rules = lo.amax(-1) >= rest
        chosen = first.to(lo.dtype)
        return Lines(
            chosen,
            torch.zeros_like(rest),
            chosen * rules[..., None],
            torch.where(rules, 0, hi.amax(-1)),
        )

    def noise(self, lo: Tensor, hi: Tensor, unit: float) -> Tensor | None:
        return None


class Smooth(Rule):
    """A function whose first and second derivatives are at most `steep` and `bend` in size
    everywhere, and which rises everywhere, or from its lowest point, `bottom`, to the right and has
    no other turn but far to the left, where it is almost 0.

    Of all lines below, the one that is highest in the middle of [lo, hi] is sought among samples;
    it is then lowered by what the function can fall between two samples, bend * step^2 / 8.
    """

    samples = 64

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        steep: float,
        bend: float,
        bottom: float | None = None,
    ) -> None:
        self.function = function
        self.steep = steep
        self.bend = bend
        self.bottom = bottom

    def value(self, x: Tensor) -> Tensor:
        return self.function(x)

    def noise(self, lo: Tensor, hi: Tensor, unit: float) -> Tensor | None:
        return 8 * unit * (1 + torch.maximum(-lo, hi).abs())

    def interval(self, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
        ends = self.value(lo), self.value(hi)
        low, high = torch.minimum(*ends), torch.maximum(*ends)
        if self.bottom is not None:
            least = self.value(lo.new_tensor(self.bottom)) - 1e-9
            low = torch.where((lo < self.bottom) & (hi > self.bottom), least, low)
        return low, high

    def lines(self, lo: Tensor, hi: Tensor, total: Tensor) -> Lines:
        share = torch.linspace(0, 1, self.samples + 1, dtype=lo.dtype, device=lo.device)
        x = torch.lerp(lo[..., None], hi[..., None], share)
        y = self.value(x)
        drop = self.bend * ((hi - lo) / self.samples).square() / 8
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
    return Smooth(lambda x: F.gelu(x, approximate=approximate), 1.13, 0.83, bottom)


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
    if bool((places < 0).all(-1).any()):
        raise InputError("not supported: a max-pool with a window of padding alone.")
    return torch.where(places < 0, places.amax(-1, keepdim=True), places)


def _one(option: list[int] | int) -> int:
    return option[0] if isinstance(option, list) else option


# The rule of an operator, from its further arguments.
RULES: dict[str, Callable[..., Rule]] = {
    "relu": Bent,
    "leaky_relu": lambda slope=0.01: Bent(slope),
    "prelu": Bent,
    "sigmoid": lambda: Smooth(torch.sigmoid, 0.25, 0.097),
    "tanh": lambda: Smooth(torch.tanh, 1.0, 0.77),
    "gelu": _gelu,
    "silu": lambda: Smooth(F.silu, 1.1, 0.51, -1.2784645),
}
POOLS = {"max_pool1d", "max_pool2d", "max_pool3d"}

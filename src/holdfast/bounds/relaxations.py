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
from functools import partial

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

    @property
    def free(self) -> bool:
        """Whether some slope of a lower line may change."""
        return (
            self.least is not None
            and self.most is not None
            and bool((self.least < self.most).any())
        )

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
        if isinstance(self.slope, float) and self.slope == 0:
            return x.clamp_min(0)
        return torch.where(x > 0, x, self.slope * x)

    def interval(self, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
        ends = self.value(lo), self.value(hi)
        if isinstance(self.slope, float) and self.slope >= 0:  # it rises
            return ends
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
        # elsewhere no width, so that no gradient is one of 0 / 0
        chord = (hi - slope * lo) / torch.where(across, hi - lo, 1)
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


class Square(Rule):
    """x * x, between its tangent in the middle and its chord."""

    def value(self, x: Tensor) -> Tensor:
        return x.square()

    def interval(self, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
        least, most = torch.maximum(lo, -hi).clamp_min(0), torch.maximum(-lo, hi)
        return least.square(), most.square()

    def lines(self, lo: Tensor, hi: Tensor, total: Tensor) -> Lines:
        return Lines(lo + hi, -((lo + hi) / 2).square(), lo + hi, -lo * hi)

    def noise(self, lo: Tensor, hi: Tensor, unit: float) -> Tensor | None:
        return 2 * unit * torch.maximum(-lo, hi).square()


class Product(Rule):
    """The product of the two entries along the last axis, between the means of the two planes below
    and of the two above that touch it at corners (McCormick 1976)."""

    def value(self, x: Tensor) -> Tensor:
        return x[..., 0] * x[..., 1]

    def interval(self, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
        (a, b), (c, d) = lo.unbind(-1), hi.unbind(-1)
        corners = torch.stack([a * b, a * d, c * b, c * d])
        return corners.amin(0), corners.amax(0)

    def lines(self, lo: Tensor, hi: Tensor, total: Tensor) -> Lines:
        (a, b), (c, d) = lo.unbind(-1), hi.unbind(-1)
        slopes = ((lo + hi) / 2).flip(-1)
        return Lines(slopes, -(a * b + c * d) / 2, slopes, -(a * d + c * b) / 2)

    def noise(self, lo: Tensor, hi: Tensor, unit: float) -> Tensor | None:
        return 2 * unit * torch.maximum(-lo, hi).prod(-1)


class Smooth(Rule):
    """A function whose first and second derivatives are at most `steep` and `bend` in size
    everywhere but at its `kinks`, and which rises everywhere, or from its lowest point, `bottom`,
    to the right and has no other turn but far to the left, where it is almost 0; `turns`: it may
    turn anywhere.

    Of all lines below, the one that is highest in the middle of [lo, hi] is sought among samples;
    it is then lowered by what the function can fall between two samples, bend * step^2 / 8.

    The network's own form of it is off by `slack` at most, besides what it rounds.
    """

    samples = 65  # odd: no sample lies in the middle, where several lines would be as high

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        steep: float,
        bend: float,
        bottom: float | None = None,
        kinks: tuple[float, ...] = (),
        slack: float = 0.0,
        *,
        turns: bool = False,
    ) -> None:
        self.function = function
        self.steep = steep
        self.bend = bend
        self.bottom = bottom
        self.kinks = kinks
        self.slack = slack
        self.turns = turns

    def value(self, x: Tensor) -> Tensor:
        return self.function(x)

    def noise(self, lo: Tensor, hi: Tensor, unit: float) -> Tensor | None:
        return 8 * unit * (1 + torch.maximum(-lo, hi).abs()) + self.slack

    def interval(self, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
        if self.turns:
            _, y, drop = self._sampled(lo, hi)
            return y.amin(-1) - drop, y.amax(-1) + drop
        ends = self.value(lo), self.value(hi)
        low, high = torch.minimum(*ends), torch.maximum(*ends)
        if self.bottom is not None:
            least = self.value(lo.new_tensor(self.bottom)) - 1e-9
            low = torch.where((lo < self.bottom) & (hi > self.bottom), least, low)
        return low, high

    def _sampled(self, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Points of [lo, hi], [..., points], values there, and the most that it falls between."""
        share = torch.linspace(0, 1, self.samples + 1, dtype=lo.dtype, device=lo.device)
        x = torch.lerp(lo[..., None], hi[..., None], share)
        if self.kinks:
            kinks = lo.new_tensor(self.kinks).expand(*lo.shape, -1)
            x = torch.cat([x, kinks.clamp(lo[..., None], hi[..., None])], -1).sort(-1).values
        return x, self.value(x), self.bend * ((hi - lo) / self.samples).square() / 8

    def lines(self, lo: Tensor, hi: Tensor, total: Tensor) -> Lines:
        x, y, drop = self._sampled(lo, hi)
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


# f of `gate`, and the largest first and second derivatives of x * f(x) in size
GATES: dict[str, tuple[Callable[[Tensor], Tensor], float, float]] = {
    "sigmoid": (torch.sigmoid, 1.1, 0.51),
    "tanh": (torch.tanh, 1.2, 2.01),
    "erf": (torch.erf, 1.26, 2.26),
}


def gate(name: str, outer: float, inner: float, shift: float) -> Rule:
    """x * (outer * f(inner * x) + shift), where that is no steeper than a few x: |outer| + |shift|
    is at most 2."""
    if (name, outer, inner, shift) == ("sigmoid", 1.0, 1.0, 0.0):
        return RULES["silu"]()
    if name != "sigmoid" and inner < 0:  # f is odd
        outer, inner = -outer, -inner
    f, steep, bend = GATES[name]
    usual = outer > 0 and max(abs(outer - shift), abs(inner - 0.5**0.5)) < 1e-6
    return Smooth(
        lambda x: x * (outer * f(inner * x) + shift),
        steep * abs(outer) + abs(shift),
        bend * abs(outer * inner),
        -0.7517916 if name == "erf" and usual else None,
        turns=not usual or name != "erf",
    )


def _elu(alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Smooth:
    if min(alpha, scale, input_scale) <= 0:
        raise InputError("not supported: an ELU of which a number is not above 0.")
    steep, bend = scale * max(1.0, alpha * input_scale), scale * alpha * input_scale**2
    elu = partial(torch.ops.aten.elu, alpha=alpha, scale=scale, input_scale=input_scale)
    return Smooth(elu, steep, bend, kinks=(0.0,))


def _softplus(beta: float = 1.0, threshold: float = 20.0) -> Smooth:
    """The network's own is x where beta * x is above the threshold."""
    if min(beta, threshold) <= 0:
        raise InputError("not supported: a softplus of which a number is not above 0.")
    slack = math.exp(-threshold) / beta
    return Smooth(
        lambda x: torch.logaddexp(beta * x, torch.zeros_like(x)) / beta,
        1.0,
        0.251 * beta,
        slack=slack,
    )


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

    A place beyond the edge is replaced by another one of its window, which changes no maximum. With
    `ceil_mode`, a last window that reaches beyond the padding counts if it begins before it.
    """
    axes = len(size)
    padding, dilation = (
        option if isinstance(option, list) and len(option) == axes else [_one(option)] * axes
        for option in (padding, dilation)
    )
    places = torch.arange(math.prod(shape)).reshape(shape)
    places = F.pad(places, [side for p in reversed(padding) for side in (p, p)], value=-1)
    for i in range(axes):
        axis, reach = len(shape) - axes + i, dilation[i] * (size[i] - 1) + 1
        step, side = (stride or size)[i], places.shape[axis]
        beyond = -(side - reach) % step  # to one more window
        if ceil_mode and side + beyond - reach < side - padding[i]:
            places = F.pad(places, [0, 0] * (places.ndim - 1 - axis) + [0, beyond], value=-1)
        places = places.unfold(axis, reach, step)
        places = places[..., :: dilation[i]]
    places = places.flatten(-axes)
    if bool((places < 0).all(-1).any()):
        raise InputError("not supported: a max-pool with a window of padding alone.")
    return torch.where(places < 0, places.amax(-1, keepdim=True), places)


def _one(option: list[int] | int) -> int:
    return option[0] if isinstance(option, list) else option


def cells(shape: tuple[int, ...], made: list[int]) -> Tensor:
    """The same of an adaptive max-pool with so many results along the last axes."""
    places = torch.arange(math.prod(shape)).reshape(shape)
    for axis, count in enumerate(made, len(shape) - len(made)):
        side = shape[axis]
        first = [i * side // count for i in range(count)]
        last = [-(-(i + 1) * side // count) - 1 for i in range(count)]
        width = max(b - a for a, b in zip(first, last, strict=True)) + 1
        at = torch.tensor(first)[:, None] + torch.arange(width)
        at = torch.minimum(at, torch.tensor(last)[:, None])
        places = places.index_select(axis, at.flatten()).unflatten(axis, at.shape)
        places = places.movedim(axis + 1, -1)
    return places.flatten(-len(made))


def slices(shape: tuple[int, ...], axes: list[int], keepdim: bool) -> Tensor:
    """The same of a maximum over these axes; none: over all."""
    over = sorted(axis % len(shape) for axis in axes) or list(range(len(shape)))
    places = torch.arange(math.prod(shape)).reshape(shape).movedim(over, list(range(-len(over), 0)))
    places = places.flatten(-len(over))
    if keepdim:
        left = [1 if axis in over else side for axis, side in enumerate(shape)]
        places = places.reshape(*left, -1)
    return places


# The rule of an operator, from its further arguments.
RULES: dict[str, Callable[..., Rule]] = {
    "relu": Bent,
    "leaky_relu": lambda slope=0.01: Bent(slope),
    "prelu": Bent,
    "sigmoid": lambda: Smooth(torch.sigmoid, 0.25, 0.097),
    "tanh": lambda: Smooth(torch.tanh, 1.0, 0.77),
    "gelu": _gelu,
    "silu": lambda: Smooth(F.silu, 1.1, 0.51, -1.2784645),
    "abs": lambda: Bent(-1.0),
    "square": Square,
    "elu": _elu,
    "selu": lambda: _elu(1.6732632423543772, 1.0507009873554805),
    "celu": lambda alpha=1.0: _elu(alpha, 1.0, 1 / alpha),
    "softplus": _softplus,
    "log_sigmoid": lambda: Smooth(F.logsigmoid, 1.0, 0.251),
    "hardswish": lambda: Smooth(F.hardswish, 1.51, 0.34, -1.5, (-3.0, 3.0)),
    "mish": lambda: Smooth(F.mish, 1.1, 0.65, -1.1924312),
    "erf": lambda: Smooth(torch.erf, 1.13, 0.97),
}

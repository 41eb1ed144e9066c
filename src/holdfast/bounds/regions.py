"""What a threat allows around rows, and the least of a linear function over it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from holdfast.bounds.affine import Window, cropped, whole
from holdfast.norms import Norm, wide

Interval = tuple[Tensor, Tensor]
TRIES = 8  # weights of a half-space that are tried
# What sums of an input's entries in float64 round by, relative to the sizes of their terms.
SUM_UNIT = 2.0**-40


@dataclass(frozen=True)
class Region:
    """The balls around rows x [n, *shape], cut to a box: perturbations of size at most eps [n, 1,
    ...] within [lo, hi], lo <= 0 <= hi; where `slope` [n, *shape] and `at_0` [n] are given, only
    the inputs with <slope, input> + at_0 <= 0 of them. All in float64."""

    norm: Norm
    x: Tensor
    eps: Tensor
    lo: Tensor
    hi: Tensor
    slope: Tensor | None = None
    at_0: Tensor | None = None

    def interval(self) -> Interval:
        """Bounds of every input, those beyond the half-space included."""
        lo, hi = self.norm.hull(self.eps, self.lo, self.hi)
        return self.x + lo, self.x + hi

    def each(self, change: Callable[[Tensor], Tensor]) -> Region:
        given = {key: part for key, part in vars(self).items() if isinstance(part, Tensor)}
        return replace(self, **{key: change(part) for key, part in given.items()})

    def at(self, rows: Tensor) -> Region:
        return self.each(lambda part: part[rows])

    def within(self, slope: Tensor, at_0: Tensor) -> Region:
        """Only inputs with <slope, input> + at_0 <= 0, and those that rounding takes for such."""
        sizes = torch.maximum(*(side.abs() for side in self.interval()))
        slack = SUM_UNIT * ((slope.abs() * sizes).flatten(1).sum(1) + at_0.abs())
        return replace(self, slope=slope, at_0=at_0 - slack)

    def closest(self, x: Tensor) -> Tensor:
        """Where the ball of a single row is closest to inputs x [p, *shape]."""
        eps, lo, hi = (
            part.expand(len(x), *part.shape[1:]) for part in (self.eps, self.lo, self.hi)
        )
        return self.x + self.norm.project(x - self.x, eps, lo, hi)

    def least(self, a: Tensor, rows: Tensor, window: Window) -> Tensor:
        """Below <a, input> over the regions of these rows [p]: [p], of coefficients a of a window;
        without a half-space, the smallest."""
        if self.slope is None or self.at_0 is None:
            return self._over_ball(a, rows, window)
        slope, at_0 = cropped(self.slope, window), self.at_0
        if window and not self.norm.boxed:
            a, slope, window = whole(a, (1, *self.x.shape[1:]), window), self.slope, ()
        if window:  # the rest of a box is free of what is within
            every = torch.arange(len(self.x), device=rows.device)
            rest = self._over_ball(self.slope, every, ()) - self._over_ball(slope, every, window)
            at_0 = at_0 + rest

        slope, at_0 = slope[rows], at_0[rows]

        def bound(a: Tensor, weight: Tensor) -> Tensor:
            """Lagrange's dual: a bound for every weight >= 0."""
            return self._over_ball(a + wide(weight, a) * slope, rows, window) + weight * at_0

        first = a.detach().abs().flatten(1).sum(1) / slope.abs().flatten(1).sum(1).clamp_min(1e-30)
        return bound(a, _best_weight(lambda weight: bound(a.detach(), weight), first))

    def _over_ball(self, a: Tensor, rows: Tensor, window: Window) -> Tensor:
        x, lo, hi = (cropped(part, window)[rows] for part in (self.x, self.lo, self.hi))
        return (a * x).flatten(1).sum(1) + self.norm.least(a, self.eps[rows], lo, hi)


def _best_weight(bound: Callable[[Tensor], Tensor], first: Tensor) -> Tensor:
    """The weights >= 0 [p] of the largest bounds that are met; bounds are concave in them.

    Between two weights, at one of which the bound rises and at the other falls, the next is where
    their tangents meet; while none is known where it falls, it is four times the last one.
    """
    weight = best = low = torch.zeros_like(first)
    highest, high = torch.full_like(first, -torch.inf), torch.full_like(first, torch.inf)
    at_low = at_high = rise = fall = best
    for _ in range(TRIES):
        with torch.enable_grad():
            given = weight.clone().requires_grad_()
            value = bound(given)
            (slope,) = torch.autograd.grad(value.sum(), given)
        value = value.detach()
        better, rises = value > highest, slope > 0
        best, highest = torch.where(better, weight, best), torch.where(better, value, highest)
        low, high = torch.where(rises, weight, low), torch.where(rises, high, weight)
        at_low, at_high = torch.where(rises, value, at_low), torch.where(rises, at_high, value)
        rise, fall = torch.where(rises, slope, rise), torch.where(rises, fall, slope)
        meet = low + (at_high - at_low - fall * (high - low)) / (rise - fall)
        further = torch.where(low > 0, 4 * low, first)
        inside = meet.nan_to_num(0).clamp(low, torch.where(high.isfinite(), high, low))
        weight = torch.where(high.isfinite(), inside, further)
    return best

"""What a threat allows around rows, and the least of a linear function over it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from holdfast.bounds.affine import Window, cropped
from holdfast.norms import Norm

Interval = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Region:
    """The balls around rows x [n, *shape], cut to a box: perturbations of size at most eps [n, 1,
    ...] within [lo, hi], lo <= 0 <= hi. All in float64."""

    norm: Norm
    x: Tensor
    eps: Tensor
    lo: Tensor
    hi: Tensor

    def interval(self) -> Interval:
        lo, hi = self.norm.hull(self.eps, self.lo, self.hi)
        return self.x + lo, self.x + hi

    def each(self, change: Callable[[Tensor], Tensor]) -> Region:
        return Region(self.norm, *map(change, (self.x, self.eps, self.lo, self.hi)))

    def at(self, rows: Tensor) -> Region:
        return self.each(lambda part: part[rows])

    def least(self, a: Tensor, rows: Tensor, window: Window) -> Tensor:
        """The smallest <a, input> over the regions of these rows [p]: [p], of coefficients a of a
        window."""
        x, lo, hi = (cropped(part, window)[rows] for part in (self.x, self.lo, self.hi))
        return (a * x).flatten(1).sum(1) + self.norm.least(a, self.eps[rows], lo, hi)

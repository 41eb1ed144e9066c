"""Images turned and shifted."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from holdfast.threats.images import sample
from holdfast.threats.transform import Transform


@dataclass(frozen=True)
class Rotation(Transform):
    """A turn about the middle, then a shift (Engstrom et al. 2019, arXiv:1712.02779); what comes in
    is the low bound.

    A bound of 0 leaves its parameters out: a turn alone is one number, a shift alone two.
    """

    degrees: float  # the largest turn, either way
    pixels: float = 0.0  # the largest shift, each way along each axis

    def form(self, c: int, h: int, w: int) -> tuple[int, ...]:
        return (len(self._units()),)

    def move(self, image: Tensor, u: Tensor, low: float, high: float) -> Tensor:
        h, w = image.shape[2:]
        angle, down, right = (u @ self._units().to(u))[..., None, None].unbind(1)  # [n, 1, 1] each
        y = torch.arange(h).to(u)[:, None] - (h - 1) / 2 - down
        x = torch.arange(w).to(u) - (w - 1) / 2 - right
        cos, sin = angle.cos(), angle.sin()
        at = torch.stack([cos * y - sin * x + (h - 1) / 2, sin * y + cos * x + (w - 1) / 2], 1)
        return sample(image, at, outside=low)

    def _units(self) -> Tensor:
        """Angle in radians, rows down and columns right of each parameter at 1: [parameters, 3]."""
        units = torch.tensor(
            [math.radians(self.degrees), self.pixels, self.pixels], dtype=torch.float64
        ).diag()
        return units[units.any(1)]

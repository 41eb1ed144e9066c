"""The boundary that is nearest, of those to the best wrong classes."""

from __future__ import annotations

import torch
from torch import Tensor

from holdfast.attacks.attack import Problem


def nearest(p: Problem, d: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """Of the m best wrong classes the one whose boundary, linearised at d, is nearest: its gap and
    gradient, [n], [n, *shape].

    A class whose gradient is zero is out of reach.
    """
    gap, g = p.class_gaps(d, m)
    slope = p.norm.dual(g.flatten(0, 1)).view_as(gap)
    first = torch.where(slope > 0, gap.abs() / slope, torch.inf).argmin(1)
    rows = torch.arange(len(d), device=d.device)
    return gap[rows, first], g[rows, first]

"""alpha-CROWN (Xu et al. 2021, arXiv:2011.13824): slopes of lower lines, chosen by gradients.

Each choice of slopes gives a sound bound, and each pair of a row and what is bounded has slopes of
its own; so the largest bound met on the way counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from holdfast.bounds.relaxations import Lines

RATE, DECAY = 0.1, 0.98  # of Adam, and what each step makes of its rate


def best_slopes(
    bound: Callable[[Mapping[int, Tensor]], Tensor],
    lines: Mapping[int, Lines],
    rows: Tensor,
    steps: int,
) -> Tensor:
    """The largest of the bounds [p] that `bound` gives for slopes, [p, *shape] by node, over some
    steps of Adam.

    Args:
        bound: lower bounds of pairs, each from its own slopes.
        lines: the lines of each activation, [n, *shape].
        rows: the row of each pair, [p].
        steps: how often the slopes change.
    """
    slopes, limits = {}, {}
    for i, line in lines.items():
        if (
            line.least is not None
            and line.most is not None
            and bool((line.least < line.most).any())
        ):
            slopes[i] = line.low[rows].requires_grad_()
            limits[i] = line.least[rows], line.most[rows]
    if not slopes:
        return bound({}).detach()
    adam = torch.optim.Adam(slopes.values(), lr=RATE)
    rate = torch.optim.lr_scheduler.ExponentialLR(adam, DECAY)
    best = torch.full(rows.shape, -torch.inf, dtype=torch.float64, device=rows.device)
    for step in range(steps + 1):
        with torch.enable_grad():
            lower = bound(slopes)
        best = torch.maximum(best, lower.detach())
        if step == steps:
            break
        adam.zero_grad()
        (-lower.sum()).backward(inputs=list(slopes.values()))
        adam.step()
        rate.step()
        with torch.no_grad():
            for i, slope in slopes.items():
                slope.clamp_(*limits[i])
    return best

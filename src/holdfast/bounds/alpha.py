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
BETAS, SMALL = (0.9, 0.999), 1e-8

Slopes = Mapping[int, Tensor]


def best_slopes(
    bound: Callable[[Slopes, Tensor], Tensor],
    lines: Mapping[int, Lines],
    rows: Tensor,
    steps: int,
    enough: float,
) -> dict[int, Tensor]:
    """The slopes [p, *shape], by node, of the largest bounds that some steps of Adam meet.

    Args:
        bound: lower bounds of the pairs at these places [q], each from its own slopes [q, *shape].
        lines: the lines of each activation, [n, *shape].
        rows: the row of each pair, [p].
        steps: how often the slopes change.
        enough: a pair whose bound is above it is left alone.
    """
    best, limits = {}, {}
    for i, line in lines.items():
        if line.least is None or line.most is None or not bool((line.least < line.most).any()):
            continue
        best[i] = line.low[rows]
        limits[i] = line.least, line.most
    at = torch.arange(len(rows), device=rows.device)  # the pairs that still change
    highest = torch.full(rows.shape, -torch.inf, dtype=torch.float64, device=rows.device)
    slopes = {i: slope.clone() for i, slope in best.items()}
    mean, square = ({i: torch.zeros_like(s) for i, s in best.items()} for _ in range(2))
    for step in range(steps + 1 if best else 0):
        with torch.enable_grad():
            given = {i: slope.requires_grad_() for i, slope in slopes.items()}
            lower = bound(given, at)
            grads = torch.autograd.grad(lower.sum(), list(given.values()))
        lower = lower.detach()
        better = lower > highest[at]
        highest[at] = torch.where(better, lower, highest[at])
        going = ~(lower > enough)
        rate = RATE * DECAY**step
        for (i, slope), g in zip(given.items(), grads, strict=True):
            best[i][at[better]] = slope.detach()[better]
            mean[i] = torch.lerp(g, mean[i], BETAS[0])[going]
            square[i] = torch.lerp(g.square(), square[i], BETAS[1])[going]
            first = mean[i] / (1 - BETAS[0] ** (step + 1))
            second = square[i] / (1 - BETAS[1] ** (step + 1))
            stepped = slope.detach()[going] + rate * first / (second.sqrt() + SMALL)
            least, most = (side[rows[at[going]]] for side in limits[i])
            slopes[i] = torch.minimum(torch.maximum(stepped, least), most)
        at = at[going]
        if not len(at):
            break
    return best

"""What is free in a lower bound, such as the slopes of lower lines, chosen by gradients.

alpha-CROWN: Xu et al. 2021, arXiv:2011.13824. Each choice gives a sound bound, and each pair of a
row and what is bounded has one of its own; so the largest bound met on the way counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor

RATE, DECAY = 0.1, 0.98  # of Adam, and what each step makes of its rate
BETAS, SMALL = (0.9, 0.999), 1e-8

Key = TypeVar("Key")


def best_values(
    bound: Callable[[Mapping[Key, Tensor], Tensor], Tensor],
    start: Mapping[Key, Tensor],
    limits: Mapping[Key, tuple[Tensor, Tensor]],
    steps: int,
    enough: float,
) -> dict[Key, Tensor]:
    """The values [p, *shape] of the largest bounds that some steps of Adam meet.

    Args:
        bound: lower bounds of the pairs at these places [q], each from its own values [q, *shape].
        start: where the values begin, [p, *shape].
        limits: between what the values may be, [p, *shape] each.
        steps: how often they change.
        enough: a pair whose bound is above it is left alone.
    """
    best = {key: value.clone() for key, value in start.items()}
    if not best:
        return best
    first = next(iter(best.values()))
    at = torch.arange(len(first), device=first.device)  # the pairs that still change
    highest = torch.full(at.shape, -torch.inf, dtype=first.dtype, device=at.device)
    values = {key: value.clone() for key, value in best.items()}
    mean, square = ({key: torch.zeros_like(v) for key, v in best.items()} for _ in range(2))
    for step in range(steps + 1):
        with torch.enable_grad():
            given = {key: value.requires_grad_() for key, value in values.items()}
            lower = bound(given, at)
            grads = torch.autograd.grad(lower.sum(), list(given.values()))
        lower = lower.detach()
        better = lower > highest[at]
        highest[at] = torch.where(better, lower, highest[at])
        going = ~(lower > enough)
        kept = slice(None) if bool(going.all()) else going  # a slice is no copy
        rate = RATE * DECAY**step
        for (key, value), g in zip(given.items(), grads, strict=True):
            best[key][at[better]] = value.detach()[better]
            mean[key] = torch.lerp(g, mean[key], BETAS[0])[kept]
            square[key] = torch.lerp(g.square(), square[key], BETAS[1])[kept]
            first = mean[key] / (1 - BETAS[0] ** (step + 1))
            second = square[key] / (1 - BETAS[1] ** (step + 1))
            ahead = value.detach()[kept] + rate * first / (second.sqrt() + SMALL)
            least, most = (side[at[kept]] for side in limits[key])
            values[key] = torch.minimum(torch.maximum(ahead, least), most)
        at = at[kept]
        if not len(at):
            break
    return best

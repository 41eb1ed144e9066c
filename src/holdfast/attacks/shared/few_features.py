"""What searches that change few features share."""

from __future__ import annotations

import torch
from torch import Tensor

from holdfast.attacks.attack import Problem


def spent(p: Problem, d: Tensor) -> Tensor:
    """Whether one more feature would be past eps, or no fewer than the best point has: [n]."""
    return p.norm.size(d) + 1 > (p.smallest - 1).minimum(p.eps.flatten())


def random_ends(p: Problem) -> Tensor:
    """A random end of the box for every feature; the other where that changes nothing of what
    counts as one with it."""
    end = torch.where(p.noise("ends").uniform(tuple(p.x.shape[1:])) < 0.5, p.lo, p.hi)
    return torch.where(p.norm.pooled(end.abs()) == 0, p.lo + p.hi, end)


def lowest(order: Tensor, among: Tensor, count: Tensor) -> Tensor:
    """Of the units `among` [n, u] the count [n] that are lowest in order: [n, u] bool."""
    longest = min(max(count.tolist(), default=0), order.shape[1])
    value, at = order.masked_fill(~among, torch.inf).topk(longest, 1, largest=False)
    chosen = (torch.arange(longest, device=order.device) < count[:, None]) & value.isfinite()
    return torch.zeros_like(among).scatter(1, at, chosen)

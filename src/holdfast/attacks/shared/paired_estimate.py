"""A gradient estimated from the margin at pairs of points on either side of the current one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from holdfast.attacks.attack import Problem
from holdfast.errors import SpecError


def check_pairs(attack: Any) -> None:
    """Refuse an odd number of `samples`."""
    if attack.samples % 2:
        name = type(attack).__name__.lower()
        raise SpecError(f"{name} has samples {attack.samples}, but they come in pairs.")


def ascent(p: Problem, d: Tensor, u: Tensor, share: float) -> Tensor:
    """The direction in which the margin rises at d, [n, *shape], of any length.

    It is asked at d, and at d + v and d - v for v = u [n, m, *shape] times this share of the box's
    width, where a feature may change: 1 + 2 m forwards a row.
    """
    u = u * (p.hi > p.lo)[:, None]
    reach, d = share * p.width * u, d[:, None]
    up, down = p.probes(torch.cat([d, d + reach, d - reach], 1), "margin")[:, 1:].chunk(2, 1)
    return torch.einsum("nm,nm...->n...", up - down, u)

"""What searches that change one feature after the other share."""

from __future__ import annotations

from torch import Tensor

from holdfast.attacks.attack import Problem


def spent(p: Problem, d: Tensor) -> Tensor:
    """Whether one more feature would be past eps, or no fewer than the best point found has: [n]."""
    return p.norm.size(d) + 1 > (p.best()[1] - 1).minimum(p.eps.flatten())

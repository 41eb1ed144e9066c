"""VFGA: one more feature a step, by the best of random moves of the two features that promise
most."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from holdfast.attacks.attack import LOSSES, Access, Attack, Problem, option, wide
from holdfast.attacks.shared.few_features import spent


@dataclass(frozen=True)
class VFGA(Attack):
    """Voting folded Gaussian attack (Hajri et al. 2020, arXiv:2011.12423, algorithm 2).

    A row has at most as many changed features as there are steps.

    Cost: one forward and one backward a step and row, and two forwards a draw; one forward for the
    last point.
    Differs from the paper: a row whose next feature would be one too many (past eps, or no fewer
    than the best point found has) begins again at x with fresh draws.
    """

    needs = Access.GRADIENTS
    norms = frozenset({"l0"})
    bounded = False

    steps: int = option(100, "features changed, beginnings anew included")
    draws: int = option(
        10, "moves tried of the feature to raise, and as many of that to lower", at_least=1
    )
    loss: str = option("ce", "loss that is ascended", choices=LOSSES)

    def step(self, p: Problem, s: Tensor, t: int) -> Tensor:
        _, g = p.gradient(s, self.loss)
        lengths = p.noise("move").normal((2 * self.draws,), s.dtype).abs()
        d, value = s, torch.full_like(lengths[:, 0], -torch.inf)
        for room, length in ((p.hi, lengths[:, 0::2]), (p.lo, lengths[:, 1::2])):
            gain = (g * room).masked_fill(s != 0, -torch.inf).flatten(1)
            at = gain.argmax(1, keepdim=True)
            moves = torch.zeros_like(gain)[:, None].expand(-1, self.draws, -1)
            far = (room.flatten(1).gather(1, at) * length)[..., None]
            moves = moves.scatter(2, at[:, None].expand(-1, self.draws, -1), far).view(
                *length.shape, *s.shape[1:]
            )
            tried = (s[:, None] + moves).clamp(p.lo[:, None], p.hi[:, None])
            found, first = p.probes(tried, self.loss).max(1)
            up = found > value
            best = tried[torch.arange(len(s), device=s.device), first]
            d, value = torch.where(wide(up, d), best, d), torch.where(up, found, value)
        return torch.where(wide(spent(p, d), d), 0, d)

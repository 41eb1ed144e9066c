"""Sparse-RS: random search over which few features change, each to an end of the box."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from holdfast.attacks.attack import Access, Attack, Problem, option
from holdfast.attacks.shared.few_features import lowest, random_ends
from holdfast.attacks.shared.random_search import Best, begin, keep_better

# after which of 10,000 queries the share of the features that are swapped is divided by what
_DIVISORS = {0: 2, 50: 4, 200: 5, 500: 6, 1000: 8, 2000: 10, 4000: 12, 6000: 15, 8000: 20}


@dataclass(frozen=True)
class SparseRS(Attack):
    """Sparse-RS (Croce et al. 2022, arXiv:2006.12834, algorithm 1 as in its section on L0).

    A step swaps a share alpha of the changed features for others, at random ends of the box.

    Cost: one forward a step and row, and one for the start.
    Differs from the paper: eps counts features, so the channels of a pixel are chosen one by one; a
    feature at an end of the box goes to the other; a targeted goal ascends its margin
    too, not its cross-entropy. The paper's alpha is 0.3, for a targeted goal 0.1.
    """

    needs = Access.SCORES
    norms = frozenset({"l0"})

    steps: int = option(10000, "proposals")
    alpha: float = option(0.3, "share of the set that is swapped first", at_least=0, at_most=1)
    schedule: int = option(10000, "queries over which it falls to alpha / 20", at_least=1)

    def start(self, p: Problem) -> Best:
        chosen = lowest(_order(p, "start"), (p.hi > p.lo).flatten(1), _most(p))
        return begin(p, torch.where(chosen.view_as(p.x), random_ends(p), 0))

    def step(self, p: Problem, s: Best, t: int) -> Best:
        held, free, most = (s.d != 0).flatten(1), (p.hi > p.lo).flatten(1), _most(p)
        count = (self.share(t) * most).long().clamp_min(1).minimum(most)
        out = lowest(_order(p, "out"), held, count)
        # from the set only where no others are left
        into = lowest(_order(p, "into") + held, free, count)
        d = torch.where(into.view_as(s.d), random_ends(p), torch.where(out.view_as(s.d), 0, s.d))
        return keep_better(p, s, d)

    def share(self, t: int) -> float:
        """The share of the set that step t swaps."""
        at = int(t / self.schedule * 10000)
        return self.alpha / max([by for mark, by in _DIVISORS.items() if at > mark], default=1)


def _order(p: Problem, name: str) -> Tensor:
    """A random number a feature: [n, f]."""
    return p.noise(name).uniform((p.features,), torch.float64)


def _most(p: Problem) -> Tensor:
    """How many features may change: [n]."""
    return p.eps.flatten().clamp_max(p.features).long()

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
    Differs from the paper: unless the threat counts pixels, the channels of one are chosen one by
    one; a feature at an end of the box goes to the other, of a pixel where all channels are; a
    targeted goal ascends its margin too, not its cross-entropy. The paper's alpha is 0.3, for a
    targeted goal 0.1.
    """

    needs = Access.SCORES
    norms = frozenset({"l0"})
    groups = True

    steps: int = option(10000, "proposals")
    alpha: float = option(0.3, "share of the set that is swapped first", at_least=0, at_most=1)
    schedule: int = option(10000, "queries over which it falls to alpha / 20", at_least=1)

    def start(self, p: Problem) -> Best:
        free = _free(p)
        chosen = lowest(_order(p, "start", free), free, _most(p, free))
        return begin(p, torch.where(p.norm.spread(chosen, p.x), random_ends(p), 0))

    def step(self, p: Problem, s: Best, t: int) -> Best:
        held, free = p.norm.changed(s.d), _free(p)
        most = _most(p, free)
        count = (self.share(t) * most).long().clamp_min(1).minimum(most)
        out = lowest(_order(p, "out", free), held, count)
        # from the set only where no others are left
        into = lowest(_order(p, "into", free) + held, free, count)
        into, out = (p.norm.spread(chosen, s.d) for chosen in (into, out))
        return keep_better(p, s, torch.where(into, random_ends(p), torch.where(out, 0, s.d)))

    def share(self, t: int) -> float:
        """The share of the set that step t swaps."""
        at = int(t / self.schedule * 10000)
        return self.alpha / max([by for mark, by in _DIVISORS.items() if at > mark], default=1)


def _free(p: Problem) -> Tensor:
    """Which features, or pixels, may change: [n, u] bool."""
    return p.norm.changed((p.hi > p.lo).to(p.x))


def _order(p: Problem, name: str, units: Tensor) -> Tensor:
    """A random number for each of the units [n, u]."""
    return p.noise(name).uniform((units.shape[1],), torch.float64)


def _most(p: Problem, units: Tensor) -> Tensor:
    """How many of the units [n, u] may change: [n]."""
    return p.eps.flatten().clamp_max(units.shape[1]).long()

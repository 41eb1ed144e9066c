"""The iteration that attacks meant for other models share: signed or scaled steps along a running
mean of gradients.

Dong et al. 2018 (arXiv:1710.06081), algorithm 1. Each of these attacks has its own idea of the
gradient; run on a `Surrogate` what it finds is tried on the model under test. Their loss `ce` is a
log-odds, which weighs the copies of an input alike, where the cross-entropy of the papers forgets
those that the model is sure of.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from holdfast.attacks.attack import Access, Attack, Problem, State, option, wide


class MomentumState(NamedTuple):
    d: Tensor  # [n, *shape], always legal
    v: Tensor  # the running sum of gradients, each scaled to L1 size 1


def accumulated(v: Tensor, g: Tensor, decay: float) -> Tensor:
    """The running sum after gradient g, of which this share of the past is kept."""
    length = wide(g.flatten(1).abs().sum(1), g)
    return decay * v + g / torch.where(length > 0, length, 1)


@dataclass(frozen=True)
class MomentumAttack(Attack):
    """An attack whose steps follow the gradients that it has in mind."""

    needs = Access.GRADIENTS
    norms = frozenset({"linf", "l2"})

    steps: int = option(10, "gradient steps")
    step_size: float = option(0.1, "fraction of eps", above=0)
    decay: float = option(1.0, "share of the past gradients kept", at_least=0)

    def start(self, p: Problem) -> State:
        """The input itself; a restart begins elsewhere in the ball."""
        return MomentumState(p.after_first(p.random_start), torch.zeros_like(p.x))

    def follow(self, p: Problem, s: MomentumState, g: Tensor) -> MomentumState:
        """One step along the gradient g and those before."""
        v = accumulated(s.v, g, self.decay)
        return MomentumState(p.project(s.d + p.stride(v, self.step_size)), v)

"""What the head means: how scores become a decision, and how far that decision is from falling."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Classes:
    """One of k classes, the largest score wins. (A one-logit head is served as two classes by its target.)"""

    k: int

    def predict(self, z: Tensor) -> Tensor:
        """The decision on scores z [n, k]: [n] int64."""
        return z.argmax(1)

    def margin(self, z: Tensor, y: Tensor) -> Tensor:
        """z_y - max over the other classes, positive while the model is right: [n]."""
        return z.gather(1, y[:, None])[:, 0] - without(z, y).amax(1)

    def rank(self, z: Tensor, y: Tensor, r: int) -> Tensor:
        """The r-th best wrong class, from 1: [n]."""
        return torch.sort(without(z, y), dim=1, descending=True, stable=True).indices[:, r - 1]


def without(z: Tensor, c: Tensor) -> Tensor:
    """Scores with class c [n] at -inf. (A product with a 0/1 mask would let 0 win over negative scores.)"""
    return z.scatter(1, c[:, None], -torch.inf)

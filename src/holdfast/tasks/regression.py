"""Numbers, each right within a tolerance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from holdfast.errors import SpecError
from holdfast.tasks.task import TaskWithTruth


@dataclass(frozen=True)
class Regression(TaskWithTruth):
    """k numbers, each within `tolerance` of the truth; the margin is tolerance - max |f - y|.

    Raises:
        SpecError: the tolerance is not a finite number above 0.
    """

    tolerance: float

    def __post_init__(self) -> None:
        t = self.tolerance
        if isinstance(t, bool) or not isinstance(t, (int, float)) or not 0 < t < math.inf:
            raise SpecError(
                f"the tolerance of a regression is {t!r}, but it is a finite number above 0."
            )

    def recast(self, z: Tensor, truth: Tensor) -> Tensor:
        off = z - truth
        return torch.cat(
            [torch.zeros_like(z[:, :1]), off - self.tolerance, -off - self.tolerance], 1
        )

    def outputs(self, scores: Tensor, truth: Tensor) -> Tensor:
        high, low = scores[:, 1:].chunk(2, 1)
        return (high - low) / 2 + truth

    def wrong_answers(self, names: Sequence[str]) -> list[str]:
        return [f"{name} too {side}" for side in ("high", "low") for name in names]

"""Labels that hold or do not, several at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from holdfast.tasks.task import TaskWithTruth


@dataclass(frozen=True)
class MultiLabel(TaskWithTruth):
    """k labels, each 0 or 1; an output above 0 says 1. Right while all k are; the margin is the
    least signed score."""

    logits: ClassVar[bool] = True

    def recast(self, z: Tensor, truth: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(z[:, :1]), (1 - 2 * truth) * z], 1)

    def odd(self, y: np.ndarray) -> tuple[str, np.ndarray]:
        return "0 or 1", (y != 0) & (y != 1)

    def outputs(self, scores: Tensor, truth: Tensor) -> Tensor:
        return (1 - 2 * truth) * scores[:, 1:]

    def wrong_answers(self, names: Sequence[str]) -> list[str]:
        return [f"{name} wrong" for name in names]

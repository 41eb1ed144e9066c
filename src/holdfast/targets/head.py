"""The head of a model: what its outputs are, and so what scores are made of."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from holdfast.tasks import TaskWithTruth

SOFTMAX, SIGMOID, LOG_SOFTMAX = "softmax", "sigmoid", "log_softmax"
LINEAR = "linear"  # no activation: an output that has no bounds


@dataclass(frozen=True)
class Head:
    """What the outputs of a model are."""

    probabilities: bool | None = None  # of which scores are the logits; None: not known
    said: bool = False  # the user or the model itself says which of both
    ending: str | None = None  # the activation at the end, or `LINEAR`; None: not seen
    single: bool = False  # there is one output, served as the two classes [0, z]
    truth_task: TaskWithTruth | None = (
        None  # says what is right, where it is no class; see targets/truth.py
    )
    odds: float = 0.0  # log odds of the probability from which on class 1 of two is decided for

    @property
    def reads(self) -> bool:
        """Whether scores are the logits before the last activation."""
        if self.ending not in (SOFTMAX, SIGMOID, LOG_SOFTMAX):
            return False
        if self.single and self.ending == SOFTMAX:  # which is 1 whatever the logit
            return False
        taken = self.probabilities is not False
        if self.truth_task is not None:  # whose outputs are judged one by one
            return self.truth_task.logits and self.ending == SIGMOID and taken
        return taken or self.ending == LOG_SOFTMAX


def shifted(z: Tensor, odds: float) -> Tensor:
    """Scores [n, 2] of which the second is the higher one exactly where class 1 has at least these
    log odds, but for what rounding adds."""
    slack = 4 * torch.finfo(z.dtype).eps * (1 + abs(odds) + z.detach().abs().sum(1))
    return torch.stack([z[:, 0], z[:, 1] - (odds - slack)], 1)

"""What the head means: how scores become a decision, and how far that decision is from falling."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from holdfast import spec
from holdfast.decisions import REFUSED
from holdfast.errors import SpecError
from holdfast.losses import without


@dataclass(frozen=True)
class Classes:
    """One of k classes, the largest score wins. (A one-logit head is served as two classes by its
    target.)

    A model that `refuses` has one score more, the last, which wins where it will not answer. To
    refuse is no right answer to a clean input; but an adversary wants a wrong answer, and for it to
    be refused is as bad as the right one.
    """

    k: int
    refuses: bool = False

    def predict(self, z: Tensor) -> Tensor:
        """The decision on scores z [n, k], or [n, k + 1]: [n] int64, `REFUSED` for a refusal."""
        label = z.argmax(1)
        return label if z.shape[1] == self.k else torch.where(label < self.k, label, REFUSED)

    def against(self, z: Tensor, y: Tensor) -> Tensor:
        """Scores [n, k] as an adversary of class y [n] meets them: y's is the refusal's, where that
        is higher."""
        if not self.refuses or z.shape[1] == self.k:
            return z
        z, refusal = z.split([self.k, 1], 1)
        return z.scatter(1, y[:, None], z.gather(1, y[:, None]).maximum(refusal))

    def margin(self, z: Tensor, y: Tensor) -> Tensor:
        """z_y - max over the other classes, positive while the model is right, or refuses: [n]."""
        z = self.against(z, y)
        return z.gather(1, y[:, None])[:, 0] - without(z, y).amax(1)

    def rank(self, z: Tensor, y: Tensor, r: int) -> Tensor:
        """The r-th best wrong class, from 1: [n]."""
        return torch.sort(
            without(self.against(z, y), y), dim=1, descending=True, stable=True
        ).indices[:, r - 1]


def odds(p: Tensor) -> Tensor:
    """Probabilities as logits."""
    least = torch.finfo(p.dtype).tiny
    return p.clamp_min(least).log() - (1 - p).clamp_min(least).log()


class TaskWithTruth(ABC):
    """A head whose answer is right or wrong only against a truth of several numbers, and not one of
    k classes.

    `recast` says it in scores again, of one class for "right" and of others for
    each kind of wrong answer. So every loss and every attack works as it is, and the margin of
    class 0 is that of the answer.
    """

    logits: ClassVar[bool] = False  # the outputs are logits of labels, or probabilities

    @abstractmethod
    def recast(self, z: Tensor, truth: Tensor) -> Tensor:
        """Outputs z and truths, [n, k] each, as scores [n, 1 + r]: 0 for "right", above it where
        wrong; affine in z."""

    @abstractmethod
    def outputs(self, scores: Tensor, truth: Tensor) -> Tensor:
        """The outputs of which these are the recast scores: [n, k]."""

    @abstractmethod
    def wrong_answers(self, names: Sequence[str]) -> list[str]:
        """What each other class means, with these names of the outputs: r texts."""

    def __str__(self) -> str:
        return spec.write(self, whole=True).removesuffix("()")


@dataclass(frozen=True)
class MultiLabel(TaskWithTruth):
    """k labels, each 0 or 1; an output above 0 says 1. Right while all k are; the margin is the
    least signed score."""

    logits: ClassVar[bool] = True

    def recast(self, z: Tensor, truth: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(z[:, :1]), (1 - 2 * truth) * z], 1)

    def outputs(self, scores: Tensor, truth: Tensor) -> Tensor:
        return (1 - 2 * truth) * scores[:, 1:]

    def wrong_answers(self, names: Sequence[str]) -> list[str]:
        return [f"{name} wrong" for name in names]


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


TASKS: dict[str, Callable[..., TaskWithTruth]] = {
    "multilabel": MultiLabel,
    "regression": Regression,
}


def parse(text: str | None) -> TaskWithTruth | None:
    """The head that `multilabel` or `regression(tolerance=0.1)` names; None for `classes`, and
    where none is said.

    Raises:
        SpecError: there is no head of this name, or an option is wrong.
    """
    if text is None or text.strip() == "classes":
        return None
    return spec.build(text, TASKS, "task")


def silent(label: Tensor) -> Tensor:
    """Where decisions [n] are no answer, and no refusal either: [n] bool."""
    return (label < 0) & (label != REFUSED)

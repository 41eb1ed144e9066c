"""What the head means: how scores become a decision, and how far that decision is from falling."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from holdfast import spec
from holdfast.decisions import REFUSED
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


def silent(label: Tensor) -> Tensor:
    """Where decisions [n] are no answer, and no refusal either: [n] bool."""
    return (label < 0) & (label != REFUSED)

"""Models of two classes that decide for class 1 at another probability than a half."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from holdfast.errors import InputError
from holdfast.targets.adapter import said_by
from holdfast.targets.batch import Rows
from holdfast.targets.head import shifted
from holdfast.targets.target import Access, Pullback, Target
from holdfast.targets.trees import Trees
from holdfast.targets.wrappers import Around


class Threshold(Around):
    """A model that decides for class 1 where its probability of it is at least `threshold`.

    Scores are those of the model, the second one shifted so that it is the higher one exactly
    there: by the log odds of the threshold, less what rounding adds, so that a probability equal to
    the threshold decides for class 1 too. Gradients are the model's own.

    Args:
        inner: a model of two classes.
        threshold: between 0 and 1.

    Raises:
        InputError: the threshold is outside, or the model has not two classes and their scores.
    """

    def __init__(self, inner: Target, threshold: float) -> None:
        if not 0 < threshold < 1:
            raise InputError(
                f"the threshold is {threshold:g}, but it is a probability of class 1, between 0 "
                "and 1."
            )
        self.threshold = float(threshold)
        self.odds = math.log(threshold) - math.log1p(-threshold)
        super().__init__(inner)

    def _check(self) -> None:
        if self.inner.head.truth_task is not None:
            raise InputError(
                f"a threshold is of a model of two classes, not of {self.inner.head.truth_task}."
            )
        if self.inner.shape is None:
            return
        if self.inner.access < Access.SCORES:
            raise InputError(
                "a threshold is one of probabilities, and the model gives labels alone."
            )
        if not said_by(getattr(self.inner, "model", None)).log_odds:
            raise InputError(
                "a threshold is one of probabilities, and the model's scores are not their log "
                "odds; wrap a function that returns its predict_proba, or calibrate the model "
                "(scikit-learn's CalibratedClassifierCV)."
            )
        if self.inner.task.k != 2 or self.inner.task.refuses:
            also = ", or to refuse" * self.inner.task.refuses
            raise InputError(
                "a threshold decides between two classes, but the model has "
                f"{self.inner.task.k} to choose from{also}."
            )

    def scores(self, x: Rows) -> Tensor:
        return self._shifted(self.inner.scores(x))

    def labels(self, x: Rows) -> Tensor:
        return Target.labels(self, x)

    def linearize(self, x: Rows) -> tuple[Tensor, Pullback]:
        z, pullback = self.inner.linearize(x)
        return self._shifted(z), pullback

    def pull(self, x: Rows, cotangent: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        z, g = self.inner.pull(x, lambda z: cotangent(self._shifted(z)))
        return self._shifted(z), g

    def confidence(self, z: Tensor) -> Tensor:
        chances = torch.stack([z[:, 0], z[:, 1] + self.odds], 1).softmax(1)
        return chances.gather(1, z.argmax(1, keepdim=True))[:, 0]

    def network(self) -> nn.Module:
        shift = _Shift(torch.tensor([0.0, -self.odds]))
        return nn.Sequential(
            self.inner.network(), shift.to(self.batcher.device, self.batcher.dtype)
        )

    def of_trees(self, trees: Trees) -> Trees:
        """The trees of the inner model, whose sums decide as this one does."""
        if (trees.value >= 0).all() and np.allclose(trees.value.sum(1), 1):
            # votes, which are probabilities: p1 (1 - t) is held against p0 t
            by = np.array([self.threshold, 1 - self.threshold])
            found = replace(trees, value=trees.value * by, base=trees.base * by)
        else:
            found = replace(trees, base=trees.base - np.array([0.0, self.odds]))
        most = abs(found.base).max() + abs(found.value).max() * (1 + found.tree.max(initial=0))
        return replace(found, rounding=trees.rounding + 1e-6 * float(most))

    def describe(self) -> dict[str, object]:
        return super().describe() | {"threshold": self.threshold}

    def _shifted(self, z: Tensor) -> Tensor:
        return shifted(z, self.odds)


class _Shift(nn.Module):
    """Scores [n, 2] plus a constant."""

    by: Tensor

    def __init__(self, by: Tensor) -> None:
        super().__init__()
        self.register_buffer("by", by)

    def forward(self, z: Tensor) -> Tensor:
        return z + self.by

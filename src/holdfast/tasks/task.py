"""What the head means: how scores become a decision, and how far that decision is from falling."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from holdfast import spec
from holdfast.decisions import REFUSED
from holdfast.errors import InputError, SpecError
from holdfast.losses import without
from holdfast.tasks.form import Form


@dataclass(frozen=True)
class Classes:
    """One of k classes, the largest score wins. (A one-logit head is served as two classes by its
    target.)

    A model that `refuses` has one score more, the last, which wins where it will not answer. To
    refuse is no right answer to a clean input; but an adversary wants a wrong answer, and for it to
    be refused is as bad as the right one.

    Where a wrong answer can be wrong in part, such as one object of several not found, `enough` is
    above 0: a search goes on past its first success, to a margin of -enough, and keeps the point of
    the lowest margin in place of the smallest.
    """

    k: int
    refuses: bool = False
    enough: float = 0.0

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

    def settled(self, broken: Tensor, margin: Tensor) -> Tensor:
        """Which rows [n] a search has no more to gain from: broken ones, down to this margin."""
        return broken & (margin <= -self.enough) if self.enough else broken

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
    """What is right where that is not one of k classes, but the model's outputs held against a
    truth of the row: several numbers, boxes, a mask.

    `recast` says it in scores again, of one class for "right" and of others for each kind of wrong
    answer. So every loss and every attack works as it is, and the margin of class 0 is that of the
    answer. Outputs are flat, [n, k]; of a task that is `fitted` to a model, `form` says what they
    were.
    """

    logits: ClassVar[bool] = False  # the outputs are logits of labels, or probabilities
    structured: ClassVar[bool] = False  # a model may give several tensors, or lists of dicts
    # what an adversary is held to depends on the clean outputs too: see `since`
    relative: ClassVar[bool] = False
    enough: ClassVar[float] = 0.0  # see `Classes`
    # a row that is not broken is answered at its lowest margin under attack: see `margins`
    has_measure: ClassVar[bool] = False
    losses: ClassVar[Sequence[str]] = ()  # of outputs, which an attack may name: see `ascending`
    form: Form = Form()

    def fitted(self, form: Form) -> Self:
        """The same task for a model with outputs of this form.

        Raises:
            InputError: it cannot read such outputs.
        """
        own = copy.copy(self)
        object.__setattr__(own, "form", form)  # of a frozen dataclass
        return own

    @property
    def truth_form(self) -> tuple[int, ...]:
        """The shape of a row's truth."""
        return self.form.one

    @property
    def numbers(self) -> int:
        """How many numbers a row's outputs become while they are held to its truth."""
        return math.prod(self.form.one)

    def pick(self, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Those of a model's outputs that count."""
        return outputs

    def truths(self, y: np.ndarray, start: int, name: str) -> np.ndarray:
        """The truths y [n, ...] of rows from `start` of data of this name, as they go with their
        rows: [n, ...] of numbers. Here one finite number for each output: [n, k].

        Raises:
            InputError: they are not.
        """
        form = self.form.one
        # of as many numbers in another order
        other = y.ndim > 2 and len(form) > 1 and y.shape[1:] != form
        if y.dtype.kind not in "biuf" or math.prod(y.shape[1:]) != math.prod(form) or other:
            sizes = tuple(map(str, form))
            raise InputError(
                f"the labels of {name} are {y.dtype} of shape {list(y.shape[1:])} a row, but the "
                f"model gives {' x '.join(sizes)} outputs, and {self} takes a truth for each: y "
                f"[{', '.join(('n', *sizes))}]."
            )
        expected, wrong = self.odd(y)
        if wrong.any():
            row = int(np.argmax(wrong.reshape(len(y), -1).any(1)))
            raise InputError(
                f"row {start + row} of {name} has the truth {y[row].tolist()}, but {self} takes "
                f"{expected} for each output."
            )
        return y.reshape(len(y), -1)

    def odd(self, y: np.ndarray) -> tuple[str, np.ndarray]:
        """What a truth for each output must be, and where those of y [n, ...] are not: bool."""
        return "a finite number", ~np.isfinite(y)

    def empty(self, truth: Tensor) -> Tensor:
        """Which truths [n, ...] leave an adversary nothing to do, so that their rows are skipped:
        [n] bool."""
        return torch.zeros(len(truth), dtype=torch.bool, device=truth.device)

    @property
    def lacking(self) -> str:
        """What such a truth does not have."""
        return "truth"

    def mistaken(self, truth: Tensor, z: Tensor) -> str:
        """What clean outputs z [n, k] show to be wrong with how the truths [n, ...] are written; ""
        where they show nothing."""
        return ""

    def since(self, truth: Tensor, z: Tensor) -> Tensor:
        """The truths [n, ...] that an adversary is held to, where clean outputs are z [n, k]."""
        return truth

    @abstractmethod
    def recast(self, z: Tensor, truth: Tensor) -> Tensor:
        """Outputs z [n, k] and truths [n, ...] as scores [n, 1 + r]: 0 for "right", above it where
        wrong. Gradients flow through z."""

    def outputs(self, scores: Tensor, truth: Tensor) -> Tensor | None:
        """The outputs [n, k] of which these are the recast scores; None where scores do not say
        them, and the model is asked again."""
        return None

    def sum_to_one(self, z: Tensor) -> bool:
        """Whether outputs z [n, k] within [0, 1] are seen to be probabilities of several classes,
        whose log odds are the same decisions."""
        return False

    def answers(self, z: Tensor) -> Tensor:
        """What a table of samples keeps of outputs z [n, k]: [n, w]."""
        return z

    def kept(self, truth: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """What it keeps of truths [n, ...] of rows with outputs z [n, k], and of these: [n, v],
        [n, w]."""
        return truth.flatten(1), self.answers(z)

    def margins(self, truth: np.ndarray, answers: np.ndarray) -> np.ndarray:
        """Of a task that `has_measure` the margins of rows with these truths [n, v] and answers
        [n, w]: [n]."""
        raise NotImplementedError

    def objects_at(self, truth: Tensor) -> Tensor:
        """Which pixels of images with these truths [n, ...] are an object's: [n, H, W] bool.

        Raises:
            SpecError: the task knows no objects.
        """
        raise SpecError(f"the truths of {self} hold no objects in an image.")

    def share(self, z: Tensor, truth: Tensor) -> Tensor:
        """How much of each row's truth [n, ...] outputs z [n, k] have right: [n] in [0, 1]."""
        return (self.recast(z, truth)[:, 1:] <= 0).all(1).double()

    def ascending(self, loss: str) -> Self:
        """The same task, whose scores have the gradient of one of its `losses`."""
        return self

    def same(self, said: np.ndarray, found: np.ndarray) -> np.ndarray:
        """Whether two answers [n, w] are one, but for what devices may change: [n] bool."""
        alike = np.isclose(said, found, rtol=1e-4, atol=1e-5, equal_nan=True)
        return np.all(alike, axis=1)

    @abstractmethod
    def wrong_answers(self, names: Sequence[str]) -> list[str]:
        """What each other class means, with these names of the outputs: r texts."""

    def __str__(self) -> str:
        return spec.write(self, whole=True).removesuffix("()")


def silent(label: Tensor) -> Tensor:
    """Where decisions [n] are no answer, and no refusal either: [n] bool."""
    return (label < 0) & (label != REFUSED)

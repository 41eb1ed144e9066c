"""Tasks other than one of k classes, as classes: an answer is "right", or wrong in one of several
respects."""

from __future__ import annotations

import math

import numpy as np
import torch

from holdfast.data import Source
from holdfast.errors import InputError, SpecError
from holdfast.targets.target import Target
from holdfast.targets.truth import TRUTH, WithTruth
from holdfast.tasks import MultiLabel
from holdfast.threats.threat import Targeted, Threat


def with_truths(target: Target, source: Source, threat: Threat) -> tuple[Target, Source]:
    """A model and data, with the truth in the context of each row if the model's task wants it.

    Raises:
        InputError: the truths are not those of such a task, or not as many as the model's outputs.
        SpecError: the threat aims at a class.
    """
    if target.head.truth_task is None:
        return target, source
    if isinstance(threat.goal, Targeted):
        raise SpecError(
            f"{threat} aims at a class, but {target.head.truth_task} has none; leave the "
            "target out."
        )
    target.bind(source.shape)
    around = WithTruth(target)
    return around, Truths(source, around)


def outputs(
    target: WithTruth, truth: torch.Tensor, scores: torch.Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """The truths and the model's outputs of rows with these scores: [n, k] each."""
    return truth.numpy(), target.rule.outputs(scores, truth.to(scores)).numpy()


class Truths(Source):
    """Each row of `inner` with its truth [k] as context; the label of all is 0: "right"."""

    def __init__(self, inner: Source, target: WithTruth) -> None:
        self.inner, self.rule, self.k = inner, target.rule, target.k
        self.form: tuple[int, ...] = getattr(target.inner, "form", ())
        self.name, self.shape, self.inputs = inner.name, inner.shape, inner.inputs
        self.remarks, self.loading, self.columns = inner.remarks, inner.loading, inner.columns
        names, word = inner.class_names, "label" if isinstance(self.rule, MultiLabel) else "output"
        if names is None or len(names) != self.k:
            names = [f"{word} {j}" for j in range(self.k)]
        self.class_names = ("right", *self.rule.wrong_answers(names))
        self.last = (-1, -1), np.zeros(0), np.dtype(np.float32)  # read last: none yet

    def __len__(self) -> int:
        return len(self.inner)

    def rows(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        x, y = self.inner.rows(start, stop)
        # `context` asks for the truths of the same rows next
        self.last = (start, stop), np.asarray(y), x.dtype
        return x, np.zeros(len(x), np.int64)

    def context(self, start: int, stop: int) -> dict[str, np.ndarray]:
        if self.last[0] != (start, stop):
            self.rows(start, stop)
        _, y, dtype = self.last
        self._check(y, start)
        truth = y.reshape(len(y), self.k).astype(dtype)
        return {**self.inner.context(start, stop), TRUTH: truth}

    def _check(self, y: np.ndarray, start: int) -> None:
        """Raises InputError: not the truths of k outputs."""
        task = self.rule
        # of as many numbers in another order
        other = y.ndim > 2 and len(self.form) > 1 and y.shape[1:] != self.form
        if y.dtype.kind not in "biuf" or math.prod(y.shape[1:]) != self.k or other:
            form = self.form or (self.k,)
            raise InputError(
                f"the labels of {self.name} are {y.dtype} of shape {list(y.shape[1:])} a row, but "
                "the model gives "
                f"{' x '.join(map(str, form))} outputs, and {task} takes a truth for each: y "
                f"[n, {', '.join(map(str, form))}]."
            )
        wrong = ~np.isfinite(y) if not isinstance(self.rule, MultiLabel) else (y != 0) & (y != 1)
        if wrong.any():
            row = int(np.argmax(wrong.reshape(len(y), -1).any(1)))
            expected = "0 or 1" if isinstance(self.rule, MultiLabel) else "a finite number"
            raise InputError(
                f"row {start + row} of {self.name} has the truth {y[row].tolist()}, but {task} "
                f"takes {expected} for each output."
            )

"""Heads that are right or wrong only against a truth: it comes with each row, in the context of the
batch, and the model is asked whether it is right."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from holdfast.errors import InputError, SpecError
from holdfast.targets.batch import Batch, Rows
from holdfast.targets.head import Head
from holdfast.targets.target import Access, Inputs, Pullback, Target
from holdfast.targets.wrappers import (
    Around,
    Ensemble,
    ExpectationOverTransformation,
    innermost,
)
from holdfast.tasks import Classes, Form, TaskWithTruth

TRUTH = "truth"  # the column of the context: [n, ...]


class WithTruth(Around):
    """A model of k outputs as a classifier whose class 0 is "right": see `holdfast.tasks`.

    The context of each batch holds the truths, as the task's `truths` makes them.

    ```python
    judged = WithTruth(holdfast.wrap(net, shape=(1, 28, 28), task="multilabel"))
    rows, right = judged.with_truths(Batch(x), y), torch.zeros(n).long()
    found = run(parse("apgd"), judged, rows, right, Threat.linf(0.1))
    ```

    Raises:
        InputError: the model gives labels alone, or answers are pooled over draws or members.
    """

    def __init__(self, inner: Target) -> None:
        if inner.head.truth_task is None or inner.shape is None:
            raise InputError(
                "a truth goes with a bound model whose task says what is right: wrap(..., "
                "task=...)."
            )
        self.k = inner.task.k
        form = innermost(inner).form
        self.said = inner.head.truth_task
        self.rule: TaskWithTruth = self.said.fitted(
            form if form.parts else Form((("", (self.k,)),))
        )
        if inner.access < Access.SCORES:
            raise InputError(f"the model gives labels alone, but {self.rule} needs its outputs.")
        at = inner
        while isinstance(at, Around):
            if isinstance(at, (Ensemble, ExpectationOverTransformation)):
                raise InputError(
                    "the answers of several draws or members are pooled as classes, not as "
                    f"{self.rule}."
                )
            at = at.inner
        super().__init__(inner)

    @property
    def head(self) -> Head:
        return replace(self.inner.head, truth_task=None)

    @head.setter
    def head(self, head: Head) -> None:
        self.inner.head = replace(head, truth_task=self.said)

    @cached_property
    def task(self) -> Classes:
        wrong = len(self.rule.wrong_answers([""] * self.k))
        return Classes(1 + wrong, enough=self.rule.enough)

    @property
    def inputs(self) -> Inputs:
        inner = self.inner.inputs
        return replace(inner, context={**inner.context, TRUTH: self.rule.truth_form})

    def with_truths(self, rows: Rows, y: Tensor) -> Batch:
        """Rows whose truths are y [n, ...], as the model is asked about them.

        Raises:
            InputError: they are no truths of this task.
        """
        batch = Batch.of(rows)
        truth = torch.from_numpy(self.rule.truths(y.cpu().numpy(), 0, "y")).to(batch.x)
        return self.since(Batch(batch.x, {**batch.context, TRUTH: truth}))

    def since(self, batch: Batch) -> Batch:
        """Rows with the truths that an adversary is held to, where their clean outputs count."""
        if not self.rule.relative:
            return batch
        z, truth = self.answered(batch)
        return Batch(batch.x, {**batch.context, TRUTH: self.rule.since(truth, z)})

    def empty(self, rows: Rows) -> Tensor:
        """Which rows have a truth that leaves an adversary nothing to do: [n] bool."""
        return self.rule.empty(self._parts(rows)[1])

    def mistaken(self, batch: Batch) -> str:
        """What the model's answers show to be wrong with the truths of some rows; else ""."""
        z, truth = self.answered(batch)
        return self.rule.mistaken(truth, z)

    def answered(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The model's outputs for some rows, [n, k], and their truths, [n, ...]."""
        inner, truth = self._parts(batch)
        z = self.batcher.in_parts(self.inner.scores, self.batcher.place(inner))
        return z.to(truth), truth

    def answers(self, batch: Batch, scores: Tensor) -> tuple[Tensor, Tensor]:
        """What a table keeps of the truths of rows with these scores, and of their outputs: [n, v],
        [n, w]. Rows are asked about again where scores do not say their outputs."""
        truth = self._parts(batch)[1]
        z = self.rule.outputs(scores, truth.to(scores))
        if z is not None or not len(batch):
            return self.rule.kept(truth, scores.new_zeros(0, self.k) if z is None else z)
        placed = self.batcher.place(batch)

        def ask(part: slice) -> tuple[Tensor, Tensor]:
            inner, truth = self._parts(placed[part])
            return self.rule.kept(truth, self.inner.scores(inner))

        truths, answers = zip(*self.batcher.parts(ask, len(batch)), strict=True)
        return torch.cat(truths).cpu(), torch.cat(answers).cpu()

    def masks(self, batch: Batch) -> Tensor:
        """Of a segmenter, the class of each pixel of these rows: [n, H, W] int64."""
        rule: Any = self.rule

        def ask(rows: Rows) -> Tensor:
            return rule.mask(self.inner.scores(rows))

        return self.batcher.in_parts(ask, self.batcher.place(self._parts(batch)[0])).cpu()

    def objects_at(self, batch: Batch) -> Tensor:
        """Which pixels of these rows are an object's: [n, H, W] bool."""
        return self.rule.objects_at(self._parts(batch)[1])

    def inwards(self, x: Rows) -> Rows:
        return Batch.of(x).without(TRUTH)

    def scores(self, x: Rows) -> Tensor:
        batch, truth = self._parts(x)
        return self._recast(self.inner.scores(batch), truth)

    def labels(self, x: Rows) -> Tensor:
        return self.task.predict(self.scores(x))

    def linearize(self, x: Rows) -> tuple[Tensor, Pullback]:
        batch, truth = self._parts(x)
        z, pull = self.inner.linearize(batch)
        return self._recast(z, truth), lambda c: pull(self._back(z, truth, c))

    def pull(self, x: Rows, cotangent: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        batch, truth = self._parts(x)
        kept: list[Tensor] = []

        def through(z: Tensor) -> Tensor:
            kept.append(self._recast(z, truth))
            return self._back(z, truth, cotangent(kept[-1]))

        _, g = self.inner.pull(batch, through)
        return kept[-1], g

    def around(self, inner: Target) -> WithTruth:
        """The same truths held to another target of the same outputs."""
        own = copy.copy(self)
        own.inner = inner
        return own

    @property
    def losses(self) -> Sequence[str]:
        return self.rule.losses

    def ascending(self, loss: str) -> Target:
        own = copy.copy(self)
        own.rule = self.rule.ascending(loss)
        return own

    def describe(self) -> dict[str, object]:
        said = super().describe() | {"task": str(self.rule)}
        return said | ({"classes": self.task.k} if self.rule.structured else {})

    def _parts(self, x: Rows) -> tuple[Batch, Tensor]:
        """The model's own rows, and their truths [n, ...]."""
        batch = Batch.of(x)
        return batch.without(TRUTH), batch.context[TRUTH]

    def _recast(self, z: Tensor, truth: Tensor) -> Tensor:
        return self.rule.recast(z, truth.to(z.dtype))

    def _back(self, z: Tensor, truth: Tensor, cotangent: Tensor) -> Tensor:
        """A cotangent on the scores as one on the outputs z."""
        with torch.inference_mode(False), torch.enable_grad():
            leaf = z.detach().clone().requires_grad_()
            return torch.autograd.grad((self._recast(leaf, truth) * cotangent).sum(), leaf)[0]


def nothing_to_lose(target: Target, rows: Rows) -> Tensor:
    """Which rows leave an adversary nothing to do, since their truths hold nothing that could be
    lost: [n] bool."""
    if isinstance(target, WithTruth):
        return target.empty(rows)
    return torch.zeros(len(rows), dtype=torch.bool, device=Batch.of(rows).x.device)


def objects_at(target: Target, batch: Batch) -> Tensor:
    """Which pixels of these rows are an object's: [n, H, W] bool.

    Raises:
        SpecError: no truth says it.
    """
    while isinstance(target, Around):
        if isinstance(target, WithTruth):
            return target.objects_at(batch)
        target = target.inner
    raise SpecError(
        "a patch outside of the objects is of detectors and segmenters, whose truths say where "
        "objects are: say the task, or leave outside out."
    )

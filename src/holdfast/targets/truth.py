"""Heads that are right or wrong only against a truth: it comes with each row, in the context of the
batch, and the model is asked whether it is right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

from holdfast.errors import InputError
from holdfast.targets.batch import Batch, Rows
from holdfast.targets.head import Head
from holdfast.targets.target import Access, Inputs, Pullback, Target
from holdfast.targets.wrappers import Around, Ensemble, ExpectationOverTransformation
from holdfast.tasks import Classes, TaskWithTruth

TRUTH = "truth"  # the column of the context: [n, k]


class WithTruth(Around):
    """A model of k outputs as a classifier whose class 0 is "right": see `holdfast.tasks`.

    The context of each batch holds the truths [n, k].

    ```python
    judged = WithTruth(holdfast.wrap(net, shape=(1, 28, 28), task="multilabel"))
    rows, right = Batch(x, {"truth": truth}), torch.zeros(n).long()
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
        self.rule: TaskWithTruth = inner.head.truth_task
        self.k = inner.task.k
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
        self.inner.head = replace(head, truth_task=self.rule)

    @cached_property
    def task(self) -> Classes:
        return Classes(1 + len(self.rule.wrong_answers([""] * self.k)))

    @property
    def inputs(self) -> Inputs:
        inner = self.inner.inputs
        return replace(inner, context={**inner.context, TRUTH: (self.k,)})

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

    def describe(self) -> dict[str, object]:
        return super().describe() | {"task": str(self.rule)}

    def _parts(self, x: Rows) -> tuple[Batch, Tensor]:
        """The model's own rows, and their truths [n, k]."""
        batch = Batch.of(x)
        return batch.without(TRUTH), batch.context[TRUTH]

    def _recast(self, z: Tensor, truth: Tensor) -> Tensor:
        return self.rule.recast(z, truth.to(z.dtype))

    def _back(self, z: Tensor, truth: Tensor, cotangent: Tensor) -> Tensor:
        """A cotangent on the scores as one on the outputs z."""
        with torch.inference_mode(False), torch.enable_grad():
            leaf = z.detach().clone().requires_grad_()
            return torch.autograd.grad((self._recast(leaf, truth) * cotangent).sum(), leaf)[0]

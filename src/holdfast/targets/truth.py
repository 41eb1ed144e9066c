"""Heads that are right or wrong only beside a truth: the truth rides along in front of its input,
where nobody may change it, and the model is asked whether it is right."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from holdfast.errors import InputError
from holdfast.targets.target import Access, Pullback, Target
from holdfast.targets.wrappers import Around, Ensemble, ExpectationOverTransformation
from holdfast.tasks import Classes, Graded


class WithTruth(Around):
    """A model of k outputs as a classifier of rows [truth, input], whose class 0 is "right": see
    `holdfast.tasks`.

    ```python
    graded = WithTruth(holdfast.wrap(net, shape=(1, 28, 28), task="multilabel"))
    books = run(parse("apgd"), graded, graded.behind(x, truth), torch.zeros(n).long(), Threat.linf(0.1))
    ```

    Raises:
        InputError: the model gives labels alone, or answers are pooled over draws or members.
    """

    def __init__(self, inner: Target) -> None:
        if inner.graded is None or inner.shape is None:
            raise InputError(
                "a truth goes beside a bound model whose task says what is right: wrap(..., "
                "task=...)."
            )
        self.rule: Graded = inner.graded
        self.k, self.whole = inner.task.k, inner.shape
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

    def _follow(self) -> None:
        super()._follow()
        self.graded = None

    def bind(self, shape: tuple[int, ...]) -> None:
        if self.shape is None:
            super().bind(self.whole)
            self.task = Classes(1 + len(self.rule.ways([""] * self.k)))
            self.free = self.free or self.whole
            self.shape, self.beside = (self.k + math.prod(self.whole),), self.k + self.inner.beside
        Target.bind(self, self.shape if shape == self.whole else shape)

    def behind(self, x: Tensor, truth: Tensor) -> Tensor:
        """Inputs [n, *shape] behind their truths [n, k]: rows."""
        return torch.cat([truth.reshape(len(x), self.k).to(x), x.flatten(1)], 1)

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The truths [n, k] and the model's inputs [n, *shape] in rows."""
        return x[:, : self.k], x[:, self.k :].reshape(-1, *self.whole)

    def scores(self, x: Tensor) -> Tensor:
        truth, rest = self.parts(x)
        return self._recast(self.inner.scores(rest), truth)

    def answers(self, x: Tensor) -> Tensor:
        return self.inner.answers(self.parts(x)[1])

    def labels(self, x: Tensor) -> Tensor:
        return self.task.predict(self.scores(x))

    def linearize(self, x: Tensor) -> tuple[Tensor, Pullback]:
        truth, rest = self.parts(x)
        z, pull = self.inner.linearize(rest)
        return self._recast(z, truth), lambda c: self._padded(pull(self._back(z, truth, c)))

    def pull(self, x: Tensor, cotangent: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        truth, rest = self.parts(x)
        kept: list[Tensor] = []

        def through(z: Tensor) -> Tensor:
            kept.append(self._recast(z, truth))
            return self._back(z, truth, cotangent(kept[-1]))

        _, g = self.inner.pull(rest, through)
        return kept[-1], self._padded(g)

    def describe(self) -> dict[str, object]:
        own = {
            "shape": list(self.shape or ()),
            "free": list(self.free or ()),
            "task": str(self.rule),
        }
        return super().describe() | own

    def _recast(self, z: Tensor, truth: Tensor) -> Tensor:
        return self.rule.recast(z, truth.to(z.dtype))

    def _back(self, z: Tensor, truth: Tensor, cotangent: Tensor) -> Tensor:
        """A cotangent on the scores as one on the outputs z."""
        with torch.inference_mode(False), torch.enable_grad():
            leaf = z.detach().clone().requires_grad_()
            return torch.autograd.grad((self._recast(leaf, truth) * cotangent).sum(), leaf)[0]

    def _padded(self, g: Tensor) -> Tensor:
        """A gradient on the model's inputs as one on rows: none on the truth."""
        return torch.cat([g.new_zeros(len(g), self.k), g.flatten(1)], 1)

"""Targets around targets: what to ask instead, when the model's own answers would mislead an
attack."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from holdfast.data.columns import Column
from holdfast.errors import InputError
from holdfast.norms import Norm
from holdfast.rng import Keys, content
from holdfast.targets.batch import Batch, Rows
from holdfast.targets.cache import Answers
from holdfast.targets.head import Head
from holdfast.targets.target import (
    Access,
    Cost,
    GradientInfo,
    Identity,
    Pullback,
    Target,
    copied,
    drawing,
)

T = TypeVar("T")


def _of_inner(name: str) -> Any:
    """A field of the target that another is wrapped around, read and written there."""

    def read(self: Around) -> Any:
        return getattr(self.inner, name)

    def write(self: Around, value: Any) -> None:
        setattr(self.inner, name, value)

    return property(read, write)


class Around(Target):
    """A target that answers through another one, and is like it in all else."""

    access, task, bounds, shape = map(_of_inner, ("access", "task", "bounds", "shape"))
    inputs, cost, gradients, losses = map(_of_inner, ("inputs", "cost", "gradients", "losses"))
    head, identity, batcher = map(_of_inner, ("head", "identity", "batcher"))

    def __init__(self, inner: Target) -> None:
        self.inner = inner
        if inner.shape is None:
            self._check()
        else:
            self.bind(inner.shape)

    def _check(self) -> None:
        """Refuse an inner target that gives too little; many learn what they give only when they
        are bound."""

    def bind(self, shape: tuple[int, ...]) -> None:
        self.inner.bind(shape)
        self._check()

    def of_table(self, columns: Sequence[Column]) -> Target:
        own = copied(self)
        for name, part in vars(own).items():
            if isinstance(part, Target):
                setattr(own, name, part.of_table(columns))
            elif isinstance(part, list):
                setattr(own, name, [one.of_table(columns) for one in part])
        return own

    def inwards(self, x: Rows) -> Rows:
        """Rows as the inner target takes them."""
        return x

    def ascending(self, loss: str) -> Target:
        own = copy.copy(self)
        own.inner = self.inner.ascending(loss)
        return own

    def scores(self, x: Rows) -> Tensor:
        return self.inner.scores(self.inwards(x))

    def labels(self, x: Rows) -> Tensor:
        return self.inner.labels(self.inwards(x))

    def confidence(self, z: Tensor) -> Tensor:
        return self.inner.confidence(z)

    def fingerprint(self) -> str:
        return hashlib.sha256(
            f"{type(self).__name__} {self.describe()} {self.inner.fingerprint()}".encode()
        ).hexdigest()

    def describe(self) -> dict[str, object]:
        return self.inner.describe()


class ExpectationOverTransformation(Around):
    """A randomised model as the mean of its softmax over `draws` answers (Athalye et al. 2018,
    arXiv:1707.07397).

    Scores are the logarithms of the means, gradients are those of these scores, so attack and judge
    see what the model does on the whole and not one lucky draw, and a search goes on until its
    success is clear of chance. Each question costs `draws` passes. Of a model that gives labels,
    the label is the most frequent one.
    """

    def __init__(self, inner: Target, draws: int = 20) -> None:
        if draws < 1:
            raise InputError(f"an expectation over {draws} draws has none; give at least 1.")
        self.times = draws
        super().__init__(inner)

    @property
    def cost(self) -> Cost:
        one = self.inner.cost
        return replace(one, forwards=self.times * one.forwards, draws=self.times * one.draws)

    @property
    def gradients(self) -> GradientInfo:
        # one standard error of the log-odds, at worst
        return replace(self.inner.gradients, min_lead=2 / math.sqrt(self.cost.draws))

    def scores(self, x: Rows) -> Tensor:
        return sum_of_logs(self._drawn(lambda: self.inner.scores(x)))

    def labels(self, x: Rows) -> Tensor:
        if self.access >= Access.SCORES:
            return self.task.predict(self.scores(x))
        return torch.stack(self._drawn(lambda: self.inner.labels(x))).mode(0).values

    def linearize(self, x: Rows) -> tuple[Tensor, Pullback]:
        return mean_of(self._drawn(lambda: self.inner.linearize(x)))

    def describe(self) -> dict[str, object]:
        return super().describe() | {"draws": self.cost.draws}

    def _drawn(self, ask: Callable[[], T]) -> list[T]:
        answers: list[T] = []
        for i in range(self.times):
            with drawing(i):
                answers.append(ask())
        return answers


def sum_of_logs(answers: Sequence[Tensor]) -> Tensor:
    """The logarithm of the mean softmax of several scores [n, k], up to a constant a row."""
    return torch.stack([z.log_softmax(1) for z in answers]).logsumexp(0)


def mean_of(answers: Sequence[tuple[Tensor, Pullback]]) -> tuple[Tensor, Pullback]:
    """The `sum_of_logs` of several answers, and its pullback through all of them."""
    with torch.inference_mode(False), torch.enable_grad():
        leaves = [z.detach().requires_grad_() for z, _ in answers]
        mean = sum_of_logs(leaves)

    def pullback(cotangent: Tensor) -> Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            slopes = torch.autograd.grad((mean * cotangent).sum(), leaves, retain_graph=True)
        return torch.stack([pull(c) for (_, pull), c in zip(answers, slopes, strict=True)]).sum(0)

    return mean.detach(), pullback


class StraightThrough(Around):
    """A defence `before` the model that hides its gradient, attacked through `instead` of it.

    Backward pass differentiable approximation (Athalye et al. 2018, arXiv:1802.00420): answers are
    those behind the defence, gradients those of `instead`, a differentiable function that does
    about the same. Default: nothing at all.
    """

    def __init__(
        self,
        inner: Target,
        before: Callable[[Tensor], Tensor],
        instead: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.before, self.instead = before, instead
        super().__init__(inner)

    def inwards(self, x: Rows) -> Rows:
        batch = Batch.of(x)
        return batch.with_x(self.before(batch.x).detach())

    def linearize(self, x: Rows) -> tuple[Tensor, Pullback]:
        z, pull = self.inner.linearize(self.inwards(x))
        instead = self.instead
        if instead is None:
            return z, pull
        with torch.inference_mode(False), torch.enable_grad():
            leaf = Batch.of(x).x.detach().clone().requires_grad_()
            smooth = instead(leaf)

        def pullback(cotangent: Tensor) -> Tensor:
            inner = pull(cotangent)
            with torch.inference_mode(False), torch.enable_grad():
                return torch.autograd.grad((smooth * inner).sum(), leaf, retain_graph=True)[0]

        return z, pullback

    def fingerprint(self) -> str:
        name = getattr(self.before, "__qualname__", repr(self.before))
        return hashlib.sha256(f"{name} {super().fingerprint()}".encode()).hexdigest()


class Estimated(Around):
    """Gradients for a target without, from scores at random points around (Ilyas et al. 2018,
    arXiv:1804.08598).

    Antithetic Gaussian probes of length `sigma` (a share of the bounds) a feature; a gradient costs
    2 x `probes` forwards. The probes of a row depend on the row alone.
    """

    access = Access.GRADIENTS

    def __init__(self, inner: Target, probes: int = 50, sigma: float = 0.01) -> None:
        self.probes, self.sigma = probes, sigma
        super().__init__(inner)

    def _check(self) -> None:
        if self.inner.access < Access.SCORES:
            raise InputError(
                "gradients are estimated from scores, and the target gives labels alone."
            )

    @property
    def cost(self) -> Cost:
        one = self.inner.cost
        return replace(one, pullback=2 * self.probes * one.forwards)

    def linearize(self, x: Rows) -> tuple[Tensor, Pullback]:
        batch = Batch.of(x)

        def pullback(cotangent: Tensor) -> Tensor:
            x = batch.x
            keys, g = Keys(content(batch.flat())), torch.zeros_like(x)
            sigma = self.sigma * (self.bounds.high - self.bounds.low)
            for i in range(self.probes):
                u = keys.fold(i).normal(tuple(x.shape[1:])).to(x)
                up, down = (
                    self.inner.scores(batch.with_x(x + side * sigma * u)) for side in (1, -1)
                )
                slope = ((up - down) * cotangent).sum(1) / (2 * sigma * self.probes)
                g = g + slope.view(-1, *[1] * (x.ndim - 1)).to(x.dtype) * u
            return g

        return self.inner.scores(x), pullback


class SmoothedGradient(Around):
    """A model whose gradient is that of its mean around each input: what is fine and steep cancels
    out.

    The remedy against gradients that are shattered or change their sign from point to point
    (Athalye et al. 2018, arXiv:1802.00420; for k-winners-take-all: Tramer et al. 2020,
    arXiv:2002.08347, section 5). Scores are the model's. A gradient is the mean over `points`
    points of the ball of a radius in a norm, and costs as many forwards and backwards more. The
    points of a row depend on the row alone.
    """

    def __init__(self, inner: Target, norm: Norm, radius: float, points: int = 10) -> None:
        self.norm, self.radius, self.points = norm, radius, points
        super().__init__(inner)

    @property
    def cost(self) -> Cost:
        one = self.inner.cost
        return replace(one, pullback=2 * self.points * one.forwards)

    def linearize(self, x: Rows) -> tuple[Tensor, Pullback]:
        batch = Batch.of(x)

        def pullback(cotangent: Tensor) -> Tensor:
            x = batch.x
            keys, g = Keys(content(batch.flat())), torch.zeros_like(x)
            for i in range(self.points):
                around = self.bounds.clamp(x + self.radius * self.norm.sample(keys.fold(i), x))
                g = g + self.inner.linearize(batch.with_x(around))[1](cotangent)
            return g / self.points

        return self.inner.scores(x), pullback


class Surrogate(Around):
    """A target attacked with the gradients of another model: what transfers counts, since only the
    target judges.

    Gradients cost the target nothing; what the surrogate takes for a success is asked of it. The
    fingerprint is the target's own, for it is the model under test.
    """

    access = Access.GRADIENTS

    def __init__(self, inner: Target, surrogate: Target) -> None:
        self.surrogate = surrogate
        super().__init__(inner)

    def _check(self) -> None:
        if self.surrogate.access < Access.GRADIENTS:
            raise InputError("a surrogate is there for its gradients, and this one has none.")

    @property
    def gradients(self) -> GradientInfo:
        return replace(self.inner.gradients, approximate=True, substitute=True)

    def bind(self, shape: tuple[int, ...]) -> None:
        self.surrogate.bind(shape)
        super().bind(shape)
        if self.surrogate.task.k != self.task.k:
            raise InputError(
                f"the surrogate knows {self.surrogate.task.k} classes, and the model {self.task.k}."
            )

    def scores(self, x: Rows) -> Tensor:
        if self.inner.access >= Access.SCORES:
            return self.inner.scores(x)
        label = self.inner.labels(x)
        z = torch.nn.functional.one_hot(label.clamp_min(0), self.task.k).to(Batch.of(x).x.dtype)
        return torch.where(label[:, None] < 0, torch.nan, z)

    def linearize(self, x: Rows) -> tuple[Tensor, Pullback]:
        return self.surrogate.linearize(x)

    def pull(self, x: Rows, cotangent: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        return self.surrogate.pull(x, cotangent)

    def fingerprint(self) -> str:
        return self.inner.fingerprint()

    def describe(self) -> dict[str, object]:
        return super().describe() | {"surrogate": self.surrogate.fingerprint()}


class Ensemble(Around):
    """Several targets as one: the logarithm of their mean softmax. As a surrogate or as the model
    under test."""

    def __init__(self, members: Sequence[Target]) -> None:
        if not members:
            raise InputError("an ensemble needs at least one member.")
        self.others = list(members[1:])
        super().__init__(members[0])

    def _check(self) -> None:
        if self.access < Access.SCORES:
            raise InputError("an ensemble needs members that give scores.")

    @property
    def members(self) -> list[Target]:
        return [self.inner, *self.others]

    @property
    def access(self) -> Access:
        return min(member.access for member in self.members)

    @property
    def cost(self) -> Cost:
        return replace(
            self.inner.cost,
            forwards=sum(member.cost.forwards for member in self.members),
            draws=max(member.cost.draws for member in self.members),
        )

    @property
    def gradients(self) -> GradientInfo:
        approximate = any(member.gradients.approximate for member in self.members)
        return replace(self.inner.gradients, approximate=approximate)

    @property
    def identity(self) -> Identity:
        parts = [member.identity for member in self.members]
        return replace(
            parts[0],
            remarks=tuple(dict.fromkeys(remark for part in parts for remark in part.remarks)),
            versions={name: v for part in parts for name, v in part.versions.items()},
            rewrites=any(part.rewrites for part in parts),
        )

    @property
    def head(self) -> Head:
        reads = all(member.head.reads for member in self.members)
        return self.inner.head if reads else replace(self.inner.head, ending=None)

    @head.setter
    def head(self, head: Head) -> None:
        for member in self.members:
            if not member.head.said:
                member.head = replace(member.head, probabilities=head.probabilities)
        self.inner.head = replace(self.inner.head, said=head.said)

    def bind(self, shape: tuple[int, ...]) -> None:
        for member in self.members:
            member.bind(shape)
        super().bind(shape)
        tasks = {member.task for member in self.members}
        if len(tasks) > 1:
            seen = " and ".join(
                sorted(f"{task.k} classes{' or a refusal' * task.refuses}" for task in tasks)
            )
            raise InputError(f"the members of an ensemble have to answer alike, but give {seen}.")

    def scores(self, x: Rows) -> Tensor:
        return sum_of_logs([member.scores(x) for member in self.members])

    def labels(self, x: Rows) -> Tensor:
        return self.task.predict(self.scores(x))

    def linearize(self, x: Rows) -> tuple[Tensor, Pullback]:
        return mean_of([member.linearize(x) for member in self.members])

    def fingerprint(self) -> str:
        return hashlib.sha256(" ".join(m.fingerprint() for m in self.members).encode()).hexdigest()


class Cached(Around):
    """A slow target that is asked no question twice, not even in another process where there is a
    `file`.

    Answers are kept by the bits of their input and the target's fingerprint; gradients are not
    kept. Those that change from one time to the next go unseen. (An endpoint has a cache of its
    own: `cache_file`.)

    Raises:
        InputError: the file is no such cache.
    """

    def __init__(self, inner: Target, file: Path | None = None) -> None:
        self.file = file
        # by whether the target takes its answers for probabilities
        self.stores: dict[bool, Answers] = {}
        super().__init__(inner)

    @property
    def asked(self) -> int:
        """Inputs put to the target so far, by copies of it too."""
        return sum(store.asked for store in self.stores.values())

    def store(self) -> Answers:
        """That of the target as it now is: before and after its probabilities were noticed its
        scores are others."""
        chances = bool(self.head.probabilities)
        if chances not in self.stores:
            kind = {torch.float64: np.float64}.get(self.batcher.dtype, np.float32)
            identity = f"{self.inner.fingerprint()} {self.access.name} {chances}"
            self.stores[chances] = Answers(self.file, identity, kind)
        return self.stores[chances]

    def scores(self, x: Rows) -> Tensor:
        return self._known(Batch.of(x), self.task.k, self.inner.scores)

    def labels(self, x: Rows) -> Tensor:
        if self.access >= Access.SCORES:
            return self.task.predict(self.scores(x))
        return self._known(Batch.of(x), 1, lambda part: self.inner.labels(part)[:, None])[
            :, 0
        ].long()

    def linearize(self, x: Rows) -> tuple[Tensor, Pullback]:
        return self.inner.linearize(x)

    def pull(self, x: Rows, cotangent: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        return self.inner.pull(x, cotangent)

    def fingerprint(self) -> str:
        return self.inner.fingerprint()

    def _known(self, batch: Batch, width: int, question: Callable[[Batch], Tensor]) -> Tensor:
        store = self.store()

        def ask(keys: Sequence[bytes], rows: list[int], answers: np.ndarray) -> None:
            if rows:
                store.asked += len(rows)
                answers[rows] = question(batch[rows]).detach().cpu().numpy()
                store.keep((keys[i], answers[i]) for i in rows if np.isfinite(answers[i]).all())

        x = batch.flat().detach().cpu().contiguous().numpy()
        return torch.from_numpy(store.to(x, width, ask, fresh=False)).to(batch.x.device)


def itself(target: Target) -> Target:
    """The model under test, without the surrogate and the cache that an evaluation puts around."""
    while isinstance(target, (Surrogate, Cached)):
        target = target.inner
    return target


def innermost(target: Target) -> Target:
    """The target that others are wrapped around."""
    while (inner := getattr(target, "inner", None)) is not None:
        target = inner
    return target


__all__: list[Any] = [
    "Cached",
    "Ensemble",
    "Estimated",
    "ExpectationOverTransformation",
    "StraightThrough",
    "Surrogate",
    "itself",
]

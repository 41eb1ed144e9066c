"""Training against a truth of several numbers a row: boxes, or a mask. The loss is the user's own,
or of a segmenter the cross-entropy of its pixels."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from holdfast import attacks, usercode
from holdfast.attacks.attack import run
from holdfast.attacks.gradient.pgd import PGD as Ascent
from holdfast.errors import InputError
from holdfast.spec import option
from holdfast.targets import TorchTarget
from holdfast.targets.batch import Batch, Rows
from holdfast.targets.frameworks.pytorch.gradients import back
from holdfast.targets.target import Pullback
from holdfast.targets.truth import TRUTH, WithTruth
from holdfast.targets.wrappers import Around
from holdfast.tasks import Classes, Segmentation, TaskWithTruth
from holdfast.training.inner_attack import InnerAttack
from holdfast.training.loop import Training
from holdfast.training.objective import Net, Objective
from holdfast.training.state import State

Own = Callable[[Any, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Loss:
    """What is minimised, and what the inner attack raises: [n].

    `own` is a function of the model, of inputs [n, ...] as the model takes them after its
    preprocessing, and of the truths as the data give them; it gives [n], or one number for the
    mean. None: the cross-entropy of a segmenter's pixels.
    """

    rule: Any  # the task, as it is fitted to the model
    own: Own | None = None

    def __str__(self) -> str:
        if self.own is None:
            return "cross-entropy of the pixels"
        name = getattr(self.own, "__qualname__", type(self.own).__qualname__)
        return f"{getattr(self.own, '__module__', '')}.{name}"

    def __call__(self, live: TorchTarget, x: Tensor, y: Tensor) -> Tensor:
        if self.own is None:
            return self.rule.cross_entropy(live.outputs(x), y)
        own, n = self.own, len(y)
        value = live.through(x, lambda model, seen: usercode.call("the loss", own, model, seen, y))
        if not isinstance(value, Tensor) or value.shape not in ((), (n,)):
            given = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise InputError(
                f"the loss gives {given} for {n} rows; expected one number for each, [n], or their "
                "mean, a tensor of one number."
            )
        if not value.requires_grad and torch.is_grad_enabled():
            raise InputError(
                "the loss has no gradient: it does not depend on what the model gives, or takes "
                "it out of the graph (detach, argmax)."
            )
        return value.expand(n).float()


class Priced(Around):
    """A network that is trained as a classifier whose score of "wrong" is its loss: every attack
    then raises that."""

    task = Classes(2)  # pyright: ignore

    def __init__(self, inner: TorchTarget, loss: Loss, kind: torch.dtype) -> None:
        super().__init__(inner)
        self.loss, self.kind = loss, kind  # of the truths, which a context holds as floats

    def scores(self, x: Rows) -> Tensor:
        with torch.no_grad():
            return self._asked(Batch.of(x), Batch.of(x).x)

    def linearize(self, x: Rows) -> tuple[Tensor, Pullback]:
        batch = Batch.of(x)
        with torch.inference_mode(False), torch.enable_grad():
            leaf = batch.x.detach().clone().requires_grad_()
            z = self._asked(batch, leaf)
        return z.detach(), lambda cotangent: back(leaf, z, cotangent, again=True)

    def _asked(self, batch: Batch, x: Tensor) -> Tensor:
        assert isinstance(self.inner, TorchTarget)
        value = self.loss(self.inner, x, batch.context[TRUTH].to(self.kind))
        return torch.stack([torch.zeros_like(value), value], 1)


@dataclass(frozen=True)
class AtLoss(Objective):
    """The loss at the end of its own projected ascent (Madry et al. 2018, arXiv:1706.06083)."""

    loss_of: Loss = field(repr=False)
    steps: int = option(10, "of the inner attack; 0: none", at_least=0)
    step_size: float = option(0.25, "fraction of eps", at_least=0)

    def points(self, inner: InnerAttack, x: Tensor, y: Tensor) -> Tensor:
        if not self.steps:
            return x
        ascent = Ascent(steps=self.steps, step_size=self.step_size, loss="margin")
        right = torch.zeros(len(y), dtype=torch.int64, device=y.device)
        priced = Priced(inner.live, self.loss_of, y.dtype)
        return inner(ascent, Batch(x, {TRUTH: y}), right, on=priced)

    def loss(self, net: Net, x: Tensor, x_adv: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        assert net.inner is not None
        value = self.loss_of(net.inner.live, x_adv, y)
        return value, value.detach()


@dataclass
class OfTruths(Training):
    """A training on rows whose truths are [n, ...]; figures are the shares of the truths that are
    right, as the task counts them."""

    def check(self, x: np.ndarray, y: np.ndarray) -> None:
        """Ask for the loss of some rows, and for its gradient.

        Raises:
            InputError: it fails, or is none.
        """
        rows, truth = self._tensors(x, y)
        assert isinstance(self.objective, AtLoss)
        priced = Priced(self.target, self.objective.loss_of, truth.dtype)
        priced.linearize(Batch(rows, {TRUTH: truth}))

    def _tensors(self, x: np.ndarray, y: np.ndarray) -> tuple[Tensor, Tensor]:
        truth = torch.from_numpy(np.asarray(y))
        kind = torch.float32 if truth.is_floating_point() else torch.int64
        rows = self.target.batcher.place(torch.from_numpy(x))
        return rows, truth.to(self.target.batcher.device, kind)

    def _right(self, z: Tensor, y: Tensor, n: int) -> float:
        return math.nan  # a loss does not say it

    def _judge(self, s: State, objective: Objective) -> tuple[float, float, float, float, float]:
        x, y = self.judged
        live = self.target.live(s.average)
        held = WithTruth(live)
        batch = held.with_truths(x, y)

        def share(at: Tensor) -> float:
            z, truth = held.answered(batch.with_x(at))
            return float(held.rule.share(z, truth).mean())

        clean = share(x)
        there = objective.points(self._inner_attack(live, float(self.threat.eps), self.seed), x, y)
        inner, robust = share(there), clean
        if self.recipe.judge:
            attack, zeros = attacks.parse(self.recipe.judge), torch.zeros(len(x)).long()
            found = run(attack, held, batch, zeros, self.threat, seed=self.seed)
            robust = share(found.best)  # of rows that it did not break the one of lowest margin
        return clean, inner, robust, clean, math.nan

    def _aligned(self, s: State) -> float:
        return math.nan


def loss_of(rule: TaskWithTruth, own: Own | None) -> Loss:
    """The loss of a model with this task.

    Raises:
        InputError: none is given, and the model is no segmenter.
    """
    if own is None and not isinstance(rule, Segmentation):
        raise InputError(
            f"hardening needs the loss of a model whose task is {rule}: give one of your own, "
            "loss(model, x, truth) (--loss path/file.py:function), which gives [n], or the mean."
        )
    return Loss(rule, own)

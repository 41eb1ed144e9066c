"""Estimators of scikit-learn's kind, hardened: fitted again, on their rows and on changed ones.

An estimator has no weights that a step could move, so it is made anew with the same settings and
fitted several times: on the rows as they are, then with some that lie at the end of the threat's
reach in random directions, then with those that an attack on the last fit makes, each under its
true class. Every row is changed alike often, broken or not: that keeps the classes' shares, and
rows that an attack breaks are few and lie side by side, which trees fit one by one.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from holdfast import attacks, spec
from holdfast.attacks.attack import check_fit, perturb, run
from holdfast.attacks.problem import Problem
from holdfast.bounds.tree_models import has_trees
from holdfast.data import Source
from holdfast.errors import InputError, first_line
from holdfast.evaluation import protocols
from holdfast.evaluation.contract import check_model
from holdfast.rng import Keys
from holdfast.runs.store import write_bytes
from holdfast.spec import option
from holdfast.targets import Target, TorchTarget
from holdfast.targets.frameworks.arrays import ArrayModel
from holdfast.targets.frameworks.sklearn import native_file, own_skops, to_skops, unfitted
from holdfast.targets.target import sealed
from holdfast.threats.threat import Threat
from holdfast.training.balance import Balance, balance_of, divide_fairly
from holdfast.training.state import Epoch, table

_STRIDE = 1024  # rows that are changed together
_JUDGE = "quick"  # the protocol that chooses


@dataclass(frozen=True)
class Refit:
    """All that decides how an estimator is fitted again, apart from itself, the data, the threat
    and the seed."""

    name: str = field(default="own", repr=False)
    version: int = field(default=0, repr=False)
    rounds: int = option(4, "fits with more rows, the first with the random ones", at_least=1)
    random: int = option(3, "rows of each, changed by eps in random directions", at_least=0)
    attack: str = option("genetic(steps=10)", "on the last fit: it makes the rows of a round")
    held: float = option(
        0.2,
        "share of the training rows (1,000 at most) that choose the fit, and train nothing",
        above=0,
        at_most=0.5,
    )

    def __post_init__(self) -> None:
        spec.check(self)
        attacks.parse(self.attack)


class Estimator:
    """A fitted estimator, which is never changed.

    Args:
        model: what asks it, and knows its columns.
    """

    file = "model.skops"

    def __init__(self, model: ArrayModel) -> None:
        self.model, self.kind = model, type(model.trainable).__name__

    def fitted(self, x: np.ndarray, y: np.ndarray) -> Any:
        """A new one with the same settings, fitted on rows x [n, columns] of classes y [n].

        Raises:
            InputError: it cannot be.
        """
        own = unfitted(self.model.trainable)
        classes = np.asarray(self.model.trainable.classes_)
        try:
            with redirect_stdout(io.StringIO()):  # what libraries say of each tree
                return own.fit(self.model.rows(x.copy()), classes[y])
        except Exception as error:
            raise InputError(
                f"the {self.kind} cannot be fitted again on rows and classes alone: "
                f"{first_line(error)}."
            ) from error

    def train(self, training: Refitting) -> None:
        """Fit it again, and leave the best as `file` in the training's folder; where it is a
        booster of another library, as a file of that too."""
        assert training.folder is not None
        if (training.folder / self.file).exists():  # finished before
            return
        best = training.fit(self)
        native_file(best, training.folder)
        write_bytes(training.folder / self.file, to_skops(best))

    def read(self, folder: Path) -> Any:
        return own_skops(folder / self.file)


@dataclass
class Refitting:
    """A training of an estimator.

    Args:
        target: the estimator as it came, which knows the columns of the rows.
        data: rows to fit it on.
        held: rows that choose among the fits.
        threat: what it shall withstand.
        recipe: how.
        wrapped: a fit as the estimator that it came from is wrapped.
        seed: of the directions, of attacks, and of what an estimator draws from NumPy.
        floor: the least accuracy on `held` of the fit chosen.
        min_recall: the least recall there of any class.
        balance: of the classes in `data`.
        folder: where the log and the files go.
        on_epoch: called with each fit's line of the log.
    """

    target: TorchTarget
    data: Source
    held: Source
    threat: Threat
    recipe: Refit
    wrapped: Callable[[Any], Target]
    seed: int
    floor: float
    min_recall: float
    balance: Balance
    folder: Path | None = None
    on_epoch: Callable[[Epoch], None] | None = None

    def fit(self, estimator: Estimator) -> Any:
        """The best of all fits, on the rows held out.

        Raises:
            InputError: the estimator cannot be fitted on the rows.
        """
        x, y = self._rows(self.data)
        rows, labels, log = [x], [y], []
        best, made, scored = None, None, (False, -1.0, -1.0)
        recipe = self.recipe
        for t in range(1 + recipe.rounds):
            note, more = "the rows as they are", []
            if t == 1:
                note = f"with {recipe.random} random changes of each row"
                more = [self._random(x, y, i) for i in range(recipe.random)]
            elif t > 1:
                note = f"with rows that {recipe.attack} changed"
                more = [self._attacked(self.wrapped(made), x, y, t)]
            rows, labels = [*rows, *more], [*labels, *[y] * len(more)]
            with sealed(self.seed):
                made = estimator.fitted(np.concatenate(rows), np.concatenate(labels))
            line, score = self._judged(self.wrapped(made), t, note)
            if score > scored:
                best, scored = made, score
            log.append(line)
            if self.folder is not None:
                write_bytes(self.folder / "log.csv", table(log).encode())
            if self.on_epoch is not None:
                self.on_epoch(line)
        return best

    def _rows(self, source: Source) -> tuple[np.ndarray, np.ndarray]:
        """Rows as attacks see them, and their classes."""
        x, y = source.rows(0, len(source))
        return self.target.batcher.place(torch.from_numpy(x)).numpy(), y.astype(np.int64)

    def _parts(self, x: np.ndarray, y: np.ndarray) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Rows, their classes and their places, some at a time."""
        for start in range(0, len(x), _STRIDE):
            ids = torch.arange(start, min(start + _STRIDE, len(x)))
            yield torch.from_numpy(x[ids]), torch.from_numpy(y[ids]), ids

    def _random(self, x: np.ndarray, y: np.ndarray, i: int) -> np.ndarray:
        """Legal rows, each at the end of the threat's reach from its own, as far as repair leaves
        it there: in linf a corner of the box."""
        made = []
        for rows, labels, ids in self._parts(x, y):
            keys = Keys.of(self.seed, ids).fold("random", i)
            p = Problem(self.target, rows, labels, self.threat, keys)
            d = p.stride(keys.normal(p.x.shape[1:], p.x.dtype), 1.0)
            made.append(self.threat.apply(rows, p.points(p.project(d))).numpy())
        return np.concatenate(made)

    def _attacked(self, target: Target, x: np.ndarray, y: np.ndarray, t: int) -> np.ndarray:
        """Where the attack ends, which does not stop at a success."""
        attack, seed = attacks.parse(self.recipe.attack), self.seed + t
        return np.concatenate(
            [
                perturb(attack, target, rows, labels, self.threat, ids=ids, seed=seed).numpy()
                for rows, labels, ids in self._parts(x, y)
            ]
        )

    def _judged(self, target: Target, t: int, note: str) -> tuple[Epoch, tuple[bool, float, float]]:
        """The line of a fit, and what it is chosen by: whether above the floors, robust, clean."""
        x, y = map(torch.from_numpy, self._rows(self.held))
        right = target.labels(x) == y
        left = right.clone()
        for trial in _judge(self.threat, target):
            ids = left.nonzero()[:, 0]
            if len(ids):
                kind = {"ids": ids, "seed": self.seed}
                found = run(trial.attack, target, x[ids], y[ids], self.threat, **kind)
                left[ids] = found.outcome == attacks.Outcome.SURVIVED
        each = [y == c for c in y.unique()]
        recall = min(float(right[own].double().mean()) for own in each)
        if not self.balance.unequal:
            each = [torch.ones_like(right)]
        clean, robust = (
            float(torch.stack([held[own].double().mean() for own in each]).mean())
            for held in (right, left)
        )
        accuracy = float(right.double().mean())
        least = self.balance.least_recall(self.min_recall, target.task.k)
        line = Epoch(
            epoch=t,
            objective=self.recipe.name,
            rate=math.nan,
            eps=float(self.threat.eps),
            loss=math.nan,
            trained=math.nan,
            clean=clean,
            inner=math.nan,
            robust=robust,
            aligned=math.nan,
            passes=0,
            note=note,
            recall=recall,
        )
        return line, (accuracy >= self.floor and recall >= least, robust, clean)


def _judge(threat: Threat, target: Target) -> tuple[attacks.Trial, ...]:
    """The attacks that choose among fits."""
    return protocols.asked(_JUDGE, threat, target.access, trees=has_trees(target)).trials


def estimator_of(target: Target) -> Estimator | None:
    """The estimator behind a target, where it is one that can be fitted again."""
    model = getattr(target, "model", None)
    if isinstance(model, ArrayModel) and model.trainable is not None:
        return Estimator(model)
    return None


def refitting_of(
    estimator: Estimator,
    target: TorchTarget,
    source: Source,
    threat: Threat,
    recipe: Refit,
    seed: int,
    **options: Any,
) -> Refitting:
    """The training of an estimator on these rows, of which some are held out.

    Args:
        options: further fields of the training.

    Raises:
        InputError: it cannot be trained on them.
        SpecError: an attack of it does not fit the threat.
    """
    check_model(target, source)
    if target.preprocess or len(source.shape) != 1:
        raise InputError(
            f"a {estimator.kind} is fitted again on rows of a table as they are: without "
            f"preprocess, and not of shape {tuple(source.shape)}; put such steps into a Pipeline."
        )
    if not hasattr(estimator.model.trainable, "classes_"):
        raise InputError(f"the {estimator.kind} has no classes (classes_) to be fitted on.")
    to_skops(unfitted(estimator.model.trainable))
    for attack in (attacks.parse(recipe.attack), *(t.attack for t in _judge(threat, target))):
        check_fit(attack, target, threat)
    rows, held = divide_fairly(source, recipe.held, 1000, seed, "held-out")
    balance = balance_of(rows, target.task.k, "none")
    if 0 in balance.counts:
        raise InputError(
            f"class {balance.counts.index(0)} has no row left in {rows.name}; give more rows."
        )
    return Refitting(target, rows, held, threat, recipe, seed=seed, balance=balance, **options)

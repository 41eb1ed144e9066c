"""Tasks other than one of k classes, as classes: an answer is "right", or wrong in one of several
respects."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from holdfast.data import Source
from holdfast.errors import InputError, SpecError
from holdfast.runs import average_precision
from holdfast.runs.store import MASKS, Masks
from holdfast.targets.batch import joined, read
from holdfast.targets.target import Target, sealed
from holdfast.targets.truth import TRUTH, WithTruth
from holdfast.tasks import Detection, MultiLabel, Segmentation
from holdfast.threats.threat import Targeted, Threat

MOST = 2**26  # numbers that the outputs of one pass become


def with_truths(target: Target, source: Source, threat: Threat) -> tuple[Target, Source]:
    """A model and data, with the truth in the context of each row if the model's task wants it.

    Raises:
        InputError: the truths are not those of such a task, or not as many as the model's outputs;
            or what its figures need is not installed.
        SpecError: the threat aims at a class.
    """
    if target.head.truth_task is None:
        return target, source
    if isinstance(threat.goal, Targeted):
        raise SpecError(
            f"{threat} aims at a class, but {target.head.truth_task} has none; leave the "
            "target out."
        )
    if isinstance(target.head.truth_task, Detection):
        average_precision.require()
    target.bind(source.shape)
    around = WithTruth(target)
    around.batcher.size = max(1, min(around.batcher.size, MOST // around.rule.numbers))
    return around, Truths(source, around)


LOOK = 32  # rows whose truths are held against what the model says


class Truths(Source):
    """Each row of `inner` with its truth [...] as context; the label of all is 0: "right"."""

    def __init__(self, inner: Source, target: WithTruth) -> None:
        self.inner, self.rule = inner, target.rule
        self.name, self.shape, self.inputs = inner.name, inner.shape, inner.inputs
        self.remarks, self.loading, self.columns = inner.remarks, inner.loading, inner.columns
        names, word = inner.class_names, "label" if isinstance(self.rule, MultiLabel) else "output"
        if names is None or len(names) != target.k:
            names = [f"{word} {j}" for j in range(target.k)]
        self.objects = inner.objects or (inner.class_names if self.rule.structured else None)
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
        truth = self.rule.truths(y, start, self.name).astype(dtype)
        return {**self.inner.context(start, stop), TRUTH: truth}


def masks(target: Target, source: Source) -> Masks | None:
    """Of a segmenter, how the masks of the report are made of rows and of their examples; None of
    another model."""
    if not isinstance(target, WithTruth) or not isinstance(target.rule, Segmentation):
        return None

    def made(ids: Sequence[int], x_adv: np.ndarray) -> dict[str, np.ndarray]:
        rows = joined([read(source, i, i + 1)[0] for i in ids])
        with sealed(0):
            answers = [target.masks(r) for r in (rows, rows.with_x(torch.from_numpy(x_adv)))]
        given = zip(MASKS, (rows.context[TRUTH], *answers), strict=True)
        return {name: mask.numpy().astype(np.int16) for name, mask in given}

    return made


class Since(Source):
    """Rows with the truths that an adversary is held to: the model is asked about each before any
    attack, which is no part of the data, nor of their fingerprint."""

    def __init__(self, inner: Source, target: WithTruth) -> None:
        self.inner, self.target = inner, target
        self.name, self.shape, self.inputs = inner.name, inner.shape, inner.inputs
        self.remarks, self.loading, self.columns = inner.remarks, inner.loading, inner.columns
        self.class_names, self.objects = inner.class_names, inner.objects

    def __len__(self) -> int:
        return len(self.inner)

    def rows(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        return self.inner.rows(start, stop)

    def context(self, start: int, stop: int) -> dict[str, np.ndarray]:
        batch = read(self.inner, start, stop)[0]
        with sealed(0):
            held = self.target.since(batch)
        return {name: column.cpu().numpy() for name, column in held.context.items()}

    def fingerprint(self) -> str:
        return self.inner.fingerprint()


def since(target: Target, source: Source) -> Source:
    """The rows with their truths as the clean outputs leave them, where the task asks for that.

    Raises:
        InputError: no row has anything to lose; or the first truths are written in another
            convention, as the model shows.
    """
    if isinstance(target, WithTruth):
        _check_some(target, source)
    if isinstance(target, WithTruth) and target.rule.relative:
        first = read(source, 0, min(LOOK, len(source)))[0]
        with sealed(0):
            if said := target.mistaken(first):
                raise InputError(f"the labels of {source.name}: {said}")
        return Since(source, target)
    return source


def _check_some(target: WithTruth, source: Source) -> None:
    """Refuse rows none of which has anything to lose."""
    for start in range(0, len(source), LOOK):
        batch = read(source, start, min(start + LOOK, len(source)))[0]
        if not bool(target.empty(batch).all()):
            return
    more = ""
    if isinstance(target.rule, Detection):
        more = '; boxes that appear are measured with goal="ghost"'
    raise InputError(
        f"there is no {target.rule.lacking} in any of the {len(source):,} rows of {source.name}, "
        f"so nothing can be lost{more}."
    )

"""The probe on the rows of an evaluation: those of the data that the judge finds right before any
attack."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from holdfast.attacks.trial import Trial
from holdfast.data import Source
from holdfast.diagnostics.gradient_sources import GradientSources
from holdfast.diagnostics.probe import Answers, CleanRows, probe_rows, rows_of
from holdfast.evaluation import goals, judge
from holdfast.targets.batch import picked, read
from holdfast.targets.target import Target
from holdfast.threats.threat import Threat

# Has what is the same for all rows of a run worked out, and gives what came of it. Workers that
# share the rows have it done by one of them.
once: Callable[[Callable[[], Any]], Any] = lambda work: work()  # noqa: E731


def clean_rows(
    target: Target, source: Source, threat: Threat, start: int, stop: int, seed: int
) -> CleanRows:
    """Of rows start to stop, those whose class the model gives, and gives again."""
    batch, labels = read(source, start, stop)
    batch = target.batcher.place(batch)
    y = torch.from_numpy(labels.astype(np.int64)).to(target.batcher.device)
    began = time.monotonic()
    clean = judge.rule(target, batch, seed)
    seconds = time.monotonic() - began
    right = ((clean.label == y) & clean.stable.to(y.device)).nonzero()[:, 0]
    ids, scores = start + right, picked(clean.scores, right)
    threat = goals.resolved(threat, y[right], ids, scores, target.task.k, seed)
    forwards = judge.PASSES * target.cost.forwards * len(batch)
    share = len(right) / len(batch)
    return CleanRows(ids, batch[right], y[right], scores, threat, share, forwards, seconds)


def probe(
    target: Target,
    source: Source,
    threat: Threat,
    first: Trial,
    sources: GradientSources,
    seed: int,
) -> Answers:
    """Put the questions of `probe_rows` to the first rows of the data."""
    rows = clean_rows(target, source, threat, 0, rows_of(source), seed)
    return probe_rows(target, rows, first, sources, seed)

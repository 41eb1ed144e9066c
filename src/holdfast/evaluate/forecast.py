"""What an evaluation will cost, told before it starts: a pilot on a few rows, and the pace of the machine."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np
import torch

from holdfast.attacks.attack import run
from holdfast.data import Source
from holdfast.evaluate import goals
from holdfast.evaluate.chunk import Plan
from holdfast.targets.target import Access

PILOT = 64  # rows on which the first trial is run to its end
PACE = 128  # rows on which a few steps of each trial are timed
STEPS = 4


@dataclass(frozen=True)
class Forecast:
    """An estimate, right within a factor of two or so: it takes later trials to break nothing."""

    rows: int
    passes: float  # forwards and backwards, the mean of a row
    seconds: float  # of the whole


def forecast(plan: Plan, source: Source, part: tuple[int, int]) -> Forecast:
    """The cost of a plan at its first eps on rows `part` of the data."""
    start, stop = part
    target, first = plan.target, plan.trials[0]
    x, y = source.rows(start, min(stop, start + PACE))
    many = (
        torch.from_numpy(x).to(target.device, target.dtype),
        torch.from_numpy(np.asarray(y, np.int64)).to(target.device),
    )
    clean = target.all_scores(many[0]) if target.access >= Access.SCORES else None
    some = min(PILOT, len(y))
    ids = torch.arange(start, start + len(y))
    threat = goals.resolved(plan.threat, many[1], ids, clean, target.task.k, plan.seed)
    few = torch.arange(some)
    pilot = run(first.attack, plan.way(first), many[0][:some], many[1][:some], threat.of_rows(few), seed=plan.seed)
    asked = pilot.size != 0
    standing = asked & ~pilot.broken if threat.bounded else asked
    left = torch.zeros_like(pilot.margin)
    if clean is not None:
        left = pilot.margin / target.task.margin(clean, many[1])[:some].double()
    passes = seconds = 0.0
    for i, trial in enumerate(plan.trials):
        runs = len(list(trial.units(target.task.k)))
        live = float((standing & ~(left > trial.near)).double().mean()) * runs
        if not i:  # some rows fall on the way
            live += float((pilot.queries / pilot.queries.max().clamp_min(1))[asked & pilot.broken].sum()) / some
        steps = min(STEPS, trial.attack.steps)
        began = time.monotonic()
        short, way = replace(trial.attack, steps=steps), plan.way(trial)
        books = run(short, way, *many, threat, clean=clean, seed=plan.seed, stop=False)
        spent = time.monotonic() - began
        scale = live * trial.attack.steps / steps / len(y)
        passes += scale * float((books.forwards + books.backwards).sum())
        seconds += scale * (stop - start) * spent
    return Forecast(stop - start, passes, seconds)

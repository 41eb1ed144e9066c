"""One chunk of rows, from clean inputs to statuses. Every finished piece is journaled, and read
back on resume.

A chunk holds neighbours, and its size follows from the shape of a row.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from holdfast.attacks.attack import run
from holdfast.attacks.problem import goal_classes, legal_size, meets_goal
from holdfast.attacks.result import Outcome
from holdfast.attacks.trial import Trial
from holdfast.decisions import REFUSED
from holdfast.diagnostics.gradient_sources import Ways
from holdfast.evaluation import goals, judge, perceptual
from holdfast.evaluation.perceptual import PerceptualDistance
from holdfast.evaluation.truths import outputs
from holdfast.runs.journal import Journal
from holdfast.runs.manifest import Costs
from holdfast.targets.batch import Batch, picked
from holdfast.targets.target import Target
from holdfast.targets.truth import TRUTH, WithTruth
from holdfast.threats.threat import Threat


def chunk_of(row: int, parts: Sequence[tuple[int, int]], shape: Sequence[int]) -> int:
    """The first row of the chunk that a row is searched in."""
    part = next(start for start, stop in parts if start <= row < stop)
    return max(part, row - row % stride_of(shape))


def stride_of(shape: Sequence[int]) -> int:
    """Rows of a chunk: about 128 MiB of float32, so that several states of a search fit, and at
    most 1,024."""
    return max(16, min(1024, 2**25 // math.prod(shape)))


def chunks(rows: tuple[int, int], shape: Sequence[int]) -> list[tuple[int, int]]:
    """The chunks [start, stop) of rows of this shape; all but the ends begin at a multiple of the
    stride."""
    (first, last), stride = rows, stride_of(shape)
    begin = first // stride * stride
    return [(max(a, first), min(a + stride, last)) for a in range(begin, last, stride)]


COUNTS = ("queries", "forwards", "backwards", "zero_gradients")  # of the search of each row


class Progress(NamedTuple):
    """How far an evaluation is."""

    share: float  # of all work, by rows and units, in [0, 1]
    trial: str
    live: int  # rows of the present chunk that still stand


OnProgress = Callable[[Progress], None]


class Unit(NamedTuple):
    """One run of one attack at one eps."""

    eps: float
    trial: int
    restart: int
    rank: int


@dataclass(frozen=True)
class Plan:
    """What is done to every chunk."""

    target: Target
    threat: Threat
    trials: Sequence[Trial]
    measured: Sequence[float]  # every eps to run at, the threat's own first
    ways: Ways  # what trials may attack in place of the target
    seed: int = 0
    budget: int | None = None
    deadline: float = float("inf")  # of time.monotonic
    # share of the chunk done, trial, live rows
    on_step: Callable[[float, str, int], None] = lambda *_: None
    perceptual: PerceptualDistance | None = None  # asked how different what is found looks
    smallest: bool = False  # a search for the smallest d goes on past a success within eps

    def units(self) -> list[Unit]:
        """The runs in their order: the threat's eps, then smaller ones downwards, then larger ones
        upwards."""
        own, *others = self.measured
        falling = sorted((e for e in others if e < own), reverse=True)
        rising = sorted(e for e in others if e > own)
        k = self.target.task.k
        return [
            Unit(eps, i, restart, rank)
            for eps in (own, *falling, *rising)
            for i, trial in enumerate(self.trials)
            # what seeks the smallest serves every eps at once
            if trial.attack.bounded or eps == own
            for restart, rank in trial.units(k)
        ]

    def sought(self, unit: Unit) -> float:
        """The eps within which a run may stop."""
        return unit.eps if self.trials[unit.trial].attack.bounded else min(self.measured)

    def keeps(self, eps: float) -> bool:
        """Whether a run keeps inputs of the lowest margin too, and not successes alone."""
        refused = self.target.task.refuses and eps == self.measured[0]
        return refused or any(trial.attack.warm for trial in self.trials)

    def limit(self, eps: float) -> float:
        return float(legal_size(self.threat, self.target, 1, eps))


@dataclass
class Rows:
    """Columns of a chunk as its search goes on; the tensors are on the CPU."""

    batch: Batch
    y: Tensor
    ids: Tensor
    threat: Threat  # the plan's, with the goals of these rows
    clean: judge.Ruling
    best: Tensor  # smallest adversarial point known; until there is one, that of the lowest margin
    size: Tensor  # [n] float64, its size; inf if none
    broken_by: Tensor  # [n] int32: the trial that first broke the row at the threat's eps; -1
    margin: Tensor
    lowest: Tensor  # [n] float64: the lowest margin at the eps that is now searched
    failed: Tensor  # [n] bool
    counts: dict[str, Tensor]  # of COUNTS, [n] int64 each
    asked: Tensor  # [n] bool: right and stable clean, and not of the class that is the goal
    costs: dict[tuple[float, int, int], tuple[int, int, Costs]] = field(
        default_factory=dict
    )  # of each restart
    missed: set[float] = field(
        default_factory=set
    )  # eps at which time ran out before every unit was run

    @property
    def x(self) -> Tensor:
        return self.batch.x

    def shown(self, rows: Tensor) -> Batch:
        """What the model sees of these rows at their best points."""
        batch = self.batch[rows]
        return batch.with_x(self.threat.apply(batch.x, self.best[rows]))

    def fold(
        self, rows: Tensor, record: dict[str, np.ndarray], unit: Unit, own: float, plan: Plan
    ) -> int:
        """Take in what one run found on `rows`; how many of them it was the first to break at its
        eps."""
        new = {name: torch.from_numpy(value) for name, value in record.items()}
        limit, widest = plan.limit(unit.eps), plan.limit(max(plan.measured))
        before = self.size[rows] <= limit
        found = new["size"] <= widest  # a search for the smallest may end beyond every eps
        better = found & (new["size"] < self.size[rows])
        kept = better
        if plan.keeps(unit.eps):
            kept = better | (self.size[rows].isinf() & (new["margin"] < self.lowest[rows]))
        stored = torch.full((len(rows),), -1)
        stored[new["kept"]] = torch.arange(int(new["kept"].sum()))
        kept &= stored >= 0
        self.best[rows[kept]] = new["best"][stored[kept]]
        self.size[rows[better]] = new["size"][better]
        self.lowest[rows] = torch.minimum(self.lowest[rows], new["margin"])
        fresh = ~before & (self.size[rows] <= limit)
        if unit.eps == own:
            self.broken_by[rows[fresh]] = unit.trial
            self.margin[rows] = torch.minimum(self.margin[rows], new["margin"])
            self.failed[rows] |= new["outcome"] == Outcome.FAILED
        for name, count in self.counts.items():
            count[rows] += new[name]
        return int(fresh.sum())


def search(plan: Plan, journal: Journal, name: str, batch: Batch, y: Tensor, ids: Tensor) -> Rows:
    """Run every unit of the plan on a chunk, skipping what the journal holds."""
    rows = _begin(plan, journal, f"{name}-clean", batch, y, ids)
    own = plan.measured[0]
    larger = dict(pairwise(sorted(plan.measured)))
    clean = rows.lowest.clone()
    units = plan.units()
    for number, unit in enumerate(units):
        if number and unit.eps != units[number - 1].eps:
            rows.lowest = clean.clone()
        open_ = rows.asked.clone()
        # else the smallest of all trials is asked for, and each takes all rows
        if plan.threat.bounded:
            open_ &= ~(rows.size <= plan.limit(plan.sought(unit)))
        if unit.eps < own:  # what no eps above it could break is not broken here either
            open_ &= rows.size <= plan.limit(larger[unit.eps])
        if (near := plan.trials[unit.trial].near) < 1:
            # without scores there are no margins, and all rows are near
            open_ &= ~(rows.lowest > near * clean)
        at = open_.nonzero()[:, 0]
        place = f"{name}-{number:04d}"
        if (stored := journal.find(place)) is not None:
            record, seconds = stored[0], float(stored[1]["seconds"])
            at = torch.from_numpy(record.pop("at"))
        elif time.monotonic() > plan.deadline:
            rows.missed.add(unit.eps)
            continue
        else:
            record, seconds = _attack(plan, unit, rows, at, number / len(units), 1 / len(units))
            journal.write(place, record | {"at": at.numpy()}, {"seconds": repr(seconds)})
        broken = rows.fold(at, record, unit, own, plan)
        key = (unit.eps, unit.trial, unit.restart)
        seen, fell, spent = rows.costs.get(key, (len(at), 0, Costs()))
        paid = Costs(
            forwards=spent.forwards + int(record["forwards"].sum()),
            backwards=spent.backwards + int(record["backwards"].sum()),
            queries=spent.queries + int(record["queries"].sum()),
            seconds=spent.seconds + seconds,
        )
        # a later aim takes no row that the first did not
        rows.costs[key] = (seen, fell + broken, paid)
    return rows


@dataclass(frozen=True)
class Judged:
    """What the judge says of the points that were found: m of the rows."""

    at: Tensor  # [m] int64, the rows
    shown: Batch  # what the model sees there
    ruling: judge.Ruling
    size: Tensor  # [m] float64
    holds: Tensor  # [m] bool: legal, of the goal, and stable
    broken: Tensor  # [m] bool: and within the threat's own eps
    unstable: Tensor  # [m] bool: within it, but without a stable answer
    failed: Tensor  # [m] bool: the judge does not find what the attack did


def settle(plan: Plan, rows: Rows) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The judge's word on a searched chunk: its columns of samples, and the examples that are
    evidence: id [m], x [m, *shape], and under a spatial threat point [m, *form]."""
    found = _judge(plan, rows)
    goal = goal_classes(rows.threat, rows.y)
    status = _status(plan, rows, found, goal)
    columns = _columns(plan, rows, found, torch.from_numpy(status == "broken"))
    columns |= _looks(plan, rows, found)
    if goal is not None and goals.differ(plan.threat):
        columns["target_class"] = goal
    table = {name: column.numpy() for name, column in columns.items()} | _outputs(plan, rows, found)
    if plan.target.task.refuses:
        table["robust_by_refusal"] = _refused(plan, rows, torch.from_numpy(status == "robust"))
    table["status"] = np.array([STATUSES.index(s) for s in status], dtype=np.int8)
    held = found.at[found.holds]
    evidence = {"id": rows.ids[held], "x": found.shown.x[found.holds]}
    if plan.threat.spatial is not None:
        evidence["point"] = rows.best[held]
    return table, {name: column.numpy() for name, column in evidence.items()}


def _judge(plan: Plan, rows: Rows) -> Judged:
    at = rows.size.isfinite().nonzero()[:, 0]
    shown = rows.shown(at)
    ruling = judge.rule(plan.target, shown, plan.seed)
    widest = plan.threat.at(max(plan.measured))
    legal, size = judge.within(plan.target, widest, rows.x[at], rows.best[at])
    agreed = meets_goal(rows.threat.of_rows(at), ruling.label.cpu(), rows.y[at])
    holds = legal & agreed & ruling.stable.cpu()
    wavers = legal & ~holds & ~ruling.silent.cpu()
    own = size <= plan.limit(plan.measured[0])
    return Judged(at, shown, ruling, size, holds, holds & own, wavers & own, ~holds & ~wavers)


def _status(plan: Plan, rows: Rows, found: Judged, goal: Tensor | None) -> np.ndarray:
    """The status of each row, a text."""
    clean = rows.clean
    status = np.where((clean.label == rows.y).numpy(), "robust", "wrong").astype("<U9")
    status[clean.silent.numpy()] = "failed"
    status[(~clean.stable & ~clean.silent).numpy()] = "unstable"
    status[(rows.asked & rows.failed).numpy()] = "failed"
    status[found.at[found.broken].numpy()] = "broken"
    status[found.at[found.unstable].numpy()] = "unstable"
    status[found.at[found.failed].numpy()] = "failed"
    if goal is not None:
        status[(rows.y == goal).numpy()] = "skipped"  # there is nothing to reach
    if plan.trials and not rows.costs and bool(rows.asked.any()):  # no unit was run
        status[:] = "skipped"  # all or none of a chunk, or the wrong rows alone would weigh in
    return status


def _columns(plan: Plan, rows: Rows, found: Judged, broken: Tensor) -> dict[str, Tensor]:
    """What every table of samples holds, but for the status; `broken` says which rows are."""
    attacked, confidence = rows.clean.label.clone(), rows.clean.confidence.clone()
    fell = found.at[found.broken]
    attacked[fell] = found.ruling.label.cpu()[found.broken]
    confidence[fell] = found.ruling.confidence.cpu()[found.broken]
    in_time = torch.full((len(rows.y),), plan.measured[0] not in rows.missed)
    return {
        "id": rows.ids,
        "label": rows.y,
        "clean_prediction": rows.clean.label,
        "attacked_prediction": attacked,
        "clean_confidence": rows.clean.confidence,
        "attacked_confidence": confidence,
        "broken_by": torch.where(broken, rows.broken_by, -1),
        "size": _of_all(rows, found.at[found.holds], found.size[found.holds]),
        "margin": torch.where(rows.margin.isfinite(), rows.margin, torch.nan),
        **rows.counts,
        "finished": in_time | broken,
    }


def _looks(plan: Plan, rows: Rows, found: Judged) -> dict[str, Tensor]:
    """How the examples look, and whether they hold as files of 8 bits, where that can be said."""
    target, held, broken = plan.target, found.at[found.holds], found.at[found.broken]
    pair = rows.x[held], found.shown.x[found.holds]
    psnr, ssim = perceptual.looks(target, plan.threat, *pair)
    columns = {"psnr": _of_all(rows, held, psnr), "ssim": _of_all(rows, held, ssim)}
    still = plan.threat.spatial is None and target.bounds.each is None
    if still and perceptual.pictures(target, rows.x):
        shown, threat = found.shown[found.broken], rows.threat.of_rows(broken)
        kept = judge.holds_in_8bit(target, threat, shown, rows.y[broken], plan.seed)
        columns["broken_8bit"] = _of_all(rows, broken, kept.double())
    if plan.perceptual is not None:
        columns["lpips"] = _of_all(rows, held, plan.perceptual(*pair))
    return columns


def _of_all(rows: Rows, at: Tensor, values: Tensor) -> Tensor:
    """A column of values at some rows, and NaN at all others."""
    column = torch.full((len(rows.y),), torch.nan, dtype=torch.float64)
    column[at] = values
    return column


def _outputs(plan: Plan, rows: Rows, found: Judged) -> dict[str, np.ndarray]:
    """The columns of a model whose outputs are held to a truth; of any other none."""
    clean, attacked = rows.clean.scores, found.ruling.scores
    if not isinstance(plan.target, WithTruth) or clean is None or attacked is None:
        return {}
    truths = rows.batch.context[TRUTH]
    truth, before = outputs(plan.target, truths, clean)
    after, broken = before.copy(), found.broken.numpy()
    # one row of torch is no list
    after[found.at.numpy()[broken]] = outputs(plan.target, truths[found.at], attacked.cpu())[1][
        broken
    ]
    # the scores are recast: their softmax says nothing
    nothing = np.full(len(rows.y), np.nan, np.float32)
    return {
        "clean_confidence": nothing,
        "attacked_confidence": nothing.copy(),
        "truth": truth,
        "clean_output": before,
        "attacked_output": after,
    }


def _refused(plan: Plan, rows: Rows, robust: Tensor) -> np.ndarray:
    """Whether a robust row's worst input is wrong but for the refusal: [n], 1 or 0; NaN where
    nothing was asked."""
    start = plan.threat.origin(rows.x)
    at = (robust & (rows.best != start).flatten(1).any(1)).nonzero()[:, 0]
    ruling = judge.rule(plan.target, rows.shown(at), plan.seed)
    assert ruling.scores is not None  # where there is a refusal, it is one of them
    bare = ruling.scores[:, : plan.target.task.k].argmax(1).cpu()
    held = (ruling.label.cpu() == REFUSED) & meets_goal(rows.threat.of_rows(at), bare, rows.y[at])
    held &= judge.within(plan.target, plan.threat, rows.x[at], rows.best[at])[0]
    column = np.full(len(robust), np.nan)
    column[at.numpy()] = held.numpy()
    return column


STATUSES = ("wrong", "broken", "robust", "certified", "unstable", "failed", "skipped")


def _begin(plan: Plan, journal: Journal, place: str, batch: Batch, y: Tensor, ids: Tensor) -> Rows:
    n = len(y)
    if (stored := journal.find(place)) is None:
        ruling = judge.rule(plan.target, batch, plan.seed)
        columns = {name: value for name, value in vars(ruling).items() if value is not None}
        journal.write(place, {name: value.cpu().numpy() for name, value in columns.items()})
        stored = journal.read(place)
    held = {name: torch.from_numpy(value) for name, value in stored[0].items()}
    clean = judge.Ruling(held["label"], held["confidence"], held["stable"], held.get("scores"))
    asked = (clean.label == y) & clean.stable
    threat = goals.resolved(plan.threat, y, ids, clean.scores, plan.target.task.k, plan.seed)
    asked &= ~meets_goal(threat, y, y)
    far = torch.full((n,), torch.inf, dtype=torch.float64)
    margin = far.clone()
    if clean.scores is not None:
        margin = plan.target.task.margin(clean.scores, y.clamp(0, plan.target.task.k - 1)).double()
    return Rows(
        batch=batch,
        y=y,
        ids=ids,
        threat=threat,
        clean=clean,
        best=threat.origin(batch.x).clone(),
        size=far,
        broken_by=torch.full((n,), -1, dtype=torch.int32),
        margin=margin,
        lowest=margin.clone(),
        failed=torch.zeros(n, dtype=torch.bool),
        counts={name: torch.zeros(n, dtype=torch.int64) for name in COUNTS},
        asked=asked,
    )


def _attack(
    plan: Plan, unit: Unit, rows: Rows, at: Tensor, done: float, share: float
) -> tuple[dict[str, np.ndarray], float]:
    """One run, as a record for the journal: what it found and counted, and the inputs of the rows
    that met the goal."""
    trial = plan.trials[unit.trial]
    started = time.monotonic()
    result = run(
        trial.attack,
        plan.ways(trial.through),
        rows.batch[at],
        rows.y[at],
        rows.threat.of_rows(at).at(plan.sought(unit)),
        ids=rows.ids[at],
        seed=plan.seed,
        restart=unit.restart,
        rank=unit.rank,
        clean=picked(rows.clean.scores, at),
        warm_start=rows.best[at] if trial.attack.warm else None,
        budget=None if plan.budget is None else plan.budget - rows.counts["forwards"][at],
        stop=trial.attack.bounded or not plan.smallest,
        pool=plan.ways.images(trial.attack),
        on_step=lambda t, live: plan.on_step(
            done + share * t / trial.attack.steps, repr(trial), live
        ),
    )
    record = {name: column.cpu() for name, column in result.columns().items() if name != "limit"}
    record["kept"] = record["size"].isfinite() | plan.keeps(unit.eps)
    record["best"] = record["best"][record["kept"]]
    return {name: column.numpy() for name, column in record.items()}, time.monotonic() - started

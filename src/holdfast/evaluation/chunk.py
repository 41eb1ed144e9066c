"""One chunk of rows, from clean inputs to statuses. Every finished piece is journaled, and read
back on resume.

A chunk holds neighbours, and its size follows from the shape of a row.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count, pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from holdfast.attacks.attack import run
from holdfast.attacks.problem import goal_classes, legal_size, meets_goal
from holdfast.attacks.result import Outcome
from holdfast.attacks.trial import Trial, asked_before
from holdfast.decisions import REFUSED
from holdfast.diagnostics.gradient_sources import GradientSources
from holdfast.evaluation import goals, judge, perceptual
from holdfast.evaluation.perceptual import PerceptualDistance
from holdfast.memory import rows_at_once
from holdfast.runs.journal import Journal
from holdfast.runs.manifest import Costs
from holdfast.targets.batch import Batch, picked
from holdfast.targets.target import Target, sealed
from holdfast.targets.truth import WithTruth, nothing_to_lose
from holdfast.threats.threat import Threat

SIDE_BY_SIDE = 2**15  # values of a row, in all the runs that are packed together


def chunk_of(row: int, parts: Sequence[tuple[int, int]], shape: Sequence[int]) -> int:
    """The first row of the chunk that a row is searched in."""
    part = next(start for start, stop in parts if start <= row < stop)
    return max(part, row - row % stride_of(shape))


def stride_of(shape: Sequence[int]) -> int:
    """Rows of a chunk."""
    return rows_at_once(shape)


def chunks(rows: tuple[int, int], shape: Sequence[int]) -> list[tuple[int, int]]:
    """The chunks [start, stop) of rows of this shape; all but the ends begin at a multiple of the
    stride."""
    (first, last), stride = rows, stride_of(shape)
    begin = first // stride * stride
    return [(max(a, first), min(a + stride, last)) for a in range(begin, last, stride)]


FIRST = 128  # rows between two growing_chunks at first; later a quarter of all rows before


def growing_chunks(rows: tuple[int, int], shape: Sequence[int]) -> list[tuple[int, int]]:
    """The chunks [start, stop) of a run that may stop at the end of each."""
    (first, last), found = rows, list[tuple[int, int]]()
    start = first
    while start < last:
        size = min(stride_of(shape), max(FIRST, (start - first) // 4))
        found.append((start, min(start + size, last)))
        start += size
    return found


COUNTS = ("queries", "forwards", "backwards", "zero_gradients")  # of the search of each row


class Progress(NamedTuple):
    """How far an evaluation is."""

    share: float  # of all work, by rows and units, in [0, 1]; with attacks and proofs half each
    trial: str  # or the method that proves
    live: int  # rows of the present chunk that are not broken yet; of all that the prover is to try
    state: str = "not broken"  # what the live rows are


OnProgress = Callable[[Progress], None]


class Unit(NamedTuple):
    """One run of one attack at one eps."""

    eps: float
    trial: int
    restart: int
    rank: int


@dataclass(frozen=True)
class SearchSettings:
    """What is run on every chunk."""

    target: Target
    threat: Threat
    trials: Sequence[Trial]
    measured: Sequence[float]  # every eps to run at, the threat's own first
    gradient_sources: GradientSources  # what trials may attack in place of the target
    seed: int = 0
    budget: int | None = None
    deadline: float = float("inf")  # of time.monotonic
    # share of the chunk done, trial, live rows
    on_step: Callable[[float, str, int], None] = lambda *_: None
    perceptual: PerceptualDistance | None = (
        None  # network that says how different the examples look
    )
    steady: bool = False  # two answers of the model agree but for rounding: see the judge
    smallest: bool = False  # a search for the smallest d goes on past a success within eps
    relations: bool = False  # rows of a table that hold are searched again without relations
    packed: bool = False  # restarts and aims of a trial run side by side
    apart: Sequence[float] = ()  # further eps, each a run of its own

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

    def together(self, units: Sequence[Unit], number: int, shape: Sequence[int]) -> Sequence[Unit]:
        """A unit and those after it that run side by side with it: as many of its trial as take
        little memory.

        What each finds is what it would have found alone, in fewer steps, for small networks wait
        for the next step. A row that one breaks has begun in those after it, though: these passes
        are counted too.
        """
        unit = units[number]
        trial = self.trials[unit.trial]
        alone = self.budget is not None or math.isfinite(self.deadline) or trial.attack.warm
        if alone or not self.packed or not self.threat.bounded or self.target.task.enough:
            return [unit]
        room = max(1, SIDE_BY_SIDE // math.prod(shape))
        same = [u for u in units[number:] if (u.eps, u.trial) == (unit.eps, unit.trial)]
        return same[:room]

    def sought(self, unit: Unit) -> float:
        """The eps within which a run may stop."""
        return unit.eps if self.trials[unit.trial].attack.bounded else min(self.measured)

    @property
    def keeps_lowest(self) -> bool:
        """Whether a row that is not broken has an answer under attack of its own."""
        return isinstance(self.target, WithTruth) and self.target.rule.has_measure

    def keeps(self, eps: float) -> bool:
        """Whether a run keeps inputs of the lowest margin too, and not successes alone."""
        own = self.target.task.refuses or self.keeps_lowest
        return (own and eps == self.measured[0]) or any(trial.attack.warm for trial in self.trials)

    def limit(self, eps: float) -> float:
        return float(legal_size(self.threat, self.target, 1, eps))


@dataclass
class ChunkState:
    """Columns of a chunk as its search goes on; the tensors are on the CPU."""

    batch: Batch
    y: Tensor
    ids: Tensor
    threat: Threat  # the threat asked for, with the goals of these rows
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
    # [n] bool: which rows each trial has asked about at the eps that is now searched
    searched: dict[int, Tensor] = field(default_factory=dict)
    reached: int = 0  # the first row for which there was no time for the first unit

    @property
    def x(self) -> Tensor:
        return self.batch.x

    def shown(self, rows: Tensor) -> Batch:
        """What the model sees of these rows at their best points."""
        batch = self.batch[rows]
        return batch.with_x(self.threat.apply(batch.x, self.best[rows]))

    def fold(
        self,
        rows: Tensor,
        record: dict[str, np.ndarray],
        unit: Unit,
        own: float,
        settings: SearchSettings,
    ) -> int:
        """Take in what one run found on `rows`; how many of them it was the first to break at its
        eps."""
        new = {name: torch.from_numpy(value) for name, value in record.items()}
        limit, widest = settings.limit(unit.eps), settings.limit(max(settings.measured))
        before = self.size[rows] <= limit
        found = new["size"] <= widest  # a search for the smallest may end beyond every eps
        better = found & (new["size"] < self.size[rows])
        if settings.target.task.enough and unit.eps == own:
            better = found & (self.size[rows].isinf() | (new["margin"] < self.lowest[rows]))
        kept = better
        if settings.keeps(unit.eps):
            kept = better | (self.size[rows].isinf() & (new["margin"] < self.lowest[rows]))
        stored = torch.full((len(rows),), -1)
        stored[new["kept"]] = torch.arange(int(new["kept"].sum()))
        kept &= stored >= 0
        self.best[rows[kept]] = new["best"][stored[kept]]
        self.size[rows[better]] = new["size"][better]
        self.lowest[rows] = torch.minimum(self.lowest[rows], new["margin"])
        searched = self.searched.setdefault(unit.trial, torch.zeros_like(self.asked))
        searched[rows] |= new["forwards"] > 0
        fresh = ~before & (self.size[rows] <= limit)
        if unit.eps == own:
            self.broken_by[rows[fresh]] = unit.trial
            self.margin[rows] = torch.minimum(self.margin[rows], new["margin"])
            self.failed[rows] |= new["outcome"] == Outcome.FAILED
        for name, counted in self.counts.items():
            counted[rows] += new[name]
        return int(fresh.sum())

    def take(self, rows: Tensor, x: Tensor, settings: SearchSettings) -> None:
        """Take in wrong inputs of rows that no trial found."""
        x = x.to(self.best.dtype)
        shown = settings.target.batcher.place(self.batch[rows].with_x(x))
        scores = settings.target.scores(shown).cpu()
        margin = settings.target.task.margin(scores, self.y[rows]).double()
        size = judge.within(settings.target, self.threat.of_rows(rows), self.batch[rows], x)[1]
        better = size < self.size[rows]
        at = rows[better]
        self.best[at], self.size[at] = x[better], size[better]
        self.margin[rows] = torch.minimum(self.margin[rows], margin)

    def pay(
        self, unit: Unit, rows: Tensor, record: dict[str, np.ndarray], seconds: float, broken: int
    ) -> None:
        """Add what one run on `rows` cost, and how many of them it was the first to break."""
        key = (unit.eps, unit.trial, unit.restart)
        attacked, before, spent = self.costs.get(key, (0, 0, Costs()))
        paid = Costs(
            forwards=spent.forwards + int(record["forwards"].sum()),
            backwards=spent.backwards + int(record["backwards"].sum()),
            queries=spent.queries + int(record["queries"].sum()),
            seconds=spent.seconds + seconds,
        )
        # a later aim takes no row that the first did not
        new = len(rows) if unit.rank < 2 else 0
        self.costs[key] = (attacked + new, before + broken, paid)


def met_by_proofs(name: str) -> str:
    """What the journal calls the wrong inputs of a chunk that its proofs met."""
    return f"{name}-wrong"


def search(
    settings: SearchSettings, journal: Journal, name: str, batch: Batch, y: Tensor, ids: Tensor
) -> ChunkState:
    """Run every attack on a chunk, but for the runs that the journal holds."""
    state = _begin(settings, journal, f"{name}-clean", batch, y, ids)
    own = settings.measured[0]
    larger = dict(pairwise(sorted(settings.measured)))
    clean = state.lowest.clone()
    units = settings.units()
    for number, unit in enumerate(units):
        if number and unit.eps != units[number - 1].eps:
            state.lowest, state.searched = clean.clone(), {}
        open_ = state.asked.clone()
        # else the smallest of all trials is asked for, and each takes all rows
        if settings.threat.bounded:
            broken = state.size <= settings.limit(settings.sought(unit))
            open_ &= ~settings.target.task.settled(broken, state.lowest)
        if unit.eps < own:  # what no eps above it could break is not broken here either
            open_ &= state.size <= settings.limit(larger[unit.eps])
        trial = settings.trials[unit.trial]
        if trial.max_margin < 1:
            # without scores there are no margins, and no row is left out
            open_ &= ~(state.lowest > trial.max_margin * clean)
        for searched in asked_before(settings.trials, unit.trial, state.searched):
            open_ &= ~searched
        left = open_.nonzero()[:, 0]
        place, part = f"{name}-{number:04d}", (number / len(units), 1 / len(units))
        together = settings.together(units, number, batch.x.shape[1:])
        if len(together) > 1 and len(left) and journal.find(place) is None:
            places = [f"{name}-{number + i:04d}" for i in range(len(together))]
            _run_together(settings, journal, places, together, state, left, part)
        for at, record, seconds in _runs(settings, journal, place, unit, state, left, part):
            state.pay(unit, at, record, seconds, state.fold(at, record, unit, own, settings))
            left = left[~torch.isin(left, at)]
            if not number:
                state.reached = int(left[0]) if len(left) else len(y)
    if (stored := journal.find(met_by_proofs(name))) is not None:
        at, x = (torch.from_numpy(stored[0][key]) for key in ("at", "x"))
        state.take(at, x, settings)
    return state


def _runs(
    settings: SearchSettings,
    journal: Journal,
    place: str,
    unit: Unit,
    state: ChunkState,
    left: Tensor,
    part: tuple[float, float],
) -> Iterator[tuple[Tensor, dict[str, np.ndarray], float]]:
    """A unit on the rows `left`: which of them, what was found, and the seconds; in one run, or in
    several where that one would last beyond the deadline. They are the journal's, or made."""
    for number in count():
        record_of = f"{place}-{number}" if number else place
        if (stored := journal.find(record_of)) is not None:
            record, seconds = stored[0], float(stored[1]["seconds"])
            at = torch.from_numpy(record.pop("at"))
        elif time.monotonic() > settings.deadline:
            state.missed.add(unit.eps)
            return
        else:
            at, record, seconds = _in_time(settings, unit, state, left, part)
            journal.write(record_of, record | {"at": at.numpy()}, {"seconds": repr(seconds)})
        yield at, record, seconds
        left = left[~torch.isin(left, at)]
        if not len(left):
            return


def _run_together(
    settings: SearchSettings,
    journal: Journal,
    places: Sequence[str],
    units: Sequence[Unit],
    state: ChunkState,
    at: Tensor,
    part: tuple[float, float],
) -> None:
    """Run units side by side on the rows `at`, and write to the place of each what it would have
    found alone, on the rows that none before it broke. For a row that one broke it pays what those
    after it had begun."""
    columns, seconds = _attack(settings, units, state, at, *part)
    found = [
        {key: column[start : start + len(at)] for key, column in columns.items()}
        for start in range(0, len(units) * len(at), len(at))
    ]
    limit = settings.limit(settings.sought(units[0]))
    open_ = torch.ones(len(at), dtype=torch.bool)
    for i, place in enumerate(places):
        own = {key: column[open_] for key, column in found[i].items()}
        broken = open_ & (found[i]["size"] <= limit)
        for later in found[i + 1 :]:
            for key in COUNTS:
                own[key][broken[open_]] += later[key][broken]
        record = _record(settings, units[i], own) | {"at": at[open_].numpy()}
        journal.write(place, record, {"seconds": repr(seconds / len(units))})
        open_ &= ~broken


def _in_time(
    settings: SearchSettings, unit: Unit, state: ChunkState, at: Tensor, part: tuple[float, float]
) -> tuple[Tensor, dict[str, np.ndarray], float]:
    """One run, on the first of the rows for which there is time; at least on one."""
    while True:
        try:
            columns, seconds = _attack(settings, [unit], state, at, *part)
            return at, _record(settings, unit, columns), seconds
        except _TooLong as long:
            at = at[: max(1, int(long.share * len(at)))]


class _TooLong(Exception):
    """A run would last beyond the deadline."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share  # of its rows, below 1, that there is time for


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


def judge_chunk(
    settings: SearchSettings, state: ChunkState
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], int]:
    """The judge's word on a searched chunk: its columns of samples; the examples that are
    evidence: id [m], x [m, *shape], and under a spatial threat point [m, *form]; and how many
    passes of the model it took."""
    found = _judge(settings, state)
    goal = goal_classes(state.threat, state.y)
    status = _status(settings, state, found, goal)
    columns = _columns(settings, state, found, torch.from_numpy(status == "broken"))
    columns |= _perceptual_columns(settings, state, found)
    forwards = state.clean.forwards + found.ruling.forwards
    if "broken_8bit" in columns:
        forwards += int((~columns["broken_8bit"].isnan()).sum())
    if goal is not None and goals.differ(settings.threat):
        columns["target_class"] = goal
    table = {name: column.numpy() for name, column in columns.items()} | _outputs(
        settings, state, found
    )
    if settings.target.task.refuses:
        table["robust_by_refusal"] = _refused(settings, state, torch.from_numpy(status == "robust"))
        forwards += judge.PASSES * int((~np.isnan(table["robust_by_refusal"])).sum())
    table["status"] = np.array([STATUSES.index(s) for s in status], dtype=np.int8)
    held = found.at[found.holds]
    evidence = {"id": state.ids[held], "x": found.shown.x[found.holds]}
    if settings.threat.spatial is not None:
        evidence["point"] = state.best[held]
    return table, {name: column.numpy() for name, column in evidence.items()}, forwards


def _judge(settings: SearchSettings, state: ChunkState) -> Judged:
    at = state.size.isfinite().nonzero()[:, 0]
    shown = state.shown(at)
    # always asked twice: a defence may draw only where it takes an input for an attack
    ruling = judge.rule(settings.target, shown, settings.seed)
    widest = settings.threat.at(max(settings.measured))
    legal, size = judge.within(settings.target, widest, state.batch[at], state.best[at])
    agreed = meets_goal(state.threat.of_rows(at), ruling.label.cpu(), state.y[at])
    holds = legal & agreed & ruling.stable.cpu()
    wavers = legal & ~holds & ~ruling.silent.cpu()
    own = size <= settings.limit(settings.measured[0])
    return Judged(at, shown, ruling, size, holds, holds & own, wavers & own, ~holds & ~wavers)


def _status(
    settings: SearchSettings, state: ChunkState, found: Judged, goal: Tensor | None
) -> np.ndarray:
    """The status of each row, a text."""
    clean = state.clean
    status = np.where((clean.label == state.y).numpy(), "robust", "wrong").astype("<U9")
    status[clean.silent.numpy()] = "failed"
    status[(~clean.stable & ~clean.silent).numpy()] = "unstable"
    status[(state.asked & state.failed).numpy()] = "failed"
    status[found.at[found.broken].numpy()] = "broken"
    status[found.at[found.unstable].numpy()] = "unstable"
    status[found.at[found.failed].numpy()] = "failed"
    status[~settings.threat.accepts(state.x).numpy()] = "skipped"  # no row of the table itself
    status[nothing_to_lose(settings.target, state.batch).numpy()] = "skipped"
    if goal is not None:
        status[(state.y == goal).numpy()] = "skipped"  # there is nothing to reach
    if settings.trials and bool(state.asked.any()):
        # all from there on, or the wrong ones alone would weigh in
        status[state.reached :] = "skipped"
    return status


def _columns(
    settings: SearchSettings, state: ChunkState, found: Judged, broken: Tensor
) -> dict[str, Tensor]:
    """What every table of samples holds, but for the status; `broken` says which rows are."""
    attacked, confidence = state.clean.label.clone(), state.clean.confidence.clone()
    broken_at = found.at[found.broken]
    attacked[broken_at] = found.ruling.label.cpu()[found.broken]
    confidence[broken_at] = found.ruling.confidence.cpu()[found.broken]
    in_time = torch.full((len(state.y),), settings.measured[0] not in state.missed)
    return {
        "id": state.ids,
        "label": state.y,
        "clean_prediction": state.clean.label,
        "attacked_prediction": attacked,
        "clean_confidence": state.clean.confidence,
        "attacked_confidence": confidence,
        "broken_by": torch.where(broken, state.broken_by, -1),
        "size": _of_all(state, found.at[found.holds], found.size[found.holds]),
        "margin": torch.where(state.margin.isfinite(), state.margin, torch.nan),
        **state.counts,
        "finished": in_time | broken,
    }


def _perceptual_columns(
    settings: SearchSettings, state: ChunkState, found: Judged
) -> dict[str, Tensor]:
    """How visible the changes are, and whether they survive in files of 8 bits, for images."""
    target, held, broken = settings.target, found.at[found.holds], found.at[found.broken]
    pair = state.x[held], found.shown.x[found.holds]
    psnr, ssim = perceptual.image_distances(target, settings.threat, *pair)
    columns = {"psnr": _of_all(state, held, psnr), "ssim": _of_all(state, held, ssim)}
    still = settings.threat.additive and target.bounds.each is None
    if still and perceptual.pictures(target, state.x):
        shown, threat = found.shown[found.broken], state.threat.of_rows(broken)
        kept = judge.holds_in_8bit(target, threat, shown, state.y[broken], settings.seed)
        columns["broken_8bit"] = _of_all(state, broken, kept.double())
    if settings.perceptual is not None:
        columns["lpips"] = _of_all(state, held, settings.perceptual(*pair))
    return columns


def _of_all(state: ChunkState, at: Tensor, values: Tensor) -> Tensor:
    """A column of values at some rows, and NaN at all others."""
    column = torch.full((len(state.y),), torch.nan, dtype=torch.float64)
    column[at] = values
    return column


def _outputs(settings: SearchSettings, state: ChunkState, found: Judged) -> dict[str, np.ndarray]:
    """The columns of a model whose outputs are held to a truth; of any other none."""
    clean, attacked = state.clean.scores, found.ruling.scores
    if not isinstance(settings.target, WithTruth) or clean is None or attacked is None:
        return {}
    with sealed(settings.seed):
        truth, before = settings.target.answers(state.batch, clean)
        broken = found.shown[found.broken]
        lost = settings.target.answers(broken, attacked.cpu()[found.broken])[1]
        after = before.clone()
        if settings.keeps_lowest:
            after = _at_lowest(settings, state, before)
    after[found.at[found.broken]] = lost.to(after.dtype)
    # the scores are recast: their softmax says nothing
    nothing = np.full(len(state.y), np.nan, np.float32)
    columns = {
        "clean_confidence": nothing,
        "attacked_confidence": nothing.copy(),
        "truth": truth.numpy(),
        "clean_output": before.numpy(),
        "attacked_output": after.numpy(),
    }
    if settings.target.rule.structured:
        columns["nothing_to_lose"] = settings.target.empty(state.batch).numpy()
    return columns


def _at_lowest(settings: SearchSettings, state: ChunkState, before: Tensor) -> Tensor:
    """What the model answers at the lowest margin that was found for each row; `before` [n, w]
    where no legal input of a lower one is known."""
    assert isinstance(settings.target, WithTruth)
    changed = (state.best != settings.threat.origin(state.x)).flatten(1).any(1)
    changed &= judge.within(settings.target, settings.threat, state.batch, state.best)[0]
    at = (state.asked & changed & ~state.failed).nonzero()[:, 0]
    after, shown = before.clone(), state.shown(at)
    scores = judge.rule(settings.target, shown, settings.seed).scores
    assert scores is not None  # else no answers are held to truths
    after[at] = settings.target.answers(shown, scores.cpu())[1].to(after.dtype)
    return after


def _refused(settings: SearchSettings, state: ChunkState, robust: Tensor) -> np.ndarray:
    """Whether a robust row's worst input is wrong but for the refusal: [n], 1 or 0; NaN where
    nothing was asked."""
    start = settings.threat.origin(state.x)
    at = (robust & (state.best != start).flatten(1).any(1)).nonzero()[:, 0]
    ruling = judge.rule(settings.target, state.shown(at), settings.seed)
    assert ruling.scores is not None  # where there is a refusal, it is one of them
    bare = ruling.scores[:, : settings.target.task.k].argmax(1).cpu()
    held = (ruling.label.cpu() == REFUSED) & meets_goal(state.threat.of_rows(at), bare, state.y[at])
    held &= judge.within(settings.target, settings.threat, state.batch[at], state.best[at])[0]
    column = np.full(len(robust), np.nan)
    column[at.numpy()] = held.numpy()
    return column


STATUSES = ("wrong", "broken", "robust", "certified", "unstable", "failed", "skipped")


def _begin(
    settings: SearchSettings, journal: Journal, place: str, batch: Batch, y: Tensor, ids: Tensor
) -> ChunkState:
    n = len(y)
    if (stored := journal.find(place)) is None:
        ruling = judge.rule(settings.target, batch, settings.seed, steady=settings.steady)
        columns = {name: value for name, value in vars(ruling).items() if value is not None}
        journal.write(place, {name: value.cpu().numpy() for name, value in columns.items()})
        stored = journal.read(place)
    held = {name: torch.from_numpy(value) for name, value in stored[0].items()}
    clean = judge.Ruling(**{"scores": None, **held})
    asked = (clean.label == y) & clean.stable
    threat = goals.resolved(
        settings.threat, y, ids, clean.scores, settings.target.task.k, settings.seed
    )
    asked &= ~meets_goal(threat, y, y) & threat.accepts(batch.x)
    asked &= ~nothing_to_lose(settings.target, batch)
    far = torch.full((n,), torch.inf, dtype=torch.float64)
    margin = far.clone()
    if clean.scores is not None:
        margin = settings.target.task.margin(
            clean.scores, y.clamp(0, settings.target.task.k - 1)
        ).double()
    return ChunkState(
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
    settings: SearchSettings,
    units: Sequence[Unit],
    state: ChunkState,
    at: Tensor,
    done: float,
    share: float,
) -> tuple[dict[str, Tensor], float]:
    """Units of one trial side by side on the rows `at`: what each found and counted, one after the
    other, and the seconds."""
    unit, sets = units[0], len(units)
    trial = settings.trials[unit.trial]
    restart, rank = (
        torch.tensor([(u.restart, u.rank) for u in units]).repeat_interleave(len(at), 0).T
    )
    at = at.repeat(sets)
    started, steps = time.monotonic(), trial.attack.steps

    def on_step(t: int, live: int) -> None:
        settings.on_step(done + share * t / steps, repr(trial), live)
        if t == 1 and steps > 1 and len(at) > 1 and math.isfinite(settings.deadline):
            there, due = settings.deadline - started, steps * (time.monotonic() - started)
            if due > there:
                raise _TooLong(min(max(there, 0) / due, 0.9))

    result = run(
        trial.attack,
        settings.gradient_sources(trial.gradient),
        state.batch[at],
        state.y[at],
        state.threat.of_rows(at).at(settings.sought(unit)),
        ids=state.ids[at],
        seed=settings.seed,
        restart=restart,
        rank=rank,
        sets=sets,
        clean=picked(state.clean.scores, at),
        warm_start=state.best[at] if trial.attack.warm else None,
        budget=None if settings.budget is None else settings.budget - state.counts["forwards"][at],
        stop=trial.attack.bounded or not settings.smallest,
        pool=settings.gradient_sources.images(trial.attack),
        widest=max(settings.measured),
        on_step=on_step,
    )
    columns = {name: column.cpu() for name, column in result.columns().items() if name != "limit"}
    return columns, time.monotonic() - started


def _record(
    settings: SearchSettings, unit: Unit, columns: dict[str, Tensor]
) -> dict[str, np.ndarray]:
    """What a run found and counted, for the journal: with the inputs of those rows alone whose best
    ones are kept."""
    kept = columns["size"].isfinite() | settings.keeps(unit.eps)
    record = columns | {"kept": kept, "best": columns["best"][kept]}
    return {name: column.numpy() for name, column in record.items()}

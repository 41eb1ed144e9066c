"""What an evaluation will cost, said before it starts: from a pilot at every eps, and a few steps
of each trial.

Counted are all passes: of the judge, of the probe, of every trial at every eps, of
corruptions. What cannot be known before is left out: trials that answer the probe's findings
(they are forecast once it has run), and rows that later trials break, which the last trials then do
not see.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace
from itertools import pairwise

import torch

from holdfast.attacks.attack import run
from holdfast.attacks.trial import Trial, asked_before
from holdfast.corruptions import measure
from holdfast.data import Source
from holdfast.diagnostics import probe
from holdfast.diagnostics.binarisation import CHANCE, INNER
from holdfast.diagnostics.probe import CleanRows
from holdfast.errors import HoldfastError
from holdfast.evaluation import judge
from holdfast.evaluation.chunk import SearchSettings, chunks
from holdfast.evaluation.probing import clean_rows
from holdfast.memory import rows_to_try
from holdfast.targets.target import Access

ROWS = 128  # that the forecast is made on; on all of them the shortest of the short runs is timed
PILOT = 64  # of these, rows on which the first trial is run to its end, at every eps
FEW = 8  # rows of the short runs
ROWS_LARGE, FEW_LARGE = 8, 2  # the same of inputs that are dear to ask about
SHORT = (2, 4, 8)  # their steps
SHARE = 0.1  # of the time that is left, what the forecast may take, where time is limited
# from this power of the steps on, the cost of a run is taken to grow faster than they do
BEND = 1.3


@dataclass(frozen=True)
class Forecast:
    """An estimate. Passes are right within a factor of two: it takes later trials to break nothing.

    `added` of the trials answer findings of the probe, which has run by then and is no longer
    counted. Proofs take no passes, and at most so many seconds more.
    """

    rows: int
    passes: float  # forwards and backwards of a mean row, with all that is asked apart from attacks
    seconds: float  # of the whole
    added: int = 0
    proofs: float = 0.0

    def times(self, runs: int) -> Forecast:
        """Of so many runs that cost alike."""
        return replace(self, passes=runs * self.passes, seconds=runs * self.seconds)


@dataclass(frozen=True)
class Price:
    """What a run of an attack that breaks nothing costs."""

    passes: float  # of a row
    step: float  # seconds of a step, whatever its rows
    row: float  # seconds of a step, for each row
    steps: int

    def seconds(self, rows: float, chunks: int) -> float:
        """Of all steps on so many rows, which lie in so many chunks."""
        return self.steps * (self.step * min(chunks, math.ceil(rows)) + self.row * rows)


@dataclass
class Bill:
    """What has been counted so far, of n rows."""

    n: int
    chunks: int
    passes: float = 0.0  # of all rows
    seconds: float = 0.0
    prices: dict[str, Price] = field(default_factory=dict)
    until: float = math.inf  # of time.monotonic, when the forecast itself begins nothing new

    def lasts(self, seconds: float) -> bool:
        """Whether there is time to try what takes so long."""
        return time.monotonic() + seconds <= self.until

    def add(self, price: Price, rows: float) -> None:
        """A whole run on so many rows."""
        self.passes += price.passes * rows
        self.seconds += price.seconds(rows, self.chunks)


def forecast(
    settings: SearchSettings,
    source: Source,
    part: tuple[int, int],
    *,
    probed: bool = False,
    corruptions: bool = False,
    added: int = 0,
) -> Forecast:
    """The cost of an evaluation on rows `part` of the data.

    Args:
        probed: the probe comes first.
        corruptions: the model is asked about corrupted inputs too.
        added: so many of the trials, the last ones, answer findings; no row is asked about anew
            before them.
    """
    start, stop = part
    n, time_left = stop - start, settings.deadline - time.monotonic()
    bill = Bill(n, len(chunks(part, source.shape)), until=time.monotonic() + SHARE * time_left)
    looked = min(n, rows_to_try(source.shape, ROWS, ROWS_LARGE))
    rows = clean_rows(
        settings.target, source, settings.threat, start, start + looked, settings.seed
    )
    seconds = rows.seconds / (judge.PASSES * looked)  # of a pass
    broken, left = _trials(settings, rows, bill) if len(rows.y) else (0.0, 0.0)
    asked = n + broken * n + (len(measure.COLUMNS) * n / judge.PASSES if corruptions else 0)
    bill.passes += judge.PASSES * asked * settings.target.cost.forwards
    bill.seconds += judge.PASSES * asked * seconds
    if probed and len(rows.y):
        _probe(settings, source, rows, left, bill)
    most = math.inf if settings.budget is None else 2.0 * settings.budget + judge.PASSES * 2
    time_left = settings.deadline - time.monotonic()
    return Forecast(n, min(bill.passes / n, most), min(bill.seconds, max(time_left, 0.0)), added)


def _trials(settings: SearchSettings, rows: CleanRows, bill: Bill) -> tuple[float, float]:
    """Bill every trial at every eps, in the order in which they run.

    Returns the share of all rows that is broken at any eps, and of the right ones the share that
    is not broken at the threat's.
    """
    first, m = settings.trials[0], min(PILOT, len(rows.y))
    if settings.target.access < Access.GRADIENTS:
        m = min(m, max(8, bill.n // 10))  # its first trial is long, and questions may be dear
    size = torch.full((m,), torch.inf, dtype=torch.float64)
    own, larger = settings.measured[0], dict(pairwise(sorted(settings.measured)))
    left = torch.zeros(m)
    eps, begun, searched = math.nan, False, dict[int, torch.Tensor]()
    for unit in settings.units():
        trial = settings.trials[unit.trial]
        if unit.eps != eps:
            eps, left, begun, searched = unit.eps, torch.zeros(m), False, {}
        price = _priced(settings, trial, rows, bill)
        live = ~(size <= settings.limit(settings.sought(unit))) | (not settings.threat.bounded)
        if eps < own:
            live &= size <= settings.limit(larger[eps])
        weight = bill.n * rows.share / m
        if begun or trial is not first or not bill.lasts(price.seconds(m, 1)):
            taken = live & ~(left > trial.max_margin)
            for asked in asked_before(settings.trials, unit.trial, searched):
                taken &= ~asked
            bill.add(price, weight * float(taken.sum()))
            if price.passes:
                searched[unit.trial] = taken | searched.get(unit.trial, False)
            continue
        at, begun = live.nonzero()[:, 0], True
        searched[unit.trial] = live
        if not len(at):
            continue
        part = rows.part(at)
        pilot = run(
            first.attack,
            settings.gradient_sources(first.gradient),
            part.batch,
            part.y,
            part.threat.at(settings.sought(unit)),
            clean=part.scores,
            seed=settings.seed,
            pool=settings.gradient_sources.images(first.attack),
        )
        size[at] = torch.minimum(size[at], pilot.size.cpu().double())
        if part.scores is not None:
            left[at] = (
                (pilot.margin / settings.target.task.margin(part.scores, part.y)).cpu().float()
            )
        spent = float((pilot.forwards + pilot.backwards).sum())
        bill.passes += weight * spent
        bill.seconds += price.seconds(weight * spent / max(price.passes, 1.0), bill.chunks)
    broken, robust = size <= settings.limit(max(settings.measured)), size > settings.limit(own)
    if settings.relations:  # it takes the second search to break nothing either
        for unit in (one for one in settings.units() if one.eps == own):
            price = _priced(settings, settings.trials[unit.trial], rows, bill)
            bill.add(price, bill.n * rows.share / m * float(robust.sum()))
    return rows.share * float(broken.double().mean()), float(robust.double().mean())


def _priced(settings: SearchSettings, trial: Trial, rows: CleanRows, bill: Bill) -> Price:
    """The price of a trial, found once, from runs of a few steps. Their cost grows with the steps,
    or with a power of them where each costs more."""
    if (text := trial.write(whole=True)) in bill.prices:
        return bill.prices[text]
    attack, attacked = trial.attack, settings.gradient_sources(trial.gradient)

    def short(steps: int, n: int) -> tuple[float, float]:
        """Passes of a row, and seconds of all."""
        part, brief = rows.part(torch.arange(n)), replace(attack, steps=steps)
        began = time.monotonic()
        result = run(
            brief,
            attacked,
            part.batch,
            part.y,
            part.threat,
            clean=part.scores,
            seed=settings.seed,
            stop=False,
            pool=settings.gradient_sources.images(attack),
        )
        return float((result.forwards + result.backwards).double().mean()), time.monotonic() - began

    shape = rows.x.shape[1:]  # of large inputs a step costs what its rows do
    few, many = (min(rows_to_try(shape, n, FEW_LARGE), len(rows.y)) for n in (FEW, ROWS))
    if attack.of_networks:  # its start is dear
        few = many = 1
    steps = [s for s in SHORT if s < attack.steps] or [attack.steps]
    costs = [short(steps[0], few)]
    while len(costs) < len(steps) and bill.lasts(2 * costs[-1][1]):
        costs.append(short(steps[len(costs)], few))
    cost, spent = costs[-1]
    steps = steps[: len(costs)]
    whole, last = cost, steps[-1]
    if last < attack.steps:
        whole = _extrapolated([c for c, _ in costs], steps, attack.steps)
    if cost and attack.expected_passes is not None:
        whole = attack.expected_passes * attacked.cost.forwards
    row, first = spent / few / last, costs[0][1]
    if many > few and bill.lasts(first * many / few):
        row = min(max((short(steps[0], many)[1] - first) / (many - few) / steps[0], 0.0), row)
    # of a mean step to the first ones
    scale = max(whole, 1.0) / attack.steps / (max(cost, 1.0) / last)
    step = max(spent / last - row * few, 0.0)
    bill.prices[text] = Price(whole, step * scale, row * scale, attack.steps)
    return bill.prices[text]


def _extrapolated(costs: list[float], steps: list[int], last: int) -> float:
    """The cost of `last` steps: on a line through the last two costs, or a power where three of
    them bend upwards."""
    if len(costs) < 2:
        return costs[-1] * last / steps[-1]
    power = 1.0
    if len(costs) == 3:
        before, after = costs[1] - costs[0], costs[2] - costs[1]
        if min(before, after) > 0 and (found := math.log2(after / before)) > BEND:
            power = min(found, 1.6)
    slope = (costs[-1] - costs[-2]) / (steps[-1] ** power - steps[-2] ** power)
    return costs[-1] + slope * (last**power - steps[-1] ** power)


def _probe(
    settings: SearchSettings, source: Source, rows: CleanRows, left: float, bill: Bill
) -> None:
    """Bill the questions of `probe.probe_rows`, most of which go to the share `left` that the first
    trial leaves."""
    m = probe.rows_of(source) * rows.share
    own = Bill(round(m) or 1, 1, prices=bill.prices)
    first = settings.trials[0]
    # again on planted examples, where it soon succeeds
    own.add(_priced(settings, first, rows, bill), 1.5 * m if m >= probe.PLANTED else m)
    for name, trial in probe.questions(first, hard=False).items():
        if left * m < probe.least(name, round(m)):
            continue
        try:
            own.add(_priced(settings, trial, rows, bill), left * m)
        except HoldfastError:  # a question that does not fit the threat is not asked
            continue
    price = bill.prices[first.write(whole=True)]
    # that a planted example is told from
    points = INNER + CHANCE + 3 if settings.threat.norm.dense else 0
    asked = (judge.PASSES / max(rows.share, 0.01) + 13 + points) * settings.target.cost.forwards
    bill.passes += own.passes + asked * m
    bill.seconds += own.seconds + asked * m * price.seconds(1, 1) / max(price.passes, 1.0)

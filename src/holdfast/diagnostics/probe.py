"""The probe: a few rows are questioned before the protocol. `findings_of` reads the answers.

It looks at the first rows of the source, whichever of them are measured, so that all shards of a
run see the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from holdfast.attacks import parse_trial
from holdfast.attacks.attack import check_fit, run
from holdfast.attacks.trial import Trial
from holdfast.data import Source
from holdfast.diagnostics.binarisation import missed
from holdfast.diagnostics.gradient_sources import GradientSources
from holdfast.errors import HoldfastError
from holdfast.losses import LOSSES, without
from holdfast.memory import rows_at_once
from holdfast.rng import Keys
from holdfast.runs.manifest import Costs
from holdfast.targets.batch import Batch, picked
from holdfast.targets.frameworks.pytorch.bpda import hard_steps
from holdfast.targets.target import Access, Target, sealed
from holdfast.targets.truth import WithTruth
from holdfast.threats.threat import Threat

SHARE, LEAST, MOST = 15, 16, 48  # one row in 15 of the source, within these bounds
PLANTED = 4  # planted examples, of which a share can be taken
CLOSE = 0.125  # of eps: how far the point lies at which the gradient is compared with that at x
# What the probe asks of rows that a protocol's first trial leaves; see `probe_rows`.
QUESTIONS: dict[str, str] = {
    "one": 'fgsm(loss="margin")',
    "scores": "square(steps=120)",
    "labels": "rays(steps=30)",
}
BPDA = 'apgd(steps=30, loss="margin", gradient="bpda")'  # where steps have no gradient


@dataclass(frozen=True)
class CleanRows:
    """Rows of the data that the model has right before any attack."""

    ids: Tensor  # [m] int64: their places in the data
    batch: Batch
    y: Tensor
    scores: Tensor | None  # [m, k]; None of a model that gives labels alone
    threat: Threat  # with the goals of these rows
    share: float = 1.0  # of the rows that were looked at
    forwards: int = 0  # that it cost to find them, and the seconds
    seconds: float = 0.0

    @property
    def x(self) -> Tensor:
        return self.batch.x

    def part(self, at: Tensor) -> CleanRows:
        """Those at these places [k] among them."""
        scores = picked(self.scores, at)
        threat = self.threat.of_rows(at)
        return replace(
            self, ids=self.ids[at], batch=self.batch[at], y=self.y[at], scores=scores, threat=threat
        )


@dataclass
class Answers:
    """Columns of m rows that are right clean, and what they cost."""

    ids: np.ndarray
    hard: list[str] = field(default_factory=list)  # steps without a gradient that inputs go through
    one_hot: np.ndarray | None = None  # [m] bool: the softmax is exactly one-hot in float32
    zero: dict[str, np.ndarray] = field(
        default_factory=dict
    )  # by loss, [m, 2] bool: the gradient is exactly zero
    odd: np.ndarray | None = None  # [m] bool: a gradient is not finite
    slope: np.ndarray | None = (
        None  # [m]: relative error near the input of the gradient against finite differences
    )
    turn: np.ndarray | None = None  # [m]: cosine of the gradients at x and at a point nearby
    broken_by: dict[str, np.ndarray] = field(
        default_factory=dict
    )  # by name, [m] bool: see `probe_rows`
    planted: np.ndarray | None = (
        None  # [m] bool: a solution was planted; None: the test cannot be made
    )
    stepped: bool = False  # the protocol goes straight through the steps
    missed: np.ndarray | None = None  # [m] bool: and the attack did not find it
    passes: dict[str, int] = field(default_factory=dict)  # forwards and backwards of each question
    costs: Costs = field(default_factory=Costs)
    structured: bool = False  # the model gives boxes or pixels

    def charge(self, name: str, forwards: int, backwards: int = 0) -> None:
        self.passes[name] = self.passes.get(name, 0) + forwards + backwards
        self.costs.forwards += forwards
        self.costs.queries += forwards
        self.costs.backwards += backwards


def rows_of(source: Source) -> int:
    """How many rows are probed."""
    rows = max(LEAST, min(MOST, len(source) // SHARE))
    return min(len(source), rows_at_once(source.shape, rows))


def questions(first: Trial, *, hard: bool) -> dict[str, Trial]:
    """What is tried on rows that a protocol's first trial leaves; `hard`: the model has steps
    without a gradient."""
    twice = replace(first.attack, steps=2 * first.attack.steps)
    more = Trial(twice, gradient=first.gradient)
    asked = {name: parse_trial(text) for name, text in QUESTIONS.items()}
    return {"more": more, **asked, **({"bpda": parse_trial(BPDA)} if hard else {})}


def probe_rows(
    target: Target, rows: CleanRows, first: Trial, sources: GradientSources, seed: int
) -> Answers:
    """Put all questions. Those of `questions` go to rows that the protocol's first trial left
    alone.

    `broken_by` says which rows each attack broke: `one` a single step, `more` twice the steps,
    `scores` a search on scores alone, `labels` one on labels, `bpda` straight-through
    gradients; and in which it failed: `whole` with the whole box to move in, `larger` with twice
    eps though it had succeeded within eps.
    """
    structured = isinstance(target, WithTruth) and target.rule.structured
    found = Answers(rows.ids.cpu().numpy(), structured=structured)
    found.charge("clean", rows.forwards)
    if not len(rows.ids) or rows.scores is None or target.access < Access.GRADIENTS:
        return found
    scores = target.task.against(rows.scores, rows.y)
    wrong = scores.float().softmax(1).scatter(1, rows.y[:, None], 0).amax(1)
    found.one_hot = _np(wrong <= torch.finfo(torch.float32).tiny)
    found.hard = hard_steps(target, rows.x[:2])
    found.stepped = first.gradient == "bpda"
    with sealed(seed):
        _gradients(found, target, rows, seed)
    _attacks(found, target, rows, first, sources, seed)
    pool, planted = sources.images(first.attack), None
    if len(rows.ids) >= PLANTED:
        planted = missed(target, rows.x, rows.threat, first, rows.ids, seed, pool)
    if planted is not None:
        found.planted, found.missed = map(_np, planted[:2])
        found.charge("planted", *planted[2:])
    return found


def _gradients(found: Answers, target: Target, rows: CleanRows, seed: int) -> None:
    x, y, threat = rows.x, rows.y, rows.threat
    keys = Keys.of(seed, rows.ids).fold("exam")
    close = target.bounds.clamp(x + CLOSE * float(threat.eps) * threat.norm.sample(keys, x))
    slopes: list[Tensor] = []
    zero: dict[str, list[Tensor]] = {"ce": [], "dlr": [], "margin": []}
    odd = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    for point in (x, close):
        z, pull = target.linearize(rows.batch.with_x(point))
        g = torch.zeros_like(point)
        for loss, flags in zero.items():
            with torch.enable_grad():
                leaf = z.detach().requires_grad_()
                cotangent = torch.autograd.grad(
                    LOSSES[loss](target.task.against(leaf, y), y, None).sum(), leaf
                )[0]
            g = pull(cotangent)
            top = g.flatten(1).abs().amax(1)
            flags.append(top == 0)
            odd |= ~top.isfinite()
        slopes.append(g)  # of the margin
    n = len(x) * target.cost.forwards
    found.charge("gradients", 2 * n, 6 * n)
    found.zero = {loss: _np(torch.stack(flags, 1)) for loss, flags in zero.items()}
    found.odd = _np(odd)
    if target.cost.draws > 1 or target.gradients.approximate:
        return  # no exact derivative of what is asked
    flat = [g.flatten(1).double() for g in slopes]
    found.turn = _np(torch.cosine_similarity(*flat, dim=1))
    if target.losses:
        return  # the margin is a count of pixels, and its gradient that of a loss
    # Not at x: where its features are equal, as in a black corner, a max-pool has no derivative.
    there = rows.batch.with_x(close)
    other = without(target.task.against(target.scores(there), y), y).argmax(1)
    errors = []
    for share in (1e-3, 1e-2):
        h = share * (target.bounds.high - target.bounds.low)
        up, down = (
            _lead(target, there.with_x(close + side * h * slopes[1].sign()), y, other)
            for side in (1, -1)
        )
        errors.append(((up - down) / (2 * h * flat[1].abs().sum(1).clamp_min(1e-300)) - 1).abs())
    found.charge("slope", 5 * n)
    found.slope = _np(torch.minimum(*errors))


def _lead(target: Target, rows: Batch, y: Tensor, other: Tensor) -> Tensor:
    z = target.task.against(target.scores(rows).double(), y)
    return (z.gather(1, other[:, None]) - z.gather(1, y[:, None]))[:, 0]


def _attacks(
    found: Answers,
    target: Target,
    rows: CleanRows,
    first: Trial,
    sources: GradientSources,
    seed: int,
) -> None:
    everything = torch.ones(len(rows.ids), dtype=torch.bool, device=rows.x.device)

    def broken(name: str, trial: Trial, among: Tensor, eps: float | None = None) -> Tensor:
        """Which of these rows a trial breaks; none where it does not fit, and where these are too
        few to show anything."""
        hit, at = torch.zeros_like(everything), among.nonzero()[:, 0]
        if len(at) < least(name, len(everything)):
            return hit
        part = rows.part(at)
        threat = part.threat if eps is None else part.threat.at(eps)
        try:
            attacked = sources(trial.gradient)
            check_fit(trial.attack, attacked, threat, sources.images(trial.attack))
        except HoldfastError:
            return hit
        if len(at):
            result = run(
                trial.attack,
                attacked,
                part.batch,
                part.y,
                threat,
                ids=part.ids.cpu(),
                seed=seed,
                clean=part.scores,
                pool=sources.images(trial.attack),
            )
            hit[at] = result.broken
            found.charge(name, int(result.forwards.sum()), int(result.backwards.sum()))
            found.broken_by[name] = _np(hit)
        return hit

    broken_rows = broken("first", first, everything)
    robust_rows = ~broken_rows
    hard = bool(found.hard) and not found.stepped
    for name, trial in questions(first, hard=hard).items():
        broken(name, trial, robust_rows)
    width = target.bounds.high - target.bounds.low
    whole = float(rows.threat.norm.size(torch.full_like(rows.x[:1], width)))
    if first.attack.bounded:
        found.broken_by["whole"] = _np(
            robust_rows & ~broken("whole", first, robust_rows, eps=whole)
        )
        larger = broken("larger", first, broken_rows, eps=min(2 * float(rows.threat.eps), whole))
        found.broken_by["larger"] = _np(broken_rows & ~larger)


def _np(column: Tensor) -> np.ndarray:
    return column.detach().cpu().numpy()


def least(name: str, m: int) -> int:
    """On how many of m rows probed a question of this name must succeed, or `larger` and `whole`
    fail, to be no accident: 2, or 5 %; of `more` 3; of those that always should, 1."""
    many = max(2, math.ceil(0.05 * m))
    return {"first": 1, "whole": 1, "bpda": 1, "more": max(many, 3)}.get(name, many)

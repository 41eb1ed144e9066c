"""The rows of a run, asked again: labels, predictions and stored examples against the model and the
data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from holdfast.attacks.problem import goal_classes, meets_goal
from holdfast.data import Source
from holdfast.errors import InputError, listed
from holdfast.evaluation import goals, judge
from holdfast.evaluation.certificates import Certifier, opened
from holdfast.evaluation.chunk import chunk_of, growing_chunks
from holdfast.evaluation.claims import some
from holdfast.evaluation.contract import randomised
from holdfast.evaluation.facts import settings_of
from holdfast.evaluation.perceptual import PerceptualDistance, image_distances
from holdfast.evaluation.votes import COLUMNS as VOTED
from holdfast.memory import rows_at_once
from holdfast.runs import store
from holdfast.runs.manifest import Manifest
from holdfast.targets.batch import Batch, joined, read
from holdfast.targets.smoothed import Smoothed
from holdfast.targets.target import Target, sealed
from holdfast.targets.truth import WithTruth, nothing_to_lose
from holdfast.threats.threat import Threat

CLOSE = 5e-3  # of two confidences: what devices and batch sizes may change
AGAIN = 16  # certified rows that are proved again
DRAWS = 3  # further ones of a randomised model, any of which may say what the run says

Found = Iterable[tuple[np.ndarray, str]]  # rows [n] bool, and what is wrong with them


@dataclass(frozen=True)
class Evidence:
    """What a run says, and the model and the data that it was measured on."""

    folder: Path
    manifest: Manifest
    threat: Threat  # that run.json asks about
    target: Target
    source: Source
    table: pa.Table  # of samples
    perceptual: PerceptualDistance | None = None

    @cached_property
    def ids(self) -> np.ndarray:
        return self.table.column("id").to_numpy()

    @cached_property
    def columns(self) -> dict[str, np.ndarray]:
        table = self.table
        return {n: table.column(n).to_numpy(zero_copy_only=False) for n in table.column_names}

    @cached_property
    def randomised(self) -> bool:
        return randomised(self.manifest.initial_findings)

    def judged(self, rows: Batch, further: int = 0) -> judge.Ruling:
        """What the model says of rows, with the noise of the run or `further`."""
        return judge.rule(self.target, rows, self.manifest.seed + further)


@dataclass(frozen=True)
class Examples:
    """Stored examples of m rows, judged again."""

    ids: np.ndarray  # [m]
    at: np.ndarray  # [m]: their places in the table
    x: Tensor
    found: Batch
    y: Tensor
    ruling: judge.Ruling
    labels: list[Tensor]  # those of the ruling, and of a randomised model under further draws
    legal: np.ndarray
    size: np.ndarray
    broken: np.ndarray  # as samples.parquet says

    @property
    def stable(self) -> np.ndarray:
        return self.ruling.stable.cpu().numpy()


def rows_again(e: Evidence) -> Iterator[str]:
    """What does not hold of the rows of a run, one sentence each."""
    columns, ids = e.columns, e.ids
    yield from _sentences("samples", ids, _clean(e))
    yield from _sentences("samples: rows", ids, _statuses(e), _costs(e), _chunks(e))
    place = {int(i): row for row, i in enumerate(ids)}
    evidence = np.zeros(len(ids), dtype=bool)
    shapes = {"id": (), "x": tuple(e.source.shape)}
    if e.threat.spatial is not None:
        shapes["point"] = e.threat.spatial.form
    for stored in store.evidence(e.folder):
        stored_ids = stored["id"]
        at = np.array([place.get(int(i), -1) for i in stored_ids])
        if (at < 0).any() or shapes != {name: a.shape[1:] for name, a in stored.items()}:
            yield (
                "adversarial: examples of rows that the run does not have: "
                f"{some(stored_ids[at < 0])}."
            )
            continue
        evidence[at] = True
        s = _judged_again(e, at, stored)
        found = (_legality(e, s), _figures(e, s), _answers(e, s))
        yield from _sentences("adversarial: the stored examples of rows", stored_ids, *found)
    bare = (columns["status"] == "broken") & ~evidence
    yield from _sentences("adversarial", ids, [(bare, "no stored example for broken rows {}")])
    of_examples = [name for name in ("size", "psnr", "ssim", "lpips") if name in columns]
    yield from _sentences(
        "samples: rows",
        ids,
        [
            (
                np.isfinite(columns[n].astype(float)) & ~evidence,
                f"have a {n} without a stored example",
            )
            for n in of_examples
        ],
    )


def _sentences(what: str, ids: np.ndarray, *found: Found) -> Iterator[str]:
    """A sentence for each fault that rows have; `{}` in its text is replaced by them."""
    for faults in found:
        for bad, text in faults:
            if bad.any() and "{}" in text:
                yield f"{what}: {text.format(some(ids[bad]))}."
            elif bad.any():
                yield f"{what} {some(ids[bad])} {text}."


def _clean(e: Evidence) -> Found:
    """What the model and the data say of the rows before any attack."""
    label, said, status = (e.columns[n] for n in ("label", "clean_prediction", "status"))
    stride = rows_at_once(e.source.shape)
    parts = [slice(start, start + stride) for start in range(0, len(label), stride)]
    asked = np.concatenate([np.zeros((6, 0), bool), *(_asked_again(e, part) for part in parts)], 1)
    claimed = np.isin(status, ["robust", "certified", "broken"]) & (said != label)
    called = "".join(status[claimed][:1])
    return (
        (asked[0], f"the classes to reach of rows {{}} are not those of {e.threat}"),
        (asked[1], "the truths or the model's outputs for rows {} are others"),
        (asked[2], "the model's confidence on the clean rows {} is another"),
        (asked[3], "the labels of rows {} are not those of the data"),
        (asked[4], "the model's clean predictions for rows {} are others"),
        (asked[5], "rows {} have something to lose and are said to have nothing, or the reverse"),
        (claimed, f"rows {{}} are misclassified clean, yet called {called}"),
        (
            (status == "wrong") & (said == label),
            "rows {} are called wrong, but the model has them right",
        ),
        (
            (status != "broken") & (e.columns["attacked_prediction"] != said),
            "rows {} have a prediction under attack, but are not called broken",
        ),
    )


def _asked_again(e: Evidence, part: slice) -> np.ndarray:
    """Where some rows have another goal, output, confidence, label or prediction, or are wrongly
    said to have something to lose, or nothing: [6, m] bool."""
    columns, ids = e.columns, e.ids[part]
    rows, y = read_rows(e.source, ids)
    labels, ruling = torch.from_numpy(np.array(y, np.int64)), e.judged(rows)
    empty = columns.get("nothing_to_lose", np.zeros(len(e.ids)))[part]
    stable = (columns["status"][part] != "unstable") & ruling.stable.cpu().numpy()
    other_goal = np.zeros(len(ids), bool)
    if goals.differ(e.threat):
        where, k = torch.from_numpy(ids.copy()), e.target.task.k
        own = goals.resolved(e.threat, labels, where, ruling.scores, k, e.manifest.seed)
        goal = goal_classes(own, labels)
        assert goal is not None
        other_goal = goal.numpy() != columns["target_class"][part]
    return np.stack(
        [
            other_goal,
            _other_outputs(e, "clean_output", part, rows, ruling) & stable,
            _other_confidence(e, columns["clean_confidence"][part], ruling) & stable,
            columns["label"][part] != y,
            (ruling.label.cpu().numpy() != columns["clean_prediction"][part]) & stable,
            nothing_to_lose(e.target, rows).numpy() != empty.astype(bool),
        ]
    )


def _statuses(e: Evidence) -> Found:
    """What the columns of one row must have in common."""
    columns, status = e.columns, e.columns["status"]
    broken = status == "broken"
    by = np.nan_to_num(columns["broken_by"].astype(float), nan=-1)
    own = sum(trial.eps == e.manifest.threat.eps for trial in e.manifest.trials)
    sure = [columns[name].astype(float) for name in ("clean_confidence", "attacked_confidence")]
    yield ~broken & (by >= 0), "are broken by a trial, but not broken"
    proofs = e.manifest.certification is not None  # which meet wrong inputs, too
    yield broken & (by < 0) & (not proofs), "are broken, but by no trial"
    yield by >= own, "are broken by a trial that run.json does not name"
    yield broken & ~columns["finished"].astype(bool), "are broken, but called unfinished"
    yield (
        ~broken & ~np.isclose(*sure, rtol=0, atol=1e-6, equal_nan=True),
        "have a confidence under attack of their own",
    )
    yield from _certified(e)
    if "truth" in columns:
        outputs = [np.stack(list(columns[n])) for n in ("clean_output", "attacked_output")]
        same = np.isclose(*outputs, rtol=0, atol=0, equal_nan=True).all(1)
        if isinstance(e.target, WithTruth) and e.target.rule.has_measure:
            truth, margin = np.stack(list(columns["truth"])), columns["margin"].astype(float)
            same |= np.isclose(e.target.rule.margins(truth, outputs[1]), margin, rtol=0, atol=1e-3)
        yield ~broken & ~same, "have outputs under attack, but are not called broken"
    if "relations_broken" in columns:
        searched = np.array([max(one, default=-1) >= 0 for one in columns["relations_broken"]])
        yield searched & (status != "robust"), "are not robust, but were searched as if they were"
    if "robust_by_refusal" in columns:
        refused = ~pa.array(columns["robust_by_refusal"]).is_null().to_numpy(False)
        yield refused & (status != "robust"), "are not robust, but said to be robust by a refusal"


def _certified(e: Evidence) -> Found:
    """What the columns about proofs must have in common."""
    status, radius = e.columns["status"], e.columns["certified_radius"].astype(float)
    asked = e.manifest.certification
    if asked is None or "certified_by" not in e.columns:
        yield status == "certified", "are called certified, but the folder holds no certificate"
        yield np.isfinite(radius), "have a certified radius without a certificate"
        return
    by = e.columns["certified_by"]
    proved, enough = np.isin(by, asked.methods), radius >= e.manifest.threat.eps
    yield (
        (status == "certified") & ~(proved & enough),
        "are called certified, but nothing proved it",
    )
    yield (status == "robust") & proved, "are proved, but not called certified"
    known = proved | asked.radius | np.isin(radius, [eps for eps, _ in e.manifest.threat.measured])
    yield np.isfinite(radius) & ~known, "have a radius that nothing proved"


def _costs(e: Evidence) -> Found:
    columns, status = e.columns, e.columns["status"]
    spent = np.stack([columns[name] for name in ("queries", "forwards", "backwards")])
    budget = np.inf if e.manifest.max_queries is None else e.manifest.max_queries
    never_attacked = np.isin(status, ["wrong", "skipped"])
    yield never_attacked & (spent > 0).any(0), "are called wrong or skipped, but were attacked"
    over = (spent < 0).any(0) | (spent[1] > budget)
    yield over, "cost less than nothing, or more than the budget"
    zero = columns["zero_gradients"]
    yield (zero < 0) | (zero > spent[2]), "have more zeros than gradients"


def _chunks(e: Evidence) -> Found:
    """What the rows of one chunk must have in common."""
    columns, manifest = e.columns, e.manifest
    parts, shape = manifest.data.parts, manifest.model.shape
    if manifest.until is None:
        chunk = np.array([chunk_of(int(i), parts, shape) for i in e.ids])
    else:
        starts = np.array([start for start, _ in growing_chunks(parts[0], shape)])
        chunk = starts[starts.searchsorted(e.ids, "right") - 1]
    open_, finished = columns["status"] != "broken", columns["finished"].astype(bool)
    together = _first(finished, chunk, open_)
    yield open_ & (finished != together), "were not finished together with their chunk"
    goal = -1 if manifest.threat.target is None else manifest.threat.target
    reachable = columns["label"] != columns.get("target_class", goal)
    skipped = columns["status"] == "skipped"
    if e.threat.schema is not None:
        rows = read_rows(e.source, e.ids)[0].x.to(e.target.batcher.dtype)
        accepted = e.threat.accepts(rows).numpy()
        yield ~accepted & ~skipped, "break the schema, but are not called skipped"
        reachable &= accepted
    if "nothing_to_lose" in columns:
        empty = columns["nothing_to_lose"].astype(bool)
        yield empty & ~skipped, "have nothing to lose, but are not called skipped"
        reachable &= ~empty
    # time runs out in the order of the rows
    late = _after(skipped & reachable, chunk) & reachable & ~skipped
    yield late, "were attacked, though rows before them in their chunk were skipped"


def _after(values: np.ndarray, chunk: np.ndarray) -> np.ndarray:
    """Whether a row [n] follows one of its chunk of which this is true."""
    begun: set[int] = set()
    found = np.zeros(len(values), dtype=bool)
    for i, (value, at) in enumerate(zip(values.tolist(), chunk.tolist(), strict=True)):
        found[i] = at in begun
        if value:
            begun.add(at)
    return found


def _first(values: np.ndarray, chunk: np.ndarray, among: np.ndarray) -> np.ndarray:
    """For each row [n], the value of the first row of its chunk that is `among` these."""
    first: dict[int, Any] = {}
    for at, value in zip(chunk[among].tolist(), values[among].tolist(), strict=True):
        first.setdefault(at, value)
    return np.array(
        [first.get(at, value) for at, value in zip(chunk.tolist(), values.tolist(), strict=True)]
    )


def _judged_again(e: Evidence, at: np.ndarray, stored: dict[str, np.ndarray]) -> Examples:
    rows, dtype, box = read_rows(e.source, stored["id"])[0], e.target.batcher.dtype, e.target.bounds
    rows = rows.to(rows.x.device, dtype)
    found = rows.with_x(torch.from_numpy(stored["x"]).to(dtype))
    widest = e.threat.at(max(eps for eps, _ in e.manifest.threat.measured))
    point = widest.located(rows.x, found.x)
    if "point" in stored:
        point = torch.from_numpy(stored["point"]).to(dtype)
    legal, size = judge.within(e.target, widest, rows, point)
    shown, slack = widest.apply(rows.x, point), 1e-5 * (box.high - box.low)
    legal &= torch.isclose(shown, found.x, rtol=0, atol=slack).flatten(1).all(1)
    ruling, further = e.judged(found), range(1, 1 + DRAWS * e.randomised)
    return Examples(
        stored["id"],
        at,
        rows.x,
        found,
        torch.from_numpy(e.columns["label"][at]),
        ruling,
        [ruling.label.cpu(), *(e.judged(found, seed).label.cpu() for seed in further)],
        legal.numpy(),
        size.numpy(),
        e.columns["status"][at] == "broken",
    )


def _goals_of(e: Evidence, s: Examples) -> Threat:
    """The threat, with the class that each of these rows is to reach."""
    return e.threat.towards(e.columns["target_class"][s.at]) if goals.differ(e.threat) else e.threat


def _legality(e: Evidence, s: Examples) -> Found:
    """Whether the examples are legal and do what they are said to do."""
    threat = _goals_of(e, s)
    meets = np.any([meets_goal(threat, one, s.y).numpy() for one in s.labels], 0) | ~s.stable
    own = e.manifest.threat.measured[0][1]
    yield ~s.legal, "are outside the threat or the box, or not finite"
    yield ~meets, "do not fool the model"
    yield s.broken & (s.size > own), "are larger than eps"
    hidden = ~s.broken & (s.size <= own) & s.legal & meets
    yield hidden, "break rows that are not called broken"


def _figures(e: Evidence, s: Examples) -> Found:
    """What samples.parquet says of how large the changes are, and how much they show."""
    columns = e.columns
    same = np.isclose(s.size, columns["size"][s.at], rtol=1e-9, atol=0)
    yield ~same, "have another size than samples.parquet says"
    same = np.ones(len(s.ids), dtype=bool)
    for name, found in zip(
        ("psnr", "ssim"), image_distances(e.target, e.threat, s.x, s.found.x), strict=True
    ):
        said = columns[name][s.at]
        same &= np.isclose(said, found.numpy(), rtol=1e-6, atol=1e-9, equal_nan=True)
    yield ~same, "have another PSNR or SSIM than samples.parquet says"
    if e.perceptual is not None:
        said = columns.get("lpips", np.full(len(e.ids), np.nan))[s.at]
        found = np.full(len(s.ids), np.nan)
        found[s.legal] = e.perceptual(
            s.x[s.legal], s.found.x[s.legal]
        ).numpy()  # others may hold NaN
        same = np.isclose(found, said, rtol=1e-6, atol=1e-9)
        yield s.legal & ~same, "have another perceptual distance than samples.parquet says"


def _answers(e: Evidence, s: Examples) -> Found:
    """What samples.parquet says of the model's answers."""
    columns, sure = e.columns, s.broken & s.stable
    given = columns["attacked_prediction"][s.at]
    other = np.all([one.numpy() != given for one in s.labels], 0)
    yield sure & other, "are given another label by the model than samples.parquet says"
    confidence = columns["attacked_confidence"][s.at]
    if not e.randomised:  # in another batch it draws other noise
        other = _other_outputs(e, "attacked_output", s.at, s.found, s.ruling)
        yield sure & other, "are given other outputs by the model than samples.parquet says"
    other = _other_confidence(e, confidence, s.ruling)
    yield sure & other, "are given another confidence by the model than samples.parquet says"
    if "broken_8bit" in columns and s.broken.any() and not e.randomised:
        at = torch.from_numpy(s.broken.nonzero()[0])
        threat = _goals_of(e, s).of_rows(at)
        held = judge.holds_in_8bit(e.target, threat, s.found[at], s.y[at], e.manifest.seed).numpy()
        other = np.zeros(len(s.ids), dtype=bool)
        other[s.broken] = held != columns["broken_8bit"][s.at][s.broken].astype(bool)
        yield (
            sure & other,
            "fool the model in 8 bits where samples.parquet says no, or the other way round",
        )


def _other_confidence(e: Evidence, said: np.ndarray, ruling: judge.Ruling) -> np.ndarray:
    """Where the model's confidence is not the one of samples.parquet: [m] bool."""
    found, model = ruling.confidence.cpu().double().numpy(), e.manifest.model
    made_up = model.access == "labels" and model.surrogate is not None  # around the label
    if made_up or e.randomised:  # in another batch it draws other noise
        return np.zeros(len(found), dtype=bool)
    # whose softmax says nothing
    recast = isinstance(e.target, WithTruth) and ruling.scores is not None
    if recast or model.access == "labels":
        found = np.full(len(found), np.nan)
    return ~np.isclose(said.astype(float), found, rtol=0, atol=CLOSE, equal_nan=True)


def _other_outputs(
    e: Evidence, name: str, at: Any, rows: Batch, ruling: judge.Ruling
) -> np.ndarray:
    """Where a model whose task is not one of k classes has other truths or outputs than the samples
    say: [m] bool."""
    same = np.ones(len(rows), dtype=bool)
    if isinstance(e.target, WithTruth) and ruling.scores is not None and len(rows):
        with sealed(e.manifest.seed):
            found = e.target.answers(rows, ruling.scores.cpu())
        truth, answer = (np.stack(list(e.columns[column][at])) for column in ("truth", name))
        same = np.isclose(truth, found[0].numpy(), rtol=1e-4, atol=1e-5, equal_nan=True).all(1)
        same &= e.target.rule.same(answer, found[1].numpy())
    return ~same


def votes_again(e: Evidence, *, full: bool, note: Callable[[str], None]) -> Iterator[str]:
    """What does not hold of the votes of a smoothed model, which knows those of all rows from then
    on: some rows', or all, are counted again, and of the others the first ones, which choose.

    On another device, or in batches of another size, rounding may change a vote.

    Args:
        note: is handed a sentence that says which rows were counted.
    """
    target, columns = e.target, e.columns
    if not isinstance(target, Smoothed) or not set(VOTED) <= columns.keys():
        if isinstance(target, Smoothed) or set(VOTED) & columns.keys():
            yield "samples: they hold votes, or run.json says that the model is smoothed, not both."
        return
    again = np.ones(len(e.ids), dtype=bool)
    if not full:
        again[np.random.default_rng().permutation(len(again))[AGAIN:]] = False  # none can foresee
    voted, votes = (columns[name] for name in VOTED)
    slack = 0 if settings_of(target) == e.manifest.settings else CLOSE * target.smoothing.draws
    other, unlike, stride = again & False, again & False, rows_at_once(e.source.shape)
    for start in range(0, len(again), stride):
        part = np.arange(start, min(start + stride, len(again)))
        rows = read_rows(e.source, e.ids[part])[0]
        at = part[again[part]]
        found = [column.numpy() for column in target.votes(rows[again[part]])]
        other[at] = (found[0] != voted[at]) | (np.abs(found[1] - votes[at]) > slack)
        rest = part[~again[part]]
        unlike[rest] = target.chosen(rows[~again[part]]).numpy() != voted[rest]
        target.remember(rows.x, *(torch.from_numpy(column[part]) for column in (voted, votes)))
    counted = "all rows" if full else f"rows {listed(e.ids[again].tolist(), AGAIN)}"
    note(f"The votes of {counted} were counted again; of other rows, those that choose the class.")
    yield from _sentences(
        "samples",
        e.ids,
        [
            (other, "the votes for rows {} are others when they are counted again"),
            (unlike & (votes > 0.75 * target.smoothing.draws), "rows {} have another class voted"),
        ],
    )


def proofs_again(e: Evidence, certifier: Certifier | None, *, full: bool) -> Iterator[str]:
    """What does not hold of the certified rows of a run, some of which, or all, are proved
    again."""
    asked, columns = e.manifest.certification, e.columns
    if asked is None:
        return
    if certifier is None:
        yield "certificates: the run holds proofs; without a certifier they cannot be checked."
        return
    prover = opened(certifier, e.target, e.threat, e.manifest.initial_findings)
    known = set(asked.methods) <= set(prover.info.methods)
    if prover.info.version != asked.version or not known:
        yield (
            f"certificates: they were made by {', '.join(asked.methods)} of version "
            f"{asked.version}, and this Holdfast has {', '.join(prover.info.methods)} of version "
            f"{prover.info.version}."
        )
        return
    at = np.flatnonzero(np.isfinite(columns["certified_radius"].astype(float)))
    if not full:
        at = np.sort(np.random.default_rng().permutation(at)[:AGAIN])  # which, no run can foresee
    radius, by = columns["certified_radius"].astype(float)[at], columns["certified_by"][at].copy()
    by[radius != e.threat.eps] = asked.methods[-1]  # what proved another size is not written down
    for method in asked.methods:
        some_of = at[by == method]
        if not len(some_of):
            continue
        rows, y = read_rows(e.source, e.ids[some_of])
        threat = replace(e.threat, eps=torch.from_numpy(radius[by == method]))
        if goals.differ(threat):
            threat = threat.towards(columns["target_class"][some_of])
        held = prover.proves(rows.x, torch.from_numpy(y.astype(np.int64)), threat, method).numpy()
        if not held.all():
            yield (
                f"certificates: {method} does not prove rows {some(e.ids[some_of][~held])} again."
            )


def read_rows(source: Source, ids: np.ndarray) -> tuple[Batch, np.ndarray]:
    """The source's rows of these ids, in runs of neighbours, and their labels."""
    cuts = np.flatnonzero(np.diff(ids) != 1) + 1
    parts = [read(source, int(run[0]), int(run[-1]) + 1) for run in np.split(ids, cuts) if len(run)]
    if not parts:
        raise InputError("there are no rows to read.")
    batches, labels = zip(*parts, strict=True)
    return joined(batches), np.concatenate(labels)

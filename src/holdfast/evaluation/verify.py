"""Verify: judge the stored evidence again, and compute every figure of a run anew."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from holdfast.attacks.problem import goal_classes
from holdfast.corruptions import measure
from holdfast.data import Source
from holdfast.data.laid import laid_as
from holdfast.data.source import group_names
from holdfast.errors import HoldfastError, InputError
from holdfast.evaluation import goals, judge, transformations
from holdfast.evaluation.build_manifest import finish
from holdfast.evaluation.chunking import chunk_of
from holdfast.evaluation.claims import claims, some, threat_of
from holdfast.evaluation.contract import randomised
from holdfast.evaluation.labels import numbered
from holdfast.evaluation.perceptual import PerceptualDistance, looks
from holdfast.evaluation.prepare import open_for
from holdfast.evaluation.truths import outputs, with_truths
from holdfast.runs import store
from holdfast.runs.journal import Journal
from holdfast.runs.manifest import SCHEMA_VERSION, Facts, Manifest
from holdfast.targets.batch import Batch, joined, read
from holdfast.targets.target import Target
from holdfast.targets.truth import TRUTH, WithTruth
from holdfast.targets.wrappers import ExpectationOverTransformation
from holdfast.threats import spatial
from holdfast.threats.threat import Threat

STRIDE = 1024
# of an older run: they were worded otherwise then
WORDS: dict[str, Any] = {
    "verdict": {"reason": True, "findings": {"__all__": {"text", "advice", "source"}}}
}
CLOSE = 5e-3  # of two confidences: what devices and batch sizes may change


def verify(
    folder: Path,
    target: Target,
    data: Any,
    perceptual: str | torch.nn.Module | None = None,
    groups: Sequence[Any] | np.ndarray | None = None,
) -> list[str]:
    """What does not hold in a run folder, one sentence each; empty where all of it does.

    Files are held against their checksums, model and data against their fingerprints, what run.json
    says of them, of threat and protocol against the model, the data and the code, each label,
    prediction, confidence and stored example against the model itself, and each figure of run.json
    against the table of samples. The text of report.html is held by the command `holdfast verify`
    alone.

    Args:
        folder: of the run.
        target: the model that was measured, wrapped as it was then.
        data: those that were measured, all rows, in any form that `holdfast.data.as_source` takes.
        perceptual: the network whose distances the run holds; such a run cannot be confirmed
            without it.
        groups: the groups of all rows, where the run was given them beside the data.

    Raises:
        InputError: the folder holds no run that can be read at all, or none with distances of a
            network that is given.
    """
    manifest, whole = store.open_manifest(folder)
    target = target.copied()
    source = open_for(target, data)
    wrong = [] if whole else ["run.json: it was changed after the run (its digest differs)."]
    try:
        with store.untrusted(folder):
            wrong += _files(folder, manifest)
            wrong += _all(folder, manifest, target, source, perceptual, groups)
    except NoDistances:
        raise
    except HoldfastError as error:
        wrong.append(str(error))
    return wrong


class NoDistances(InputError):
    """A network was given for a run without distances."""


def _all(
    folder: Path, manifest: Manifest, target: Target, source: Source, perceptual: Any, groups: Any
) -> Iterator[str]:
    if len(manifest.model.shape) in (2, 3) and len(source.shape) in (2, 3):
        source = laid_as(source, tuple(manifest.model.shape), "the run measured")
    groups = source.groups if groups is None else group_names(groups, len(source), source.name)
    movement = spatial.parse(manifest.model.transformation)
    asked = threat_of(folder, manifest, len(source))
    if movement is not None:
        asked = replace(
            asked, spatial=transformations.threat_of(movement, target, source.shape).spatial
        )
    target, source = with_truths(target, source, asked)
    target.bind(source.shape)
    (source,), labels = numbered(target, source)
    if manifest.model.draws > 1 and target.cost.draws == 1:
        target = ExpectationOverTransformation(target, manifest.model.draws)
    target.probabilities, target.said = manifest.model.probabilities, True
    seen = None if perceptual is None else PerceptualDistance(perceptual, target)
    if seen is not None and manifest.perceptual is None:
        raise NoDistances(
            f"{folder} was measured without --perceptual, so it holds no distances of a network."
        )
    if seen is not None and seen.fingerprint != manifest.perceptual:
        yield "perceptual: this is not the network that was asked (its fingerprint differs)."
    if seen is None and manifest.perceptual is not None:
        yield (
            "perceptual: the run holds distances of a network; without it (--perceptual) they "
            "cannot be checked."
        )
    if target.fingerprint() != manifest.model.fingerprint:
        yield "model: this is not the model that was measured (its fingerprint differs)."
    if source.fingerprint() != manifest.data.fingerprint:
        yield "data: these are not the data that were measured (their fingerprint differs)."
    table = store.read_samples(folder)
    ids = store.ids_of(folder, manifest, table)
    if not 0 <= ids.min(initial=0) <= ids.max(initial=-1) < len(source):
        yield f"data: they have {len(source)} rows, but the run measured row {ids.max(initial=-1)}."
        return
    if goals.differ(asked) != ("target_class" in table.column_names):
        yield (
            "samples: they say the class to reach of each row, or run.json says that rows have "
            "one, and not both."
        )
        return
    yield from claims(manifest, asked, target, source, labels, groups, table)
    if manifest.model.classes == target.task.k:  # else there may be no room for a table of so many
        yield from _figures(folder, manifest, table)
    yield from _samples(folder, manifest, asked, table, target, source, seen)
    yield from _gallery(folder, table, source)
    yield from _corrupted(folder, manifest, target, source)


def _files(folder: Path, manifest: Manifest) -> Iterator[str]:
    now = store.checksums(folder)
    for name in sorted(manifest.files.keys() | now.keys()):
        if name not in now:
            yield f"{name}: missing."
        elif name not in manifest.files:
            yield f"{name}: not part of the run."
        elif now[name] != manifest.files[name]:
            yield f"{name}: its content was changed after the run (its checksum differs)."
    journal = Journal(folder)
    for name in journal.damaged() if journal.begun else ():
        yield f"journal/{name}: it is damaged; --resume does again what it held."


def _figures(folder: Path, manifest: Manifest, table: pa.Table) -> Iterator[str]:
    facts = Facts(**{name: getattr(manifest, name) for name in Facts.model_fields})
    again = finish(folder, facts, table, manifest.trials)
    apart = WORDS if manifest.schema_version != SCHEMA_VERSION else {}
    for part in ("metrics", "verdict", "costs"):
        said, found = (
            getattr(one, part).model_dump(exclude=apart.get(part)) for one in (manifest, again)
        )
        yield from _differences(part, said, found)
    for cost in ("forwards", "backwards", "queries"):
        spent = sum(getattr(trial.costs, cost) for trial in manifest.trials)
        booked = int(np.sum(table.column(cost).to_numpy()))
        if spent != booked:
            yield f"trials: their {cost} add up to {spent}, but the samples say {booked}."
    by = Counter(table.column("broken_by").to_pylist())
    lost = int(
        np.isin(table.column("status").to_numpy(zero_copy_only=False), ["unstable", "failed"]).sum()
    )
    for i, trial in enumerate(t for t in manifest.trials if t.eps == manifest.threat.eps):
        # what a trial broke, the judge may have found to waver
        if not 0 <= trial.broken - by[i] <= lost:
            yield (
                f"trials: {trial.spec} broke {trial.broken} rows, but the samples give it {by[i]}."
            )


def _differences(name: str, said: Any, found: Any) -> Iterator[str]:
    if isinstance(said, dict) and isinstance(found, dict):
        for key in sorted(said.keys() | found.keys(), key=str):
            yield from _differences(f"{name}.{key}", said.get(key), found.get(key))
    elif isinstance(said, list) and isinstance(found, list) and len(said) == len(found):
        for i, (a, b) in enumerate(zip(said, found, strict=True)):
            yield from _differences(f"{name}[{i}]", a, b)
    elif said != found:
        yield f"{name}: run.json says {said}, but the samples give {found}."


def _samples(
    folder: Path,
    manifest: Manifest,
    asked: Threat,
    table: pa.Table,
    target: Target,
    source: Source,
    seen: PerceptualDistance | None,
) -> Iterator[str]:
    ids = table.column("id").to_numpy()
    place = {int(i): row for row, i in enumerate(ids)}
    columns = {
        name: table.column(name).to_numpy(zero_copy_only=False) for name in table.column_names
    }
    if goals.differ(asked) and "target_class" not in columns:
        yield f"samples: they do not say which class each row was to reach, as {asked} asks."
        return
    yield from _clean(manifest, asked, columns, ids, target, source)
    yield from _told(manifest, columns, ids)
    evidence = np.zeros(len(ids), dtype=bool)
    form = None if asked.spatial is None else asked.spatial.form
    for tensors in store.evidence(folder):
        path_ids, stored, point = tensors["id"], tensors["x"], tensors.get("point")
        rows = np.array([place.get(int(i), -1) for i in path_ids])
        fits = stored.shape[1:] == tuple(source.shape)
        fits &= form == (None if point is None else point.shape[1:])
        if (rows < 0).any() or not fits:
            yield (
                "adversarial: examples of rows that the run does not have: "
                f"{some(path_ids[rows < 0])}."
            )
            continue
        evidence[rows] = True
        yield from _examples(manifest, asked, columns, tensors, rows, target, source, seen)
    bare = (columns["status"] == "broken") & ~evidence
    if bare.any():
        yield f"adversarial: no stored example for broken rows {some(ids[bare])}."
    for name in ("size", "psnr", "ssim", "lpips"):
        bare = (
            np.isfinite(columns.get(name, np.empty(0)).astype(float))
            & ~evidence[: len(columns.get(name, ()))]
        )
        if bare.any():
            yield f"samples: rows {some(ids[bare])} have a {name} without a stored example."


def _told(manifest: Manifest, columns: dict[str, np.ndarray], ids: np.ndarray) -> Iterator[str]:
    """What the columns of one row, and the rows of one chunk, must have in common."""
    status, label, broken = columns["status"], columns["label"], columns["status"] == "broken"
    by = np.nan_to_num(columns["broken_by"].astype(float), nan=-1)
    own = sum(trial.eps == manifest.threat.eps for trial in manifest.trials)
    spent = np.stack([columns[name] for name in ("queries", "forwards", "backwards")])
    budget = np.inf if manifest.max_queries is None else manifest.max_queries
    sure = [columns[name].astype(float) for name in ("clean_confidence", "attacked_confidence")]
    goal = columns.get(
        "target_class", -1 if manifest.threat.target is None else manifest.threat.target
    )
    chunk = np.array([chunk_of(int(i), manifest.data.parts, manifest.model.shape) for i in ids])
    skipped, finished = status == "skipped", columns["finished"].astype(bool)
    for bad, what in (
        (broken != (by >= 0), "are broken, or broken by a trial, and not both"),
        (by >= own, "are broken by a trial that run.json does not name"),
        (
            np.isin(status, ["wrong", "skipped"]) & (spent > 0).any(0),
            "are called wrong or skipped, but were attacked",
        ),
        (
            (spent < 0).any(0) | (spent[1] > budget),
            "cost less than nothing, or more than the budget",
        ),
        (
            (columns["zero_gradients"] < 0) | (columns["zero_gradients"] > spent[2]),
            "have more zeros than gradients",
        ),
        (broken & ~finished, "are broken, but called unfinished"),
        (
            ~broken & (finished != _first(finished, chunk, ~broken)),
            "were not finished together with their chunk",
        ),
        (
            (label != goal) & (skipped != _first(skipped, chunk, label != goal)),
            "were not skipped as whole chunks are",
        ),
        (
            ~broken & ~np.isclose(*sure, rtol=0, atol=1e-6, equal_nan=True),
            "have a confidence under attack of their own",
        ),
        (status == "certified", "are called certified, but the folder holds no certificate"),
        (
            np.isfinite(columns["certified_radius"].astype(float)),
            "have a certified radius without a certificate",
        ),
    ):
        if bad.any():
            yield f"samples: rows {some(ids[bad])} {what}."
    if "truth" in columns:
        clean, attacked = (
            np.stack(list(columns[name])) for name in ("clean_output", "attacked_output")
        )
        bad = ~broken & ~((clean == attacked) | (np.isnan(clean) & np.isnan(attacked))).all(1)
        if bad.any():
            yield (
                f"samples: rows {some(ids[bad])} have outputs under attack, but are not called "
                "broken."
            )
    if (
        "robust_by_refusal" in columns
        and (
            (status != "robust") & ~pa.array(columns["robust_by_refusal"]).is_null().to_numpy(False)
        ).any()
    ):
        yield "samples: rows that are not robust are said to have stood by a refusal."


def _first(values: np.ndarray, chunk: np.ndarray, among: np.ndarray) -> np.ndarray:
    """For each row [n], the value of the first row of its chunk that is `among` these."""
    first: dict[int, Any] = {}
    for at, value in zip(chunk[among].tolist(), values[among].tolist(), strict=True):
        first.setdefault(at, value)
    return np.array(
        [first.get(at, value) for at, value in zip(chunk.tolist(), values.tolist(), strict=True)]
    )


def _gallery(folder: Path, table: pa.Table, source: Source) -> Iterator[str]:
    """The pictures of the report, against the originals of the data and the stored examples."""
    said, made = store.read_gallery(folder), store.gallery(folder, table, source)
    if said.keys() != made.keys() or any(
        not np.array_equal(said[name], made[name]) for name in made
    ):
        yield (
            "gallery.safetensors: its pictures are not those of the data and of the stored "
            "examples."
        )


def _clean(
    manifest: Manifest,
    asked: Threat,
    columns: dict[str, np.ndarray],
    ids: np.ndarray,
    target: Target,
    source: Source,
) -> Iterator[str]:
    label, said, status = columns["label"], columns["clean_prediction"], columns["status"]
    relabelled, repredicted, retold, unsure, aimed = [], [], [], [], []
    for start in range(0, len(ids), STRIDE):
        part = slice(start, min(start + STRIDE, len(ids)))
        batch, y = _rows(source, ids[part])
        ruling = judge.rule(target, batch.to(target.device, target.dtype), manifest.seed)
        relabelled += list(ids[part][label[part] != y])
        if goals.differ(asked):
            where, labels = (
                torch.from_numpy(ids[part].copy()),
                torch.from_numpy(np.array(y, np.int64)),
            )
            own = goals.resolved(asked, labels, where, ruling.scores, target.task.k, manifest.seed)
            said_goal = columns["target_class"][part]
            aimed += list(ids[part][goal_classes(own, labels).numpy() != said_goal])  # pyright: ignore
        waver = (status[part] == "unstable") | ~ruling.stable.cpu().numpy()
        repredicted += list(ids[part][(ruling.label.cpu().numpy() != said[part]) & ~waver])
        retold += list(
            ids[part][_retold(columns, "clean_output", part, target, batch, ruling) & ~waver]
        )
        unsure += list(
            ids[part][_surer(columns["clean_confidence"][part], manifest, target, ruling) & ~waver]
        )
    if aimed:
        yield f"samples: the classes to reach of rows {some(aimed)} are not those of {asked}."
    if retold:
        yield f"samples: the truths or the model's outputs for rows {some(retold)} are others."
    if unsure:
        yield f"samples: the model's confidence on the clean rows {some(unsure)} is another."
    if relabelled:
        yield f"samples: the labels of rows {some(relabelled)} are not those of the data."
    if repredicted:
        yield f"samples: the model's clean predictions for rows {some(repredicted)} are others."
    claimed = np.isin(status, ["robust", "certified", "broken"]) & (said != label)
    if claimed.any():
        yield (
            f"samples: rows {some(ids[claimed])} are misclassified clean, yet called "
            f"{status[claimed][0]}."
        )
    denied = (status == "wrong") & (said == label)
    if denied.any():
        yield f"samples: rows {some(ids[denied])} are called wrong, but the model has them right."
    moved = (status != "broken") & (columns["attacked_prediction"] != said)
    if moved.any():
        yield (
            f"samples: rows {some(ids[moved])} have a prediction under attack, but are not called "
            "broken."
        )


def _examples(
    manifest: Manifest,
    asked: Threat,
    columns: dict[str, np.ndarray],
    tensors: dict[str, np.ndarray],
    rows: np.ndarray,
    target: Target,
    source: Source,
    perceptual: PerceptualDistance | None,
) -> Iterator[str]:
    threat = asked.at(max(eps for eps, _ in manifest.threat.measured))
    ids = tensors["id"]
    batch = _rows(source, ids)[0]
    batch = batch.to(batch.x.device, target.dtype)
    x, x_adv = batch.x, torch.from_numpy(tensors["x"]).to(target.dtype)
    point = torch.from_numpy(tensors.get("point", tensors["x"])).to(target.dtype)
    found, y = batch.with_x(x_adv), torch.from_numpy(columns["label"][rows])
    legal, size = judge.within(target, threat, x, point)
    slack = 1e-5 * (target.bounds.high - target.bounds.low)
    legal &= torch.isclose(threat.apply(x, point), x_adv, rtol=0, atol=slack).flatten(1).all(1)
    ruling = judge.rule(target, found.to(target.device, target.dtype), manifest.seed)
    label, stable = ruling.label.cpu(), ruling.stable.cpu()
    if goals.differ(asked):
        threat = threat.towards(columns["target_class"][rows])
    drawn = randomised(manifest.initial_findings)  # in another batch such a model draws other noise
    labels = [label, *_further_labels(target, found, manifest.seed if drawn else None)]
    meets = torch.stack([judge.meets_goal(threat, one, y) for one in labels]).any(0) | ~stable
    own = manifest.threat.measured[0][1]
    broken = columns["status"][rows] == "broken"
    other_size = ~np.isclose(size.numpy(), columns["size"][rows], rtol=1e-9, atol=0)
    shown = zip(("psnr", "ssim"), looks(target, threat, x, x_adv), strict=True)
    seen = [(columns[name][rows], value.numpy()) for name, value in shown]
    other_look = ~np.all(
        [np.isclose(*pair, rtol=1e-6, atol=1e-9, equal_nan=True) for pair in seen], 0
    )
    other_distance = np.zeros(len(ids), dtype=bool)
    if perceptual is not None:
        said = columns.get("lpips", np.full(len(columns["id"]), np.nan))[rows]
        again = perceptual(x[legal], x_adv[legal]).numpy()  # others may hold NaN
        other_distance[legal.numpy()] = ~np.isclose(
            again, said[legal.numpy()], rtol=1e-6, atol=1e-9
        )
    given = torch.from_numpy(columns["attacked_prediction"][rows].copy())
    other_label = (
        broken & stable.numpy() & torch.stack([one != given for one in labels]).all(0).numpy()
    )
    retold = (
        broken & stable.numpy() & _retold(columns, "attacked_output", rows, target, found, ruling)
    )
    retold &= not drawn
    unsure = (
        broken
        & stable.numpy()
        & _surer(columns["attacked_confidence"][rows], manifest, target, ruling)
    )
    other_rounded = np.zeros(len(ids), dtype=bool)
    if "broken_8bit" in columns and broken.any() and not drawn:
        own_threat, at = (
            threat.of_rows(torch.from_numpy(broken.nonzero()[0])),
            torch.from_numpy(broken),
        )
        again = judge.holds_in_8bit(target, own_threat, found[at], y[at], manifest.seed).numpy()
        other_rounded[broken] = (
            again != columns["broken_8bit"][rows][broken].astype(bool)
        ) & stable.numpy()[broken]
    hidden = ~broken & (size <= own).numpy() & legal.numpy() & meets.numpy()
    for bad, what in (
        (~legal.numpy(), "are outside the threat or the box, or not finite"),
        (~meets.numpy(), "do not fool the model"),
        (other_size, "have another size than samples.parquet says"),
        (other_look, "look otherwise (PSNR, SSIM) than samples.parquet says"),
        (other_distance, "have another perceptual distance than samples.parquet says"),
        (other_label, "are given another label by the model than samples.parquet says"),
        (retold, "are given other outputs by the model than samples.parquet says"),
        (unsure, "are given another confidence by the model than samples.parquet says"),
        (
            other_rounded,
            "fool the model in 8 bits where samples.parquet says no, or the other way round",
        ),
        (broken & (size > own).numpy(), "are larger than eps"),
        (hidden, "break rows that are not called broken"),
    ):
        if bad.any():
            yield f"adversarial: the stored examples of rows {some(ids[bad])} {what}."


def _corrupted(folder: Path, manifest: Manifest, target: Target, source: Source) -> Iterator[str]:
    """The model's decisions on corrupted inputs, asked for again."""
    asked = manifest.corruptions
    if asked is None:
        return
    again = measure.info(target, source.shape, None, manifest.data.fingerprint)
    if (again.version, again.table) != (asked.version, asked.table):
        yield (
            f"corruptions: they were {asked.table}'s, version {asked.version}; here "
            f"{again.table}'s, {again.version}."
        )
        return
    if asked.baseline in (None, "alexnet"):
        again = measure.info(target, source.shape, asked.baseline, manifest.data.fingerprint)
        if again.baseline_errors != asked.baseline_errors:
            yield (
                f"corruptions: run.json has other errors of the baseline ({asked.baseline}) than "
                "its table."
            )
    answers = store.read_corruptions(folder)
    ids = store.ids_of(folder, manifest, answers).copy()
    if tuple(answers.column_names[1:]) != measure.COLUMNS:
        yield "corruptions: the kinds of corruptions.parquet are not those of the run."
        return
    for name in measure.COLUMNS:
        said, others = answers.column(name).to_numpy(), []
        for start in range(0, len(ids), STRIDE):
            part = ids[start : start + STRIDE]
            x = measure.spoiled(
                target,
                _rows(source, part)[0].x,
                name,
                torch.from_numpy(part),
                manifest.seed,
            )
            ruling = judge.rule(target, x, manifest.seed)
            told = said[start : start + STRIDE]
            differs = (
                (ruling.label.cpu().numpy() != told)
                & ruling.stable.cpu().numpy()
                & (told != measure.UNASKED)
            )
            others += list(part[differs])
        if others:
            yield (
                f"corruptions: under {name} the model's decisions on rows {some(others)} are "
                "others."
            )


def _surer(
    said: np.ndarray, manifest: Manifest, target: Target, ruling: judge.Ruling
) -> np.ndarray:
    """Where the model's confidence is not the one of samples.parquet: [m] bool."""
    found = ruling.confidence.cpu().double().numpy()
    if manifest.model.access == "labels" and manifest.model.surrogate is not None:
        return np.zeros(len(found), dtype=bool)  # it was made up around the label
    if randomised(manifest.initial_findings):
        return np.zeros(len(found), dtype=bool)  # in another batch it draws other noise
    # whose softmax says nothing
    recast = isinstance(target, WithTruth) and ruling.scores is not None
    if recast or manifest.model.access == "labels":
        found = np.full(len(found), np.nan)
    return ~np.isclose(said.astype(float), found, rtol=0, atol=CLOSE, equal_nan=True)


def _further_labels(
    target: Target, rows: Batch, seed: int | None, draws: int = 3
) -> Iterator[torch.Tensor]:
    """The labels of rows under further draws, of a randomised model; none where there is no
    seed."""
    for further in range(draws if seed is not None else 0):
        asked = rows.to(target.device, target.dtype)
        yield judge.rule(target, asked, (seed or 0) + 1 + further).label.cpu()


def _retold(
    columns: dict[str, np.ndarray],
    name: str,
    at: Any,
    target: Target,
    rows: Batch,
    ruling: judge.Ruling,
) -> np.ndarray:
    """Where a model whose task is not one of k classes has other truths or outputs than the samples
    say: [m] bool."""
    if not isinstance(target, WithTruth) or ruling.scores is None or not len(rows):
        return np.zeros(len(rows), dtype=bool)
    found = outputs(target, rows.context[TRUTH], ruling.scores.cpu())
    alike = np.ones(len(rows), dtype=bool)
    for column, value in zip(("truth", name), found, strict=True):
        said = np.stack(list(columns[column][at]))
        alike &= np.isclose(said, value, rtol=1e-4, atol=1e-5, equal_nan=True).all(1)
    return ~alike


def _rows(source: Source, ids: np.ndarray) -> tuple[Batch, np.ndarray]:
    """The source's rows of these ids, in runs of neighbours, and their labels."""
    cuts = np.flatnonzero(np.diff(ids) != 1) + 1
    parts = [read(source, int(run[0]), int(run[-1]) + 1) for run in np.split(ids, cuts) if len(run)]
    if not parts:
        raise InputError("there are no rows to read.")
    batches, labels = zip(*parts, strict=True)
    return joined(batches), np.concatenate(labels)

"""Verify: judge the stored evidence again, and compute every figure of a run anew."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from holdfast import spec
from holdfast.arguments import checked
from holdfast.corruptions import measure
from holdfast.data import Source, as_source, suiting
from holdfast.data.files import printable
from holdfast.data.laid import laid_as
from holdfast.data.part import in_random_order
from holdfast.errors import HoldfastError, InputError
from holdfast.evaluation import goals
from holdfast.evaluation.build_manifest import (
    another_restart,
    build_manifest,
    looked_at,
    runs_apart,
)
from holdfast.evaluation.certificates import Certifier
from holdfast.evaluation.claims import claims, claims_apart, some, threat_of
from holdfast.evaluation.judge import PASSES
from holdfast.evaluation.labels import numbered
from holdfast.evaluation.output_kind import find_reading
from holdfast.evaluation.perceptual import PerceptualDistance
from holdfast.evaluation.prepare import groups_of, open_for, threat_of_movement, with_columns
from holdfast.evaluation.recheck import (
    Evidence,
    proofs_again,
    read_rows,
    rows_again,
    votes_again,
)
from holdfast.evaluation.tables import broken_rows, in_table
from holdfast.evaluation.truths import masks, since, with_truths
from holdfast.memory import rows_at_once
from holdfast.runs import store
from holdfast.runs.journal import Journal
from holdfast.runs.manifest import SCHEMA_VERSION, Facts, Finding, Manifest
from holdfast.runs.migration import in_todays_words
from holdfast.runs.run import Run, folder_of
from holdfast.targets import wrap
from holdfast.targets.batch import Batch
from holdfast.targets.smoothed import Smoothed
from holdfast.targets.smoothing_noise import KINDS
from holdfast.targets.target import Target, copied
from holdfast.targets.wrappers import ExpectationOverTransformation
from holdfast.threats import spatial
from holdfast.threats.threat import Threat

# what a run of schema version 1 words otherwise; for later ones see `runs.migration.PHRASES`
WORDS: dict[str, Any] = {
    "verdict": {"reason": True, "findings": {"__all__": {"text", "advice", "source"}}}
}


class Faults(list[str]):
    """What does not hold in a run folder; printed, whether the run is confirmed, and why not.

    `notes` say what was checked of some rows alone.
    """

    def __init__(
        self, folder: Path, manifest: Manifest, wrong: list[str], notes: list[str]
    ) -> None:
        super().__init__(wrong)
        self.folder, self.manifest, self.notes = folder, manifest, notes

    def __repr__(self) -> str:
        if self:
            count = f"{len(self)} contradiction{'s' * (len(self) > 1)}"
            lines = [f"{self.folder} is not confirmed: {count}.", *(f"- {said}" for said in self)]
            return "\n".join(map(printable, lines))
        metrics = self.manifest.metrics
        robust, broken = metrics.robust_accuracy, metrics.counts["broken"]
        said = (
            f"{self.folder} is confirmed: robust accuracy {robust:.3f} on {robust.n:,} inputs; "
            f"{broken:,} stored examples were checked again on the model."
        )
        return printable(" ".join([said, *self.notes]))


@checked
def verify(
    run: Run | Path | str,
    model: Any,
    data: Any,
    *,
    perceptual: str | torch.nn.Module | None = None,
    groups: Sequence[Any] | np.ndarray | None = None,
    certifier: Certifier | None = None,
    full: bool = False,
) -> list[str]:
    """What does not hold in a run folder, one sentence each; empty where all of it does. Printed,
    it says whether the run is confirmed.

    Files are held against their checksums, model and data against their fingerprints, what run.json
    says of them, of threat and protocol against the model, the data and the code, each label,
    prediction, confidence and stored example against the model itself, and each figure of run.json
    against the table of samples. The text of report.html is held by the command `holdfast verify`
    alone.

    Args:
        run: the run, or its folder.
        model: the model that was measured, wrapped as it was then.
        data: those that were measured, all rows: what `holdfast.as_source` takes. What a text or a
            path names is read as the run says that it was.
        perceptual: the network whose distances the run holds; such a run cannot be confirmed
            without it.
        groups: the groups of all rows, where the run was given them apart from the data.
        certifier: proves certified rows again, such as `holdfast.certification.Ladder()`; a run
            that has some cannot be confirmed without it.
        full: all of them; else some, drawn anew each time. So are the rows whose votes are counted
            again, where the run is one of a smoothed model.

    Raises:
        InputError: the folder holds no run that can be read at all, or none with distances of a
            network that is given; or its model was described in another way then.
    """
    folder = folder_of(run)
    manifest, whole = store.open_manifest(folder)
    _refuse_other_rows(folder, manifest)
    if perceptual is not None and manifest.perceptual is None:
        raise InputError(
            f"{folder} was measured without --perceptual, so it holds no distances of a network."
        )
    target = copied(wrap(model))
    source = open_for(target, _read_as_then(data, manifest, target))
    target = with_columns(target, source)
    wrong, notes = list[str](), list[str]()
    if not whole:
        wrong.append("run.json: it was changed after the run (its digest differs).")
    try:
        with store.untrusted(folder):
            wrong += _files(folder, manifest)
            proofs = partial(proofs_again, certifier=certifier, full=full)
            votes = partial(votes_again, full=full, note=notes.append)
            wrong += _all(folder, manifest, target, source, perceptual, groups, votes, proofs)
    except HoldfastError as error:
        wrong.append(str(error))
    return Faults(folder, manifest, wrong, notes)


def _read_as_then(data: Any, manifest: Manifest, target: Target) -> Any:
    """What a text or a path names, read as the run says that it was; other data as they are."""
    if not isinstance(data, (str, os.PathLike)):
        return data
    read = suiting(os.fspath(data), manifest.data.loading)
    scale = target.bounds.high <= 1
    return as_source(data, split=manifest.data.split or "test", scale=scale, **read)


def _refuse_other_rows(folder: Path, manifest: Manifest) -> None:
    """Version 1 wrapped such models in others, so their fingerprints and stored examples differ."""
    model = manifest.model
    as_now = model.transformation is None and model.attacked is None and model.task == "classes"
    if manifest.schema_version != SCHEMA_VERSION and not as_now:
        raise InputError(
            f"{folder} has schema version {manifest.schema_version}; runs of that version with a "
            "transformation, several inputs, or a regression or multi-label model can be read, "
            "but this version of Holdfast cannot verify them: verify it with the Holdfast that "
            f"wrote it ({manifest.provenance.versions.get('holdfast', 'an earlier version')})."
        )


def _all(
    folder: Path,
    manifest: Manifest,
    target: Target,
    source: Source,
    perceptual: Any,
    groups: Any,
    votes: Callable[[Evidence], Iterator[str]],
    proofs: Callable[[Evidence], Iterator[str]],
) -> Iterator[str]:
    groups = groups_of(source, groups)
    if manifest.until is not None:
        source = in_random_order(source, manifest.seed)
        groups = None if groups is None else groups[source.ids]
    target, source, asked, labels = _as_measured(folder, manifest, target, source)
    network = None if perceptual is None else PerceptualDistance(perceptual, target)
    yield from _network(manifest, network)
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
    if (
        manifest.model.classes == target.describe()["classes"]
    ):  # else there may be no room for a table of so many
        yield from _figures(folder, manifest, table)
    evidence = Evidence(folder, manifest, asked, target, source, table, network)
    yield from votes(evidence)
    yield from rows_again(evidence)
    yield from proofs(evidence)
    for run in runs_apart(folder, manifest.threat.apart):
        yield from _apart(evidence, run)
    yield from _gallery(folder, table, source, target, rows=bool(manifest.data.columns))
    yield from _corrupted(evidence)


def _apart(e: Evidence, run: Manifest) -> Iterator[str]:
    """What does not hold in the run at a further eps, of the same rows."""
    folder = store.at_eps(e.folder, run.threat.eps)
    table = store.read_samples(folder)
    asked = replace(e, folder=folder, manifest=run, threat=e.threat.at(run.threat.eps), table=table)
    found = [*claims_apart(run, e.manifest, asked.threat, e.target, table)]
    if not np.array_equal(asked.ids, e.ids):
        found.append("samples: their rows are not those of the run.")
    else:
        found += [*_figures(folder, run, table), *rows_again(asked)]
    yield from (f"curve/{folder.name}: {said}" for said in found)


def _as_measured(
    folder: Path, manifest: Manifest, target: Target, source: Source
) -> tuple[Target, Source, Threat, list[Finding]]:
    """Model, data and threat as run.json says that they were measured, and what was made of the
    labels."""
    if len(manifest.model.shape) in (2, 3) and len(source.shape) in (2, 3):
        source = laid_as(source, tuple(manifest.model.shape), "the run measured")
    movement = spatial.parse(manifest.model.transformation)
    asked = threat_of(folder, manifest, len(source))
    if movement is not None:
        asked = replace(asked, spatial=threat_of_movement(movement, target, source.shape).spatial)
    target, source = with_truths(in_table(target, asked), source, asked)
    (source,), labels = numbered(target, source)
    labels += broken_rows(source, asked, target.batcher.dtype)
    if manifest.model.draws > 1 and target.cost.draws == 1:
        target = ExpectationOverTransformation(target, manifest.model.draws)
    if manifest.model.smoothing is not None and not isinstance(target, Smoothed):
        smoothing = spec.build(manifest.model.smoothing, KINDS, "smoothing")
        target = Smoothed(target, smoothing, manifest.seed)
    target.head = replace(target.head, probabilities=manifest.model.probabilities, said=True)
    find_reading(target, source)  # of the other members of an ensemble, as the run found it
    return target, since(target, source), asked, labels


def _network(manifest: Manifest, network: PerceptualDistance | None) -> Iterator[str]:
    if network is not None and network.fingerprint != manifest.perceptual:
        yield "perceptual: this is not the network that was asked (its fingerprint differs)."
    if network is None and manifest.perceptual is not None:
        yield (
            "perceptual: the run holds distances of a network; without it (--perceptual) they "
            "cannot be checked."
        )


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
    if journal.begun:
        for name in journal.damaged():
            yield f"journal/{name}: it is damaged; --resume does again what it held."


def _figures(folder: Path, manifest: Manifest, table: pa.Table) -> Iterator[str]:
    facts = Facts(**{name: getattr(manifest, name) for name in Facts.model_fields})
    again = build_manifest(folder, facts, table, manifest.trials)
    # of an earlier version
    if manifest.metrics.binary is None:
        again.metrics.binary = None
    before = another_restart(manifest.threat.eps, manifest.trials, as_before=True)
    if manifest.metrics.survivors == before:
        again.metrics.survivors = before
    apart = WORDS if manifest.schema_version != SCHEMA_VERSION else {}
    for part in ("metrics", "verdict", "costs"):
        said, found = (
            getattr(one, part).model_dump(exclude=apart.get(part)) for one in (manifest, again)
        )
        # another version of a library may round the last bits otherwise
        yield from differences(part, in_todays_words(said), in_todays_words(found), close=1e-12)
    judged, looked = manifest.judge_forwards, looked_at(table)
    if judged and not looked <= judged <= PASSES * looked:
        yield f"judge_forwards: run.json says {judged} for the {looked} inputs that were judged."
    for cost in ("forwards", "backwards", "queries"):
        spent = sum(getattr(trial.costs, cost) for trial in manifest.trials)
        counted = int(np.sum(table.column(cost).to_numpy()))
        if spent != counted:
            yield f"trials: their {cost} add up to {spent}, but the samples say {counted}."
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


def differences(
    name: str, said: Any, found: Any, source: str = "the samples", close: float = 0.0
) -> Iterator[str]:
    """Where run.json says otherwise than what was computed anew from its source.

    Args:
        close: the relative difference up to which two numbers are the same.
    """
    if isinstance(said, dict) and isinstance(found, dict):
        for key in sorted(said.keys() | found.keys(), key=str):
            yield from differences(f"{name}.{key}", said.get(key), found.get(key), source, close)
    elif isinstance(said, list) and isinstance(found, list) and len(said) == len(found):
        for i, (a, b) in enumerate(zip(said, found, strict=True)):
            yield from differences(f"{name}[{i}]", a, b, source, close)
    elif close and isinstance(said, float) and isinstance(found, float):
        if not math.isclose(said, found, rel_tol=close, abs_tol=close):
            yield f"{name}: run.json says {said}, but {source} give {found}."
    elif said != found:
        yield f"{name}: run.json says {said}, but {source} give {found}."


def _gallery(
    folder: Path, table: pa.Table, source: Source, target: Target, *, rows: bool
) -> Iterator[str]:
    """The pictures of the report, against the originals of the data and the stored examples."""
    said = store.read_gallery(folder)
    made = store.gallery(folder, table, source, rows=rows, masks=masks(target, source))
    if said.keys() != made.keys() or any(not _same(name, said, made) for name in made):
        yield (
            "gallery.safetensors: its pictures are not those of the data and of the stored "
            "examples."
        )


def _same(name: str, said: Mapping[str, np.ndarray], made: Mapping[str, np.ndarray]) -> bool:
    """Whether two galleries hold the same; masks but for one pixel of a thousand."""
    if name not in store.MASKS:
        return np.array_equal(said[name], made[name])
    alike = said[name].shape == made[name].shape
    return alike and float((said[name] != made[name]).mean()) <= 1e-3


def _corrupted(e: Evidence) -> Iterator[str]:
    """The model's decisions on corrupted inputs, asked for again."""
    manifest, target, shape = e.manifest, e.target, e.source.shape
    if (asked := manifest.corruptions) is None:
        return
    known = asked.baseline in (None, "alexnet")  # else it was a run, which may be gone
    baseline = asked.baseline if known else None
    again = measure.info(target, shape, baseline, manifest.data.fingerprint)
    if (again.version, again.table) != (asked.version, asked.table):
        yield (
            f"corruptions: they were {asked.table}'s, version {asked.version}; here "
            f"{again.table}'s, {again.version}."
        )
        return
    if known and again.baseline_errors != asked.baseline_errors:
        yield (
            f"corruptions: run.json has other errors of the baseline ({asked.baseline}) than its "
            "table."
        )
    answers = store.read_corruptions(e.folder)
    ids, stride = store.ids_of(e.folder, manifest, answers).copy(), rows_at_once(shape)
    if tuple(answers.column_names[1:]) != measure.COLUMNS:
        yield "corruptions: the kinds of corruptions.parquet are not those of the run."
        return
    for name in measure.COLUMNS:
        said, others = answers.column(name).to_numpy(), []
        for start in range(0, len(ids), stride):
            part, given = (column[start : start + stride] for column in (ids, said))
            x, where = read_rows(e.source, part)[0].x, torch.from_numpy(part)
            ruling = e.judged(Batch(measure.spoiled(target, x, name, where, manifest.seed)))
            label, stable = ruling.label.cpu().numpy(), ruling.stable.cpu().numpy()
            others += list(part[stable & (label != given) & (given != measure.UNASKED)])
        if others:
            yield (
                f"corruptions: under {name} the model's decisions on rows {some(others)} are "
                "others."
            )

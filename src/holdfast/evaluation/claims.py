"""What run.json says was asked of what, held against itself, the code, the model and the data."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from holdfast.attacks import parse_trial
from holdfast.attacks.problem import legal_size
from holdfast.bounds.tree_models import has_trees
from holdfast.data import Source
from holdfast.diagnostics import checks
from holdfast.diagnostics.detectors import first_answers, no_place
from holdfast.diagnostics.gradient_sources import GradientSources
from holdfast.diagnostics.scales import one_size
from holdfast.errors import InputError, SpecError, listed
from holdfast.evaluation import protocols, until
from holdfast.evaluation.build_manifest import add
from holdfast.evaluation.chunk import growing_chunks
from holdfast.evaluation.contract import averaged, check_model, randomised
from holdfast.evaluation.facts import columns_of, fingerprint
from holdfast.evaluation.probing import probe
from holdfast.norms import NORMS
from holdfast.runs import store
from holdfast.runs.manifest import SCHEMA_VERSION, Costs, Finding, Manifest, ModelInfo
from holdfast.runs.migration import in_todays_words
from holdfast.targets.target import Access, Target
from holdfast.tasks import Classes
from holdfast.threats import spatial
from holdfast.threats.table.schema import Schema
from holdfast.threats.threat import RULES, Targeted, Threat, Untargeted

LISTED = 5
# of what the probe finds and costs: on another device other rows break, and cost no more
SPREAD = 0.25
# remarks on how a model was loaded, which another way of loading does not give
LOADING = ("train_mode", "probabilities")


def claims(
    manifest: Manifest,
    asked: Threat,
    target: Target,
    source: Source,
    labels: list[Finding],
    groups: np.ndarray | None,
    table: pa.Table,
) -> Iterator[str]:
    """What does not hold, one sentence each.

    Args:
        manifest: run.json.
        asked: the threat that its parts make.
        target: the model, wrapped as it was measured.
        source: the data, as they were measured.
        labels: what was made of their labels.
        groups: of all rows, where they have some.
        table: of samples, whose ids are those of run.json.
    """
    yield from _model(manifest, target)
    yield from _data(manifest, source, groups, table)
    yield from _threat(manifest, asked, target)
    sources = GradientSources(target, asked, source)
    yield from _protocol(manifest, asked, sources)
    yield from _noted(manifest, asked, target, source, labels, sources)
    yield from _trials(manifest, asked, sources)
    yield from _rounds(manifest, asked, target.task, table)
    yield from _until(manifest, table)


def claims_apart(
    manifest: Manifest, whole: Manifest, asked: Threat, target: Target, table: pa.Table
) -> Iterator[str]:
    """What does not hold of what the run at a further eps says, held against that of the whole, one
    sentence each."""
    yield from _threat(manifest, asked, target)
    yield from _rounds(manifest, asked, target.task, table)
    if [trial.spec for trial in manifest.trials] != [trial.spec for trial in whole.trials]:
        yield "trials: they are not those of the run."
    for name in ("model", "protocol", "seed", "max_queries", "initial_findings"):
        if getattr(manifest, name) != getattr(whole, name):
            yield f"{name}: it is not that of the run."
    if manifest.data.fingerprint != whole.data.fingerprint:
        yield "data: they are not those of the run."


def threat_of(folder: Path, manifest: Manifest, rows: int) -> Threat:
    """The threat that the parts of run.json make, with a class for each of so many rows where the
    samples hold them.

    Raises:
        InputError: they make none.
    """
    goal: Any = manifest.threat.targets or manifest.threat.target
    if manifest.threat.norm not in NORMS:
        raise InputError(f"run.json names an unknown norm {manifest.threat.norm!r}.")
    if manifest.threat.targets not in (None, *RULES):
        goal = _goals(folder, rows)
    aim = Untargeted() if goal is None else Targeted(goal)
    limits = {
        n: torch.from_numpy(a)
        for n, a in store.read_limits(folder).items()
        if n in ("scale", "mask")
    }
    grid = manifest.threat.grid or ""
    said = manifest.threat.table
    schema = None if said is None else Schema.parse(said)
    norm = NORMS[manifest.threat.norm].grouped(manifest.threat.group or "")
    norm, eps = norm.in_layout(manifest.model.layout), manifest.threat.eps
    return Threat(norm, eps, aim, grid=grid, schema=schema).limited(**limits)


def _goals(folder: Path, rows: int) -> torch.Tensor:
    """The class to reach of each of so many rows, 0 for those that were not measured: [rows]
    int64."""
    goal = torch.zeros(rows, dtype=torch.int64)
    table = store.read_samples(folder)
    if "target_class" in table.column_names and table.num_rows:
        ids = torch.from_numpy(table.column("id").to_numpy().copy())
        known = (ids >= 0) & (ids < rows)
        goal[ids[known]] = torch.from_numpy(table.column("target_class").to_numpy().copy())[known]
    return goal


def some(ids: Any) -> str:
    """The first of these rows, and how many more there are."""
    return listed([int(i) for i in ids], LISTED)


def _model(manifest: Manifest, target: Target) -> Iterator[str]:
    found = ModelInfo(spec="", fingerprint="", **target.describe())  # pyright: ignore
    free = {"spec", "arch", "fingerprint", "transformation"}
    if manifest.model.surrogate is not None and found.surrogate is None:
        # the model is verified without the surrogate, whose gradients the attacks took
        free |= {"surrogate", "access"}
    for name in ModelInfo.model_fields:
        said, seen = getattr(manifest.model, name), getattr(found, name)
        if name not in free and said != seen:
            yield f"model: run.json says that its {name} is {said}, but it is {seen}."
    if (text := manifest.model.transformation) is not None and spatial.parse(text) is None:
        yield f"model: run.json names the transformation {text!r}, which there is not."


def _data(
    manifest: Manifest, source: Source, groups: np.ndarray | None, table: pa.Table
) -> Iterator[str]:
    data, names = manifest.data, source.class_names
    if data.total != len(source):
        yield f"data: run.json says that they have {data.total} rows, but they have {len(source)}."
    if data.class_names != (list(names or ()) or None):
        yield "data: the names of their classes are not those of run.json."
    # an earlier version did not say them
    if data.columns and data.columns != columns_of(source):
        yield "data: their columns are not those of run.json."
    if (data.groups is not None) != ("group" in table.column_names):
        yield "samples: they have groups, or run.json says so, and not both."
    if ("lpips" in table.column_names) != (manifest.perceptual is not None):
        yield "perceptual: run.json names a network, or the samples hold distances, and not both."
    if data.groups is None or "group" not in table.column_names:
        return
    if groups is None:
        yield (
            "groups: they were given apart from the data; without them (--groups) they cannot be "
            "checked."
        )
        return
    ids = table.column("id").to_numpy()
    others = ids[table.column("group").to_numpy(zero_copy_only=False) != groups[ids]]
    if len(others):
        yield f"samples: the groups of rows {some(others)} are not those of the data."
    if data.groups != fingerprint(groups):
        yield "data: the groups of all rows are not those of run.json."


def _threat(manifest: Manifest, asked: Threat, target: Target) -> Iterator[str]:
    said = manifest.threat
    asked.check_shape(asked.form(target.shape or ()))
    measured = [(eps, float(legal_size(asked, target, 1, eps))) for eps, _ in said.measured]
    if repr(asked) != said.text:
        yield f"threat: its text is {said.text}, but its parts make {asked}."
    if (
        not said.measured
        or said.measured[0][0] != said.eps
        or not np.allclose(said.measured, measured, rtol=1e-12)
    ):
        yield f"threat: eps is {said.eps}, but run.json counts as measured {said.measured}."
    run = {eps: [t.spec for t in manifest.trials if t.eps == eps] for eps, _ in said.measured}
    for eps, specs in run.items():
        if specs != run[said.measured[0][0]]:
            yield (
                f"threat: eps {eps} is counted as measured, but the trials at it are not those at "
                f"{said.eps}."
            )


def _lists(manifest: Manifest, threat: Threat, **kind: Any) -> list[list[str]]:
    """The lists of trials that a named protocol may have for a model of this kind: see
    `protocols.asked`."""
    name, substitute = manifest.protocol.name, manifest.model.surrogate is not None
    given = [
        a
        for a in Access
        if a.name.lower() == manifest.model.access or (substitute and a == Access.GRADIENTS)
    ]
    known = [
        protocols.asked(name, threat, access, task=manifest.model.task, **kind)
        for access in given
        if threat.bounded or protocols.seeks_smallest(name, threat.norm.name, access)
    ]
    return [[t.write(whole=True) for t in one.trials] for one in known]


def _whole(texts: list[str]) -> list[str]:
    """The texts of trials with every option of today, of which a run of before may lack some."""
    try:
        return [parse_trial(text).write(whole=True) for text in texts]
    except SpecError:
        return texts


def _protocol(manifest: Manifest, threat: Threat, sources: GradientSources) -> Iterator[str]:
    protocol, target = manifest.protocol, sources.target
    trees = threat.schema is not None and has_trees(target)
    name, (version, *_) = protocol.name, protocols.PROTOCOLS.get(protocol.name, (1,))
    if name == "custom" and protocol.version != 1:
        yield f"protocol: a list of attacks has version 1, not {protocol.version}."
    elif name not in (*protocols.PROTOCOLS, protocols.NONE.name, "custom"):
        yield f"protocol: this Holdfast knows none of the name {name!r}, so it cannot be checked."
    elif protocol.version != version and (name, protocol.version) not in protocols.EARLIER:
        yield (
            f"protocol: this Holdfast has {name} version {version}, so version {protocol.version} "
            "cannot be checked."
        )
    elif name != "custom" and not any(
        _whole(protocol.trials)
        in _lists(manifest, threat, drawn=drawn, trees=trees, steps=steps, version=protocol.version)
        for drawn in {False, target.cost.draws > 1}
        for steps in {"", sources.steps if name in protocols.STEPPED else ""}
    ):
        yield f"protocol: its trials are not those of {name} version {protocol.version}."


def _trials(manifest: Manifest, threat: Threat, sources: GradientSources) -> Iterator[str]:
    """The trials at the threat's eps: those of the protocol, then those that the findings ask
    for."""
    asked = manifest.protocol.trials
    run = [(trial.spec, trial.eps) for trial in manifest.trials]
    if run[: len(asked)] != [(text, manifest.threat.eps) for text in asked]:
        yield "trials: they are not those of the protocol at the threat's eps."
    more = _whole([text for text, eps in run[len(asked) :] if eps == manifest.threat.eps])
    protocol = manifest.protocol.name
    asked_for = [
        t.write(whole=True)
        for t in checks.follow(manifest.initial_findings, protocol, threat, sources)
    ]
    # which follow-ups fit depends on the surrogate
    if manifest.model.surrogate is not None and not sources.target.gradients.substitute:
        known = [
            t.write(whole=True) for t in checks.follow_ups(manifest.initial_findings, protocol)
        ]
        asked_for = [text for text in known if text in more]
    if more != asked_for:
        yield (
            f"trials: the findings ask for {asked_for} after the protocol, but run.json has {more}."
        )


def _rounds(manifest: Manifest, threat: Threat, task: Classes, table: pa.Table) -> Iterator[str]:
    """Each round of a trial at the threat's eps goes to the rows that those before it left, and to
    no others.

    Where eps is inf, each goes to all rows, since another trial may find a smaller change; and
    where a row can be wrong in part, to broken rows too, until they are settled.
    """
    own = [t for t in manifest.trials if t.eps == manifest.threat.eps]
    status = table.column("status").to_numpy(zero_copy_only=False)
    label, clean = (table.column(name).to_numpy() for name in ("label", "clean_prediction"))
    low = int(np.isin(status, ["robust", "broken", "certified"]).sum())
    high = low + int((np.isin(status, ["unstable", "failed"]) & (label == clean)).sum())
    margin = table.column("margin").to_numpy(zero_copy_only=False).astype(float)
    unsettled = low - int(((status == "broken") & (margin <= -task.enough)).sum())
    whole = bool(table.column("finished").to_numpy(zero_copy_only=False).all())
    smaller = any(eps < manifest.threat.eps for eps, _ in manifest.threat.measured)
    for trial in own:
        # else it may leave out some rows
        all_rows = not re.search(r"\b(max_margin|unless)=", trial.spec)
        everywhere = whole and not smaller and all_rows
        for done in trial.restarts:
            too_many = done.attacked > high and not smaller
            too_few = done.attacked < low and everywhere
            if too_many or too_few or done.broken > (done.attacked if threat.bounded else high):
                yield (
                    f"trials: {trial.spec} is said to have attacked {done.attacked} rows and "
                    f"broken {done.broken}, but from {low} to {high} were left."
                )
                return
            if threat.bounded and task.enough:
                low = unsettled
            elif threat.bounded:
                low, high = low - done.broken, high - done.broken
        attacked = sum(done.attacked for done in trial.restarts[:1])
        broken = sum(done.broken for done in trial.restarts)
        if (trial.attacked, trial.broken) != (attacked, broken):
            yield (
                f"trials: the rounds of {trial.spec} do not add up to its rows attacked and broken."
            )
        if everywhere and not trial.restarts and low > 0:
            yield f"trials: {trial.spec} attacked no row, but {low} were left."


def _until(manifest: Manifest, table: pa.Table) -> Iterator[str]:
    """Whether a run stopped where its rule was first met."""
    if (said := manifest.until) is None:
        return
    (start, stop), *others = manifest.data.parts
    end = said.rows[1] if said.stopped is None else said.rows[0] + said.stopped
    if others or (start, stop) != (said.rows[0], end):
        yield (
            f"until: run.json says that the run stopped after {said.stopped} of the rows "
            f"{said.rows[0]}:{said.rows[1]}, but it measured {manifest.data.parts}."
        )
        return
    if manifest.certification is not None:  # its proofs may have broken rows after the stop
        return
    status, finished = (
        table.column(name).to_numpy(zero_copy_only=False) for name in ("status", "finished")
    )
    ends = [end - start for _, end in growing_chunks((start, stop), manifest.model.shape)]
    met = until.stop(until.read(said), status, finished, ends)
    if met != said.stopped:
        yield (
            f"until: run.json says that the run stopped after {said.stopped} rows, but its rule is "
            f"first met after {met}."
        )


def _noted(
    manifest: Manifest,
    threat: Threat,
    target: Target,
    source: Source,
    labels: list[Finding],
    sources: GradientSources,
) -> Iterator[str]:
    """What was found before the attacks, asked anew."""
    again, name = [*labels, *check_model(target, source)], manifest.protocol.name
    taken = randomised(again) and name in checks.FOLLOWED and target.cost.draws > 1
    if taken and any(
        manifest.protocol.trials in _lists(manifest, threat, drawn=True, steps=steps)
        for steps in ("", "hidden")
    ):
        again = averaged(again)  # Holdfast itself took the mean, and says so
    if manifest.data.columns:
        again += one_size(source, threat)
    again += [*first_answers(target, source), *no_place(target, threat, source)]
    if not threat.bounded:
        again.append(checks.NO_EPS)
    due = checks.probed(name, manifest.max_queries, target, threat)
    # without the surrogate the probe cannot be repeated
    unknown = due and manifest.model.surrogate is not None and not target.gradients.substitute
    costs = Costs()
    if due and not unknown:
        first = parse_trial(manifest.protocol.trials[0])
        answers = probe(target, source, threat, first, sources, manifest.seed)
        found = checks.findings_of(answers)
        again += checks.answered(found, checks.follow(found, name, threat, sources))
        costs = answers.costs
    costs = add(costs, sources.costs)
    if not unknown:
        yield from _paid(manifest.probe_costs, costs)
    yield from _other_findings(manifest, again, unknown=unknown)


def _other_findings(manifest: Manifest, again: list[Finding], *, unknown: bool) -> Iterator[str]:
    """Where the findings of run.json are not those found `again`; of some it is `unknown`."""
    said = {finding.check for finding in manifest.initial_findings}
    shown = said.union(*(finding.explains for finding in manifest.initial_findings))
    notes = {f.check for f in again if f.severity == "info" and f.check in checks.EXPLAINS}
    if left_out := {f.check for f in again} - notes - shown - set(LOADING):
        names = ", ".join(sorted(left_out))
        yield f"initial_findings: run.json leaves out what the model shows: {names}."
    left = list(again)
    for one in manifest.initial_findings:
        # a check may have found several things
        if alike := [(list(_same(manifest, one, f)), f) for f in left if f.check == one.check]:
            differs, found = min(alike, key=lambda pair: len(pair[0]))
            left.remove(found)
            yield from differs
        elif _known(one) and not unknown and not {f.check for f in again} & set(one.explains):
            yield f"initial_findings: run.json has {one.check}, which the model does not show."
    for found in left:
        if found.check in said and found.check not in LOADING:
            yield f"initial_findings: run.json leaves out what the model shows: {found.text}"


def _paid(said: Costs, found: Costs) -> Iterator[str]:
    for name in ("forwards", "backwards", "queries", "judge_forwards", "corruption_forwards"):
        a, b = getattr(said, name), getattr(found, name)
        if abs(a - b) > SPREAD * b:
            yield (f"probe_costs: run.json says {a} {name}, but the probe of this run takes {b}.")


def _known(said: Finding) -> bool:
    """Whether it is more than a remark on how the model was loaded, which another way of loading
    does not give."""
    return (said.severity != "info" or said.check in checks.EXPLAINS) and said.check not in LOADING


def _words(finding: Finding) -> list[str]:
    text, *others = in_todays_words([finding.text, finding.advice, finding.source])
    return [re.sub(r"[\d.,]+", "#", text), *others]


def _same(manifest: Manifest, said: Finding, found: Finding) -> Iterator[str]:
    """Where a finding of run.json differs from the one that the model shows now. Its numbers may
    be another device's, and its words those of an older Holdfast."""
    if said.severity != found.severity:
        yield (
            f"initial_findings: {said.check} is called {said.severity}, but it is {found.severity}."
        )
    worded = manifest.schema_version == SCHEMA_VERSION
    a, b = (
        [
            f.threshold,
            f.explains,
            f.value is None,
            worded and _words(f),
        ]
        for f in (said, found)
    )
    if a != b or not np.isclose(said.value or 0, found.value or 0, rtol=SPREAD, atol=0.1):
        yield (
            f"initial_findings: run.json says otherwise of {said.check} than what is found: "
            f"{found.text}"
        )

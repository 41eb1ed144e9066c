"""Evaluate: how robust is the model? One call from target and data to a run folder."""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from holdfast.attacks.attack import Attack, check_fit
from holdfast.attacks.shared import pool
from holdfast.attacks.trial import Trial
from holdfast.corruptions import measure
from holdfast.data import Source
from holdfast.data.source import group_names
from holdfast.decisions import UNASKED
from holdfast.diagnostics import checks
from holdfast.diagnostics.gradient_sources import Ways
from holdfast.errors import InputError, SpecError
from holdfast.evaluation import chunking, goals, protocols, transformations
from holdfast.evaluation.build_manifest import add, finish
from holdfast.evaluation.chunk import Plan, Progress, Watch, search, settle
from holdfast.evaluation.collect import collect, collect_corruptions
from holdfast.evaluation.contract import check_data, check_model, check_range, randomised
from holdfast.evaluation.estimate import Forecast, forecast
from holdfast.evaluation.facts import Names, facts_of, limits_of, question
from holdfast.evaluation.labels import numbered
from holdfast.evaluation.perceptual import PerceptualDistance
from holdfast.evaluation.prepare import open_for, rows_asked
from holdfast.evaluation.probing import probe
from holdfast.evaluation.protocols import Protocol
from holdfast.evaluation.truths import with_truths
from holdfast.memory import give_back_freed
from holdfast.runs import store
from holdfast.runs.journal import Journal, left_as_found, refuse_changes
from holdfast.runs.manifest import (
    Costs,
    Facts,
    Finding,
)
from holdfast.runs.run import Run
from holdfast.targets import wrap
from holdfast.targets.batch import read
from holdfast.targets.target import Target
from holdfast.targets.wrappers import ExpectationOverTransformation
from holdfast.threats import spatial
from holdfast.threats.patch import Patch
from holdfast.threats.threat import Targeted, Threat, as_threat


def evaluate(
    target: Any,
    data: Any,
    threat: Threat | str,
    *,
    protocol: str = "standard",
    attacks: Sequence[str | Attack | Trial] = (),
    samples: int | tuple[int, int] | None = None,
    curve: Sequence[float] = (),
    seed: int = 0,
    max_queries: int | None = None,
    max_seconds: float | None = None,
    out: Path | str | None = None,
    resume: bool = False,
    watch: Watch = lambda _: None,
    announce: Callable[[Forecast], None] | None = None,
    corruptions: bool = False,
    baseline: Path | str | None = None,
    groups: Sequence[Any] | np.ndarray | None = None,
    perceptual: str | torch.nn.Module | None = None,
    names: Names | None = None,
) -> Run:
    """Measure robust accuracy, and leave the evidence in a folder.

    Args:
        target: the model; one whose inputs are not within [0, 1] is wrapped first, with its bounds.
        data: what `holdfast.data.as_source` takes: (x [n, *shape], y [n]) with x in raw units
            within the target's bounds, a torch Dataset or DataLoader, a table, a text as on the
            command line, ... Of a multi-label or regression model y is [n, k].
        threat: what the adversary may do; one eps for all rows, perhaps with a scale and a mask of
            the features. Text may also name a movement of images, `rotation(30, 3)` (degrees,
            pixels), `flow(1.5)` (pixels) or `patch(5)` (side of a square in pixels): see
            `holdfast.threats.spatial`. It is then linf on the movement, with half of the bounds'
            width for all of it, and a grid goes before a protocol that has to turn, a random search
            before one that has to place.
        protocol: `quick`, `standard`, `thorough` or `autoattack`; ignored where `attacks` are
            given.
        attacks: the user's own list, as specs or objects.
        samples: the first so many rows, or a (start, stop) range of them; None: all.
        curve: further eps to run the protocol at.
        seed: of all noise; a row's noise depends on it and on the row's id alone.
        max_queries: the most forwards that a row may cost.
        max_seconds: start nothing new after this time; rows never attacked are `skipped`.
        out: the folder; None: a temporary one, gone with the returned object.
        resume: go on with an unfinished run in `out`, also with one that `max_seconds` cut short.
        watch: told of progress.
        announce: told what it will cost, before it starts; and once more where the examination adds
            trials.
        corruptions: also ask for the common corruptions of images (arXiv:1903.12261), on the same
            rows.
        baseline: whose errors under corruption the mCE divides by: `alexnet`, or the folder of a
            run on these data.
        groups: a text or whole number for each row of the data, whose accuracies are told apart;
            None: those of the data, where it has some.
        perceptual: the network whose distances are the column `lpips`: see
            `evaluate.looks.PerceptualDistance`.
        names: what the manifest calls things.

    Raises:
        InputError: the data or the model breaks the input contract, or `out` holds something else.
        SpecError: the protocol, an attack or the threat cannot be understood.
        AccessError: an attack needs more than the target gives.
    """
    began = time.monotonic()
    give_back_freed()
    target = wrap(target).copied()
    source = open_for(target, data)
    groups = source.groups if groups is None else group_names(groups, len(source), source.name)
    movement = spatial.parse(threat) if isinstance(threat, str) else None
    if isinstance(movement, Patch) and curve:
        raise SpecError(
            f"a curve runs at further eps, but {threat} has one size; give one run a side instead."
        )
    if movement is not None:
        threat = transformations.threat_of(movement, target, source.shape)
    threat = as_threat(threat)
    target, source = with_truths(target, source, threat)
    aimed = isinstance(threat.goal, Targeted)
    # a name that does not exist, or has no list for such a threat, is refused before any pass
    if not attacks:
        protocols.protocol(protocol, threat.norm.name, bounded=threat.bounded)
    part = rows_asked(samples, len(source), source.name)
    check_data(source, target.bounds)
    target.bind(source.shape)
    (source,), said = numbered(target, source)
    noted = check_model(target, source)
    kind: dict[str, Any] = {"aimed": aimed, "access": target.access, "bounded": threat.bounded}
    if (
        not attacks
        and protocol in checks.FOLLOWED
        and not target.context
        and movement is None
        and target.cost.draws == 1
        and randomised(noted)
    ):
        target = ExpectationOverTransformation(target)
        noted = [
            f.model_copy(update={"severity": "amber"}) if randomised([f]) else f
            for f in check_model(target, source)
        ]
        kind["drawn"] = True
    usual = None if attacks else protocols.protocol(protocol, threat.norm.name, **kind)
    chosen = protocols.chosen(attacks) if usual is None else transformations.suited(usual, movement)
    noted += said
    seen = None if perceptual is None else PerceptualDistance(perceptual, target)
    check_range(target, source)
    folder = Path(tempfile.mkdtemp(prefix="holdfast-") if out is None else out)
    with (
        left_as_found(folder),
        pool.filled(target, source, [trial.attack for trial in chosen.trials]),
    ):
        ways = Ways(target, threat, source)
        goals.check(threat, target, len(source), source.name)
        _check_threat(threat, ways, chosen, curve)
        _check_effort(target, chosen, max_queries)

        deadline = began + (math.inf if max_seconds is None else max_seconds)
        measured = list(dict.fromkeys([float(threat.eps), *map(float, curve)]))
        plan = Plan(
            target,
            threat,
            chosen.trials,
            measured,
            seed,
            max_queries,
            deadline,
            ways=ways,
            perceptual=seen,
        )
        plan = replace(plan, smallest=chosen.name == "custom" or not threat.bounded)
        facts = facts_of(plan, source, part, chosen, noted, names or Names())
        facts.data.groups = (
            None if groups is None else hashlib.sha256("\n".join(groups).encode()).hexdigest()
        )
        facts.perceptual = None if seen is None else seen.fingerprint
        if corruptions:
            facts.corruptions = measure.info(target, source.shape, baseline, facts.data.fingerprint)
        journal = Journal(folder)
        if resume and (folder / "run.json").exists() and not journal.begun:
            refuse_changes(folder, question(store.read_manifest(folder)), question(facts))
            return Run(folder)
        journal.open(question(facts), resume=resume)
        # of a run that time cut short, and that now goes on
        for outdated in ("run.json", "report.html"):
            (folder / outdated).unlink(missing_ok=True)
        stride = chunking.stride_of(source.shape)
        asked: dict[str, Any] = {"stride": stride, "corruptions": corruptions}
        with _kept(out):
            if announce is not None and not resume:
                first = checks.examined(chosen.name, plan.budget, target, threat)
                announce(forecast(plan, source, part, examined=first, **asked))
            facts = _examined(plan, journal, source, chosen, facts, ways)
        added = checks.follow(facts.initial_findings, chosen.name, threat, ways)
        plan = replace(plan, trials=[*chosen.trials, *added])
        if announce is not None and not resume and added:
            announce(forecast(plan, source, part, added=len(added), **asked))

        chunks = [
            (max(a, part[0]), min(a + stride, part[1]))
            for a in range(part[0] // stride * stride, part[1], stride)
        ]
        with _kept(out):
            for chunk in chunks:
                _do_chunk(
                    replace(plan, watch=_within(watch, part, chunk)), journal, source, folder, chunk
                )
                if corruptions:
                    _do_corruptions(plan, journal, source, chunk)
        table, trials, facts, whole = collect(plan, journal, chunks, facts)
        if groups is not None:
            table = table.append_column("group", pa.array(groups[slice(*part)]))
        store.write_samples(folder, table)
        if corruptions:
            answers = collect_corruptions(journal, chunks)
            store.write_corruptions(folder, answers)
            whole = whole and not any(
                UNASKED in column.to_numpy() for column in answers.columns[1:]
            )
        store.write_gallery(folder, table, source)
        store.write_limits(folder, limits_of(target, threat))
        store.write_manifest(folder, finish(folder, facts, table, trials))
        if whole:  # else time ran out, and --resume goes on
            journal.close()
        return Run(folder, temporary=out is None)


@contextmanager
def _kept(out: Path | str | None) -> Iterator[None]:
    """Within, an error says that what was measured before it is kept, where anything was."""
    try:
        yield
    except InputError as error:
        if out is None or not Journal(Path(out)).holds:
            raise
        raise InputError(
            f"{error} What was measured until then is kept in {out}: the same command with this "
            f"--out goes on with --resume (in Python: out=..., resume=True)."
        ) from error


def _examined(
    plan: Plan, journal: Journal, source: Source, chosen: Protocol, facts: Facts, ways: Ways
) -> Facts:
    """The facts with what the examination finds, and what it costs."""
    if not plan.threat.bounded:
        return facts.model_copy(
            update={"initial_findings": [*facts.initial_findings, checks.NO_EPS]}
        )
    if not checks.examined(chosen.name, plan.budget, plan.target, plan.threat):
        return facts
    if journal.find("exam") is None:
        answers = probe(plan.target, source, plan.threat, chosen.trials[0], ways, plan.seed)
        found = [f.model_dump(mode="json") for f in checks.signs(answers)]
        said = {"findings": json.dumps(found), "costs": answers.costs.model_dump_json()}
        journal.write("exam", {"ids": answers.ids}, said)
    _, said = journal.read("exam")
    found = [Finding(**f) for f in json.loads(said["findings"])]
    found = checks.answered(found, checks.follow(found, chosen.name, plan.threat, ways))
    costs = add(Costs.model_validate_json(said["costs"]), ways.costs)
    return facts.model_copy(
        update={"initial_findings": [*facts.initial_findings, *found], "probe_costs": costs}
    )


def _do_chunk(
    plan: Plan, journal: Journal, source: Source, folder: Path, part: tuple[int, int]
) -> None:
    start, stop = part
    name = f"{start:09d}"
    shard = folder / "adversarial" / f"{name}.safetensors"
    done = journal.find(f"{name}-done")
    if (
        done is not None
        and done[1]["missed"] == "[]"
        and done[1]["examples"] == store.checksum(shard)
    ):
        return
    batch, y = read(source, start, stop)
    rows = search(
        plan,
        journal,
        name,
        batch.to(batch.x.device, plan.target.dtype),
        torch.from_numpy(y.astype(np.int64)),
        torch.arange(start, stop),
    )
    columns, examples = settle(plan, rows)
    if len(examples["id"]):
        store.write_tensors(shard, examples)
    else:
        shard.unlink(missing_ok=True)
    costs = [
        (*key, seen, fell, paid.model_dump()) for key, (seen, fell, paid) in rows.costs.items()
    ]
    said = {
        "costs": json.dumps(costs),
        "missed": json.dumps(sorted(rows.missed)),
        "examples": store.checksum(shard),
    }
    journal.write(f"{name}-done", columns, said)


def _do_corruptions(plan: Plan, journal: Journal, source: Source, part: tuple[int, int]) -> None:
    start, stop = part
    name = f"{start:09d}-corrupted"
    known = journal.find(name)
    if known is None or any(UNASKED in column for column in known[0].values()):
        x, ids = torch.from_numpy(source.rows(start, stop)[0]), torch.arange(start, stop)
        found = measure.answers(plan.target, x, ids, plan.seed, deadline=plan.deadline)
        journal.write(name, found | {"id": ids.numpy()})


def _within(
    watch: Watch, part: tuple[int, int], chunk: tuple[int, int]
) -> Callable[[float, str, int], None]:
    """Progress within a chunk, as progress of the whole."""
    rows = part[1] - part[0]

    def tell(share: float, trial: str, live: int) -> None:
        watch(Progress((chunk[0] - part[0] + share * (chunk[1] - chunk[0])) / rows, trial, live))

    return tell


def _check_threat(threat: Threat, ways: Ways, chosen: Protocol, curve: Sequence[float]) -> None:
    target = ways.target
    if isinstance(threat.eps, torch.Tensor):
        raise SpecError("evaluate takes one eps for all rows; use holdfast.attack for one a row.")
    form = threat.form(target.shape or ())
    threat.check_shape(form)
    threat.check_grid(target.bounds, moves=bool(target.context))
    if isinstance(threat.goal, Targeted) and any(trial.targets for trial in chosen.trials):
        raise SpecError(
            f"targets aims at classes in turn, but the threat {threat} has a goal of its own; "
            "leave it out."
        )
    if not all(map(math.isfinite, curve)):
        raise SpecError(
            "the curve holds inf, but a robust accuracy needs a finite eps; give inf as the "
            "threat's own."
        )
    for eps in (threat.eps, *curve) if threat.bounded else curve:
        threat.at(eps).check_box(target.bounds.low, target.bounds.high, form)
    for trial in chosen.trials:
        check_fit(trial.attack, ways(trial.through), threat)


def _check_effort(target: Target, chosen: Protocol, budget: int | None) -> None:
    """Refuse what could not be done as it was asked for, before any pass is spent."""
    rivals = target.task.k - 1
    for trial in chosen.trials:
        # a protocol takes as many as there are
        if chosen.name == "custom" and trial.targets > rivals:
            raise SpecError(
                f"{trial!r} aims at {trial.targets} wrong classes, but the model has {rivals}."
            )
    least = 2 * target.cost.forwards
    if budget is not None and budget < least:
        raise SpecError(
            f"the budget is {budget} forward passes a row, but a single step of an attack takes "
            f"{least}; give at least that, better some hundreds."
        )

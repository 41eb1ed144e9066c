"""Evaluate: how robust is the model? One call from target and data to a run folder."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from holdfast import spec
from holdfast.attacks.attack import Attack, check_fit
from holdfast.corruptions import measure
from holdfast.data import Source
from holdfast.data.source import group_names
from holdfast.decisions import UNASKED
from holdfast.diagnostics import checks
from holdfast.diagnostics.gradient_sources import Ways
from holdfast.diagnostics.probe import examine
from holdfast.errors import InputError, SpecError
from holdfast.evaluation import goals, moved, pool, protocols
from holdfast.evaluation.build_manifest import add, add_trials, finish
from holdfast.evaluation.chunk import STATUSES, Plan, Progress, Watch, search, settle
from holdfast.evaluation.contract import check_data, check_model, check_range, randomised
from holdfast.evaluation.estimate import Forecast, forecast
from holdfast.evaluation.graded import graded
from holdfast.evaluation.labels import numbered
from holdfast.evaluation.memory import give_back_freed
from holdfast.evaluation.perceptual import PerceptualDistance
from holdfast.evaluation.prepare import open_for
from holdfast.evaluation.protocols import Protocol, Trial
from holdfast.runs import store
from holdfast.runs.journal import VERSION, Journal, left_as_found, refuse_changes
from holdfast.runs.manifest import (
    Costs,
    DataInfo,
    Facts,
    Finding,
    ModelInfo,
    ProtocolInfo,
    Provenance,
    Restart,
    ThreatInfo,
    TrialInfo,
)
from holdfast.runs.metrics import schema_of
from holdfast.runs.run import Run
from holdfast.targets import spatial, wrap
from holdfast.targets.target import Target
from holdfast.targets.wrappers import ExpectationOverTransformation
from holdfast.threats.threat import Targeted, Threat, as_threat


@dataclass(frozen=True)
class Names:
    """What the manifest calls things."""

    model: str = ""  # default: the type of the model
    arch: str | None = None
    split: str = "test"
    command: str = "holdfast.evaluate(...)"


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
            `holdfast.targets.spatial`. It is then linf on the movement, with half of the bounds'
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
    target = wrap(target)
    source = open_for(target, data)
    groups = source.groups if groups is None else group_names(groups, len(source), source.name)
    movement = spatial.parse(threat) if isinstance(threat, str) else None
    if isinstance(movement, spatial.Patch) and curve:
        raise SpecError(
            f"a curve runs at further eps, but {threat} has one size; give one run a side instead."
        )
    if movement is not None:
        target, source = moved.moved(target, source, movement)
        threat = Threat.linf(target.reach)
    threat = as_threat(threat)
    target, source = graded(target, source, threat)
    aimed = isinstance(threat.goal, Targeted)
    # a name that does not exist, or has no list for such a threat, is refused before any pass
    if not attacks:
        protocols.protocol(protocol, threat.norm.name, bounded=threat.bounded)
    part = rows_asked(samples, len(source), source.name)
    check_data(source, target.bounds, target.beside)
    target.bind(source.shape)
    (source,), said = numbered(target, source)
    noted = check_model(target, source)
    kind: dict[str, Any] = {"aimed": aimed, "access": target.access, "bounded": threat.bounded}
    if (
        not attacks
        and protocol in checks.FOLLOWED
        and target.free is None
        and target.draws == 1
        and randomised(noted)
    ):
        target = ExpectationOverTransformation(target)
        noted = [
            f.model_copy(update={"severity": "amber"}) if randomised([f]) else f
            for f in check_model(target, source)
        ]
        kind["drawn"] = True
    usual = None if attacks else protocols.protocol(protocol, threat.norm.name, **kind)
    chosen = protocols.chosen(attacks) if usual is None else moved.suited(usual, movement)
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
        facts = _facts(plan, source, part, chosen, noted, names or Names())
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
        stride = stride_of(source.shape)
        asked: dict[str, Any] = {"stride": stride, "corruptions": corruptions}
        with _kept(out):
            if announce is not None and not resume:
                first = checks.examined(chosen.name, plan.budget, target, threat)
                announce(forecast(plan, source, part, examined=first, **asked))
            facts = _examined(plan, journal, source, chosen, facts, ways)
        added = checks.follow(facts.initial_findings, chosen, threat, ways)
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
        table, trials, facts, whole = _collect(plan, journal, chunks, facts)
        if groups is not None:
            table = table.append_column("group", pa.array(groups[slice(*part)]))
        store.write_samples(folder, table)
        if corruptions:
            answers = _collect_corruptions(journal, chunks)
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
        answers = examine(plan.target, source, plan.threat, chosen.trials[0], ways, plan.seed)
        found = [f.model_dump(mode="json") for f in checks.signs(answers)]
        said = {"findings": json.dumps(found), "costs": answers.costs.model_dump_json()}
        journal.write("exam", {"ids": answers.ids}, said)
    _, said = journal.read("exam")
    found = [Finding(**f) for f in json.loads(said["findings"])]
    found = checks.answered(found, checks.follow(found, chosen, plan.threat, ways))
    costs = add(Costs.model_validate_json(said["costs"]), ways.costs)
    return facts.model_copy(
        update={"initial_findings": [*facts.initial_findings, *found], "probe_costs": costs}
    )


def limits_of(target: Target, threat: Threat) -> dict[str, np.ndarray]:
    """What of a threat and of the bounds is said for each feature."""
    sides = dict(zip(("low", "high"), target.bounds.each or (), strict=False))
    return {name: part.numpy() for name, part in (sides | threat.limits).items()}


def question(facts: Facts) -> dict[str, str]:
    """What must be equal for a run to be gone on with, and (but for the rows) for shards to be one
    run."""
    return {
        VERSION: str(facts.schema_version),
        "eps": ", ".join(spec.number(eps) for eps, _ in facts.threat.measured),
        "threat": facts.threat.text,
        "targets": "none" if facts.threat.targets is None else facts.threat.targets[:16],
        "model": facts.model.fingerprint[:16],
        "data": facts.data.fingerprint[:16],
        "groups": "none" if facts.data.groups is None else facts.data.groups[:16],
        "protocol": f"{facts.protocol.name} version {facts.protocol.version}: {'; '.join(facts.protocol.trials)}",
        "seed": str(facts.seed),
        "query budget": str(facts.max_queries),
        "version": facts.provenance.versions["holdfast"],
        "corruptions": "none" if facts.corruptions is None else facts.corruptions.model_dump_json(),
        "perceptual network": "none" if facts.perceptual is None else facts.perceptual[:16],
        "rows": ", ".join(f"{a}:{b}" for a, b in facts.data.parts),
    }


def chunk_of(row: int, parts: Sequence[tuple[int, int]], shape: Sequence[int]) -> int:
    """The first row of the chunk that a row is searched in."""
    part = next(start for start, stop in parts if start <= row < stop)
    return max(part, row - row % stride_of(shape))


def stride_of(shape: Sequence[int]) -> int:
    """Rows of a chunk: about 128 MiB of float32, so that several states of a search fit, and at
    most 1,024."""
    return max(16, min(1024, 2**25 // math.prod(shape)))


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
    x, y = source.rows(start, stop)
    rows = search(
        plan,
        journal,
        name,
        torch.from_numpy(x).to(plan.target.dtype),
        torch.from_numpy(np.asarray(y, dtype=np.int64)),
        torch.arange(start, stop),
    )
    columns, ids, stored = settle(plan, rows)
    if len(ids):
        store.write_tensors(shard, {"id": ids, "x": stored})
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


def _collect_corruptions(journal: Journal, chunks: Sequence[tuple[int, int]]) -> pa.Table:
    parts = [journal.read(f"{start:09d}-corrupted")[0] for start, _ in chunks]
    return pa.table(
        {name: np.concatenate([p[name] for p in parts]) for name in ("id", *measure.COLUMNS)}
    )


def _within(
    watch: Watch, part: tuple[int, int], chunk: tuple[int, int]
) -> Callable[[float, str, int], None]:
    """Progress within a chunk, as progress of the whole."""
    rows = part[1] - part[0]

    def tell(share: float, trial: str, live: int) -> None:
        watch(Progress((chunk[0] - part[0] + share * (chunk[1] - chunk[0])) / rows, trial, live))

    return tell


def _collect(
    plan: Plan, journal: Journal, chunks: Sequence[tuple[int, int]], facts: Facts
) -> tuple[pa.Table, list[TrialInfo], Facts, bool]:
    """The table of samples, the counts of the trials, the facts with the eps that were run at in
    full, and whether everything was run."""
    tables: list[pa.Table] = []
    missed: set[float] = set()
    totals: dict[tuple[float, int], TrialInfo] = {}
    for start, _ in chunks:
        columns, meta = journal.read(f"{start:09d}-done")
        status = pa.array([STATUSES[i] for i in columns.pop("status")])
        arrays = {
            n: pa.array(c if c.ndim == 1 else list(c), from_pandas=c.ndim == 1)
            for n, c in columns.items()
        }
        by = columns["broken_by"]
        arrays |= {"status": status, "broken_by": pa.array(by, mask=by < 0)}
        arrays["certified_radius"] = pa.nulls(len(status), pa.float64())
        tables.append(
            pa.table(
                {field.name: arrays[field.name].cast(field.type) for field in schema_of(arrays)}
            )
        )
        missed |= set(json.loads(meta["missed"]))
        for eps, i, restart, seen, fell, paid in json.loads(meta["costs"]):
            text, rounds = (
                plan.trials[i].write(whole=True),
                [Restart()] * restart + [Restart(attacked=seen, broken=fell)],
            )
            first = 0 if restart else seen
            info = TrialInfo(
                spec=text,
                eps=eps,
                attacked=first,
                broken=fell,
                costs=Costs(**paid),
                restarts=rounds,
            )
            totals[eps, i] = add_trials(totals[eps, i], info) if (eps, i) in totals else info
    order = [(eps, i) for eps in plan.measured for i in range(len(plan.trials))]
    empty = {(e, i): TrialInfo(spec=plan.trials[i].write(whole=True), eps=e) for e, i in order}
    full = [
        pair
        for pair in facts.threat.measured
        if pair[0] == plan.measured[0] or pair[0] not in missed
    ]
    facts = facts.model_copy(update={"threat": facts.threat.model_copy(update={"measured": full})})
    return (
        pa.concat_tables(tables),
        [totals.get(key, empty[key]) for key in order],
        facts,
        not missed,
    )


def _facts(
    plan: Plan,
    source: Source,
    part: tuple[int, int],
    chosen: Protocol,
    noted: list[Finding],
    names: Names,
) -> Facts:
    target, threat = plan.target, plan.threat
    model = getattr(target, "model", target)
    libraries = {name: importlib.metadata.version(name) for name in ("holdfast", "torch", "numpy")}
    libraries |= target.versions
    goal = threat.goal.t if isinstance(threat.goal, Targeted) else None
    targets = (
        hashlib.sha256(goal.cpu().numpy().tobytes()).hexdigest()
        if isinstance(goal, torch.Tensor)
        else goal
    )
    return Facts(
        model=ModelInfo(
            spec=names.model or type(model).__name__,
            arch=names.arch,
            fingerprint=target.fingerprint(),
            **target.describe(),  # pyright: ignore[reportArgumentType]
        ),
        data=DataInfo(
            spec=source.name,
            split=names.split,
            fingerprint=source.fingerprint(),
            total=len(source),
            parts=[part],
            class_names=None if source.class_names is None else list(source.class_names),
            loading=dict(source.loading),
        ),
        threat=ThreatInfo(
            text=repr(threat),
            norm=threat.norm.name,
            eps=float(threat.eps),
            target=goal if isinstance(goal, int) else None,
            targets=targets if isinstance(targets, str) else None,
            grid=threat.grid or None,
            measured=[(eps, plan.limit(eps)) for eps in plan.measured],
        ),
        protocol=ProtocolInfo(
            name=chosen.name,
            version=chosen.version,
            trials=[t.write(whole=True) for t in chosen.trials],
        ),
        seed=plan.seed,
        max_queries=plan.budget,
        settings={
            "batch_size": target.batch_size,
            "device": str(target.device),
            "precision": str(target.dtype),
        },
        provenance=Provenance(
            command=names.command,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            versions={"python": platform.python_version(), **libraries},
            hardware=_hardware(target.device),
        ),
        initial_findings=noted,
    )


def _hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def rows_asked(
    samples: int | tuple[int, int] | None, total: int, name: str, what: str = "samples"
) -> tuple[int, int]:
    """The rows [start, stop) of a source of `total`; `what` is the option that says them."""
    asked = total if samples is None else samples
    start, stop = (0, asked) if isinstance(asked, int) else asked
    if not 0 <= start < stop:
        raise InputError(
            f"{what} {start}:{stop} is no range of rows; give a count of at least 1, or start:stop."
        )
    if stop > total:
        raise InputError(f"{what} up to row {stop} were asked for, but {name} has {total} rows.")
    return start, stop


def _check_threat(threat: Threat, ways: Ways, chosen: Protocol, curve: Sequence[float]) -> None:
    target = ways.target
    if isinstance(threat.eps, torch.Tensor):
        raise SpecError("evaluate takes one eps for all rows; use holdfast.attack for one a row.")
    threat.check_shape(target.free or target.shape or ())
    threat.check_grid(target.bounds, moves=target.free is not None)
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
        threat.at(eps).check_box(
            target.bounds.low, target.bounds.high, target.free or target.shape or ()
        )
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
    least = 2 * target.passes
    if budget is not None and budget < least:
        raise SpecError(
            f"the budget is {budget} forward passes a row, but a single step of an attack takes "
            f"{least}; give at least that, better some hundreds."
        )

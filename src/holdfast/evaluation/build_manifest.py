"""From the pieces of a journal to tables, of the samples, of the trials, of the corruptions; and
from evidence to answers: every figure of run.json, made from the facts and the table of samples.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import reduce
from itertools import zip_longest
from pathlib import Path

import numpy as np
import pyarrow as pa

from holdfast.attacks import parse_trial
from holdfast.corruptions import measure as corruptions
from holdfast.decisions import UNASKED
from holdfast.diagnostics.findings import conclude
from holdfast.errors import SpecError
from holdfast.evaluation import certificates, votes
from holdfast.evaluation.chunk import STATUSES, SearchSettings
from holdfast.evaluation.judge import PASSES
from holdfast.intervals import anytime_interval
from holdfast.runs import store
from holdfast.runs.journal import Journal
from holdfast.runs.manifest import (
    Costs,
    CurvePoint,
    Facts,
    Manifest,
    Metrics,
    Restart,
    Survivors,
    TrialInfo,
)
from holdfast.runs.metrics import (
    column_of,
    corrupted,
    measure,
    narrow,
    schema_of,
    survivors,
    with_intervals,
    without_relations,
)
from holdfast.runs.samples import Samples
from holdfast.threats.table.schema import Schema


def collect(
    settings: SearchSettings, journal: Journal, chunks: Sequence[tuple[int, int]], facts: Facts
) -> tuple[pa.Table, list[TrialInfo], Facts, bool]:
    """The table of samples, the counts of the trials, the facts with the eps that were run at in
    full, and whether everything was run."""
    tables: list[pa.Table] = []
    missed, in_time, judged = set[float](), True, 0
    order = [(eps, i) for eps in settings.measured for i in range(len(settings.trials))]
    totals = {(e, i): TrialInfo(spec=settings.trials[i].write(whole=True), eps=e) for e, i in order}
    for start, stop in chunks:
        columns, meta = journal.read(f"{start:09d}-done")
        status = [STATUSES[i] for i in columns.pop("status")]
        arrays = {
            n: pa.array(c if c.ndim == 1 else list(c), from_pandas=c.ndim == 1)
            for n, c in columns.items()
        }
        by = columns["broken_by"]
        arrays |= {"status": pa.array(status), "broken_by": pa.array(by, mask=by < 0)}
        arrays["certified_radius"] = pa.nulls(len(status), pa.float64())
        if facts.model.smoothing is not None:
            arrays |= votes.columns(journal, (start, stop))
        if facts.certification is not None:
            certified, proved = certificates.columns(journal, start, status)
            arrays, in_time = arrays | certified, in_time and proved
        fields = {field.name: arrays[field.name].cast(field.type) for field in schema_of(arrays)}
        tables.append(narrow(pa.table(fields)))
        missed |= set(json.loads(meta["missed"]))
        judged += int(meta["judged"])
        for eps, i, restart, attacked, broken, paid in json.loads(meta["costs"]):
            before = totals[eps, i]
            info = TrialInfo(
                spec=before.spec,
                eps=eps,
                attacked=0 if restart else attacked,
                broken=broken,
                costs=Costs(**paid),
                restarts=[Restart()] * restart + [Restart(attacked=attacked, broken=broken)],
            )
            totals[eps, i] = add_trials(before, info)
    full = [
        pair
        for pair in facts.threat.measured
        if pair[0] == settings.measured[0] or pair[0] not in missed
    ]
    threat = facts.threat.model_copy(update={"measured": full})
    facts = facts.model_copy(update={"threat": threat, "judge_forwards": judged})
    return (
        pa.concat_tables(tables, promote_options="permissive"),
        list(totals.values()),
        facts,
        in_time and not missed,
    )


def collect_corruptions(journal: Journal, chunks: Sequence[tuple[int, int]]) -> pa.Table:
    parts = [journal.read(f"{start:09d}-corrupted")[0] for start, _ in chunks]
    return pa.table(
        {name: np.concatenate([p[name] for p in parts]) for name in ("id", *corruptions.COLUMNS)}
    )


def build_manifest(
    folder: Path, facts: Facts, table: pa.Table, trials: Sequence[TrialInfo]
) -> Manifest:
    """The whole manifest of a folder whose samples and examples are written, and the runs at
    further eps."""
    model, data, apart = facts.model, facts.data, runs_apart(folder, facts.threat.apart)
    metrics = measure(
        table,
        model.classes,
        facts.threat.measured,
        data.class_names,
        model.task,
        data.objects,
    )
    metrics.survivors = another_restart(facts.threat.eps, trials)
    if facts.threat.apart:
        metrics.curve = _curve(facts.threat.eps, metrics, apart)
    if facts.threat.table is not None:
        relations = list(Schema.parse(facts.threat.table).conditions)
        metrics.relations = without_relations(table, relations)
    if facts.until is not None:
        metrics = with_intervals(metrics, anytime_interval)
    asked = 0
    if facts.corruptions is not None:
        answers = store.read_corruptions(folder)
        metrics.corruptions = corrupted(answers, table, facts.corruptions)
        asked = sum(int((column.to_numpy() != UNASKED).sum()) for column in answers.columns[1:])
    # of an earlier version, each was asked about twice
    judged = facts.judge_forwards or PASSES * looked_at(table)
    ruled = judged + _asked_again(table, model.task)
    voted = votes.forwards(model.smoothing, table.num_rows)
    own = Costs(judge_forwards=ruled, corruption_forwards=asked, vote_forwards=voted)
    total = reduce(add, (t.costs for t in trials), add(facts.probe_costs, own))
    return Manifest(
        **dict(facts),
        verdict=conclude(facts, table, metrics, trials),
        metrics=metrics,
        costs=reduce(add, (run.costs for run in apart), total),
        trials=list(trials),
        files=store.checksums(folder),
    )


def looked_at(table: pa.Table) -> int:
    """How many inputs the judge looked at: rows, examples, and these as files of 8 bits or bare of
    a refusal."""
    size = table.column("size").to_numpy(zero_copy_only=False).astype(float)
    looked = table.num_rows + int(np.isfinite(size).sum())
    for name in {"broken_8bit", "robust_by_refusal"} & set(table.column_names):
        looked += table.num_rows - table.column(name).null_count
    return looked


def _asked_again(table: pa.Table, task: str) -> int:
    """Forwards for what the table keeps of boxes and masks, since scores do not say them: of clean
    rows and of broken ones; of a detector also for the objects that it finds before any attack, of
    a segmenter for the judgement on the worst answers that differ from the clean ones."""
    if "nothing_to_lose" not in table.column_names:
        return 0
    answered = table.num_rows + int((column_of(table, "status") == "broken").sum())
    if task.startswith("detection"):
        return answered + table.num_rows
    clean, attacked = (
        table.column(name).to_pylist() for name in ("clean_output", "attacked_output")
    )
    return answered + (PASSES + 1) * sum(a != b for a, b in zip(clean, attacked, strict=True))


def runs_apart(folder: Path, sizes: Sequence[float]) -> list[Manifest]:
    """Those of the runs at further eps that were run in full."""
    folders = [store.at_eps(folder, eps) for eps in sizes]
    written = [at for at in folders if (at / "run.json").exists()]
    whole = [at for at in written if all(Samples(at).column("finished").to_pylist())]
    return [store.read_manifest(at) for at in whole]


def _curve(eps: float, own: Metrics, apart: Sequence[Manifest]) -> list[CurvePoint]:
    """What each run of another eps measured, and this one, and what holds without an attack."""
    found = {run.threat.eps: run.metrics for run in apart} | {eps: own}
    clean = {name: figure.clean for name, figure in own.of_task.items()}
    points = [CurvePoint(eps=0, robust_accuracy=own.clean_accuracy, measured=True, of_task=clean)]
    for at, metrics in sorted(found.items()):
        of_task = {name: figure.attacked for name, figure in metrics.of_task.items()}
        share = metrics.robust_accuracy
        points.append(CurvePoint(eps=at, robust_accuracy=share, measured=True, of_task=of_task))
    return points


def another_restart(
    eps: float, trials: Sequence[TrialInfo], *, as_before: bool = False
) -> Survivors | None:
    """What one more restart would break, from the last that drew noise, without which another would
    repeat it, and that started at no point known before, where another would start elsewhere.

    None where nothing went before it, where a later restart broke rows, of which nobody knows
    whether it left them, and where eps is inf: there every restart takes all rows. `as_before`: as
    earlier versions had it, from the last that drew noise.
    """
    rounds = [(r, t.spec) for t in trials if t.eps == eps < np.inf for r in t.restarts]
    alike = [i for i, (_, spec) in enumerate(rounds) if _draws(spec, warm=as_before)]
    if not alike or len(rounds) == 1:
        return None
    last = alike[-1]
    if not as_before and any(later.broken for later, _ in rounds[last + 1 :]):
        return None
    return survivors(rounds[last][0])


def _draws(text: str, *, warm: bool) -> bool:
    """Whether an attack draws noise; without `warm`, only where it starts at no point known before.
    Of the caller's own the text says nothing, and it counts as one that draws none."""
    try:
        attack = parse_trial(text).attack
    except SpecError:
        return False
    return attack.random and (warm or not attack.warm)


def add(a: Costs, b: Costs) -> Costs:
    return Costs(**{name: getattr(a, name) + getattr(b, name) for name in Costs.model_fields})


def add_trials(a: TrialInfo, b: TrialInfo) -> TrialInfo:
    """The same trial on two sets of rows."""
    update = {
        "attacked": a.attacked + b.attacked,
        "broken": a.broken + b.broken,
        "costs": add(a.costs, b.costs),
    }
    rounds = [
        Restart(attacked=one.attacked + other.attacked, broken=one.broken + other.broken)
        for one, other in zip_longest(a.restarts, b.restarts, fillvalue=Restart())
    ]
    return a.model_copy(update=update | {"restarts": rounds})

"""From the pieces of a journal to tables: of the samples, of the trials, of the corruptions."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from holdfast.corruptions import measure
from holdfast.evaluation.build_manifest import add_trials
from holdfast.evaluation.chunk import STATUSES, Plan
from holdfast.runs.journal import Journal
from holdfast.runs.manifest import Costs, Facts, Restart, TrialInfo
from holdfast.runs.metrics import schema_of


def collect(
    plan: Plan, journal: Journal, chunks: Sequence[tuple[int, int]], facts: Facts
) -> tuple[pa.Table, list[TrialInfo], Facts, bool]:
    """The table of samples, the counts of the trials, the facts with the eps that were run at in
    full, and whether everything was run."""
    tables: list[pa.Table] = []
    missed: set[float] = set()
    order = [(eps, i) for eps in plan.measured for i in range(len(plan.trials))]
    totals = {(e, i): TrialInfo(spec=plan.trials[i].write(whole=True), eps=e) for e, i in order}
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
            before = totals[eps, i]
            info = TrialInfo(
                spec=before.spec,
                eps=eps,
                attacked=0 if restart else seen,
                broken=fell,
                costs=Costs(**paid),
                restarts=[Restart()] * restart + [Restart(attacked=seen, broken=fell)],
            )
            totals[eps, i] = add_trials(before, info)
    full = [
        pair
        for pair in facts.threat.measured
        if pair[0] == plan.measured[0] or pair[0] not in missed
    ]
    facts = facts.model_copy(update={"threat": facts.threat.model_copy(update={"measured": full})})
    return (
        pa.concat_tables(tables),
        list(totals.values()),
        facts,
        not missed,
    )


def collect_corruptions(journal: Journal, chunks: Sequence[tuple[int, int]]) -> pa.Table:
    parts = [journal.read(f"{start:09d}-corrupted")[0] for start, _ in chunks]
    return pa.table(
        {name: np.concatenate([p[name] for p in parts]) for name in ("id", *measure.COLUMNS)}
    )

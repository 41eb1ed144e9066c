"""From evidence to answers: every figure of run.json, made from the facts and the table of samples."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from pathlib import Path

import numpy as np
import pyarrow as pa

from holdfast.evaluate.findings import conclude
from holdfast.evaluate.judge import PASSES
from holdfast.runs import store
from holdfast.runs.manifest import Costs, Facts, Manifest, TrialInfo
from holdfast.runs.metrics import UNASKED, corrupted, measure


def finish(folder: Path, facts: Facts, table: pa.Table, trials: Sequence[TrialInfo]) -> Manifest:
    """The whole manifest of a folder whose samples and examples are written."""
    metrics = measure(table, facts.model.classes, facts.threat.measured, facts.data.class_names, facts.model.task)
    asked = 0
    if facts.corruptions is not None:
        answers = store.read_corruptions(folder)
        metrics.corruptions = corrupted(answers, table, facts.corruptions)
        asked = sum(int((column.to_numpy() != UNASKED).sum()) for column in answers.columns[1:])
    stored = int(np.isfinite(table.column("size").to_numpy(zero_copy_only=False).astype(float)).sum())
    total = reduce(add, (t.costs for t in trials), facts.examined)
    return Manifest(
        **dict(facts),
        verdict=conclude(facts, table, metrics, trials),
        metrics=metrics,
        costs=total.model_copy(
            update={"judge_forwards": PASSES * (table.num_rows + stored), "corruption_forwards": asked}
        ),
        trials=list(trials),
        files=store.checksums(folder),
    )


def add(a: Costs, b: Costs) -> Costs:
    return Costs(**{name: getattr(a, name) + getattr(b, name) for name in Costs.model_fields})


def add_trials(a: TrialInfo, b: TrialInfo) -> TrialInfo:
    """The same trial on two sets of rows."""
    update = {"attacked": a.attacked + b.attacked, "broken": a.broken + b.broken, "costs": add(a.costs, b.costs)}
    return a.model_copy(update=update)

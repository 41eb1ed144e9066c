"""Findings: what bears on whether the figure can be trusted; each a pure function of the run's table.

The verdict follows: `unreliable` with a red finding, `upper-bound` with an amber one, else `trusted`.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from holdfast.runs.manifest import Facts, Finding, Metrics, Verdict


def conclude(facts: Facts, table: pa.Table, metrics: Metrics) -> Verdict:
    """The verdict on a run: the findings noted before the attacks, and those that the table shows."""
    shown = [find(table, metrics) for find in (_failed, _unstable, _skipped, _unfinished, _zero_gradients)]
    shown += [
        _effort(facts),
        _access(facts),
        _near_chance(metrics, facts.model.classes) if facts.model.task == "classes" else None,
        _budget(table, facts.max_queries),
    ]
    findings = [*facts.noted, *(f for f in shown if f is not None)]
    worst = {f.severity for f in findings}
    status = "unreliable" if "red" in worst else "upper-bound" if "amber" in worst else "trusted"
    return Verdict(status=status, findings=findings)


def _failed(table: pa.Table, metrics: Metrics) -> Finding | None:
    n = metrics.counts["failed"]
    if not n:
        return None
    text = (
        f"{n} rows failed: the model gave non-finite scores or gradients, or its evidence did not hold. They do "
        f"not count as robust."
    )
    return Finding(check="failed", severity="red", text=text, value=n, threshold=0)


def _unstable(table: pa.Table, metrics: Metrics) -> Finding | None:
    n = metrics.counts["unstable"]
    if not n:
        return None
    share = n / table.num_rows
    text = f"{n} rows change their label with batch size or repeat. They do not count as robust."
    return Finding(check="unstable", severity="red" if share > 0.01 else "info", text=text, value=share, threshold=0.01)


def _skipped(table: pa.Table, metrics: Metrics) -> Finding | None:
    n = metrics.counts["skipped"]
    if not n:
        return None
    text = f"{n} rows were not attacked (time ran out, or their class is the goal); the figures are of the others."
    return Finding(check="skipped", severity="info", text=text, value=n, threshold=0)


def _unfinished(table: pa.Table, metrics: Metrics) -> Finding | None:
    status = table.column("status").to_numpy(zero_copy_only=False)
    n = int(((status == "robust") & ~table.column("finished").to_numpy(zero_copy_only=False)).sum())
    if not n:
        return None
    text = f"Time ran out before the protocol ended on {n} rows called robust: the rest of it may break some."
    return Finding(check="unfinished", severity="amber", text=text, value=n, threshold=0)


def _zero_gradients(table: pa.Table, metrics: Metrics) -> Finding | None:
    status = table.column("status").to_numpy(zero_copy_only=False)
    backwards, zero = table.column("backwards").to_numpy(), table.column("zero_gradients").to_numpy()
    blind = (status == "robust") & (backwards > 0) & (zero * 2 > backwards)
    attacked = int(((status == "robust") | (status == "broken")).sum())
    share = float(blind.sum()) / max(attacked, 1)
    if share == 0:
        return None
    text = (
        f"On {int(blind.sum())} rows called robust most gradients were exactly zero: the attacks saw nothing there, "
        f"so nothing speaks for the rows' robustness. Typical of thresholds, quantisers and saturated units."
    )
    severity = "red" if share > 0.01 else "amber"
    return Finding(check="zero_gradients", severity=severity, text=text, value=share, threshold=0.01)


def _effort(facts: Facts) -> Finding | None:
    if facts.protocol.name not in ("quick", "custom"):
        return None
    text = (
        f"The attacks were those of the {facts.protocol.name} protocol: a first look, which stronger ones may lower. "
        f"Defend the figure with --protocol standard."
    )
    return Finding(check="effort", severity="amber", text=text)


def _access(facts: Facts) -> Finding | None:
    given = facts.model.access
    if given == "gradients":
        return None
    left = "gradient attacks and those on scores" if given == "labels" else "gradient attacks"
    text = (
        f"The target gives {given} alone, so {left} were left out: the figure is what an adversary with such access "
        f"reaches by queries, and one who has the model may reach more. Give a model with gradients, or a surrogate."
    )
    return Finding(check="access", severity="amber", text=text)


def _near_chance(metrics: Metrics, classes: int) -> Finding | None:
    high = metrics.clean_accuracy.high
    if high is None or metrics.clean_accuracy.n < 20 or high > 1.5 / classes:
        return None
    text = (
        f"Clean accuracy is that of chance ({classes} classes). Likely the preprocessing, the layout or the order of "
        f"the classes is wrong."
    )
    value = metrics.clean_accuracy.value
    return Finding(check="near_chance", severity="red", text=text, value=value, threshold=1.5 / classes)


def _budget(table: pa.Table, budget: int | None) -> Finding | None:
    if budget is None:
        return None
    status = table.column("status").to_numpy(zero_copy_only=False)
    cut = int(np.sum((status == "robust") & (table.column("forwards").to_numpy() >= budget)))
    if not cut:
        return None
    text = f"{cut} rows called robust had spent their budget of {budget} passes before the protocol ended."
    return Finding(check="budget", severity="amber", text=text, value=cut, threshold=0)

"""Findings: what bears on whether the figure can be trusted; each a pure function of the run's
table.

The verdict follows: `unreliable` with a red finding, `upper-bound` with an amber one, else
`trusted`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from holdfast.attacks import parse_trial
from holdfast.diagnostics.knowledge import knowledge
from holdfast.runs.manifest import Facts, Finding, Metrics, TrialInfo, Verdict


def conclude(
    facts: Facts, table: pa.Table, metrics: Metrics, trials: Sequence[TrialInfo]
) -> Verdict:
    """The verdict on a run: the findings noted before the attacks, and those that table and trials
    show."""
    added = [t for t in trials if t.eps == facts.threat.eps][len(facts.protocol.trials) :]
    shown = [find(table, metrics) for find in (_failed, _unstable, _skipped, _unfinished)]
    shown += [
        _zero_gradients(table, bool(added)),
        _followed(added, metrics),
        _still_falling(facts, trials, added, metrics),
        _effort(facts),
        _access(facts),
        _budget(table, facts.max_queries),
        *knowledge(facts, table),
    ]
    findings = [*facts.initial_findings, *(f for f in shown if f is not None)]
    red, amber = ([f for f in findings if f.severity == s] for s in ("red", "amber"))
    if red:
        return Verdict(status="unreliable", findings=findings, reason=_reason(red))
    if amber:
        return Verdict(status="upper-bound", findings=findings, reason=_reason(amber))
    reason = "No check that ran found a sign that the attacks failed."
    return Verdict(status="trusted", findings=findings, reason=reason)


def _reason(worst: Sequence[Finding]) -> str:
    """The worst findings in one sentence."""
    first, *more = worst
    said = first.text.split(". ")[0].rstrip(".")
    if more:
        said += f" (and: {', '.join(dict.fromkeys(f.check for f in more))})"
    return f"{said}."


def _followed(added: Sequence[TrialInfo], metrics: Metrics) -> Finding | None:
    """Of the trials that answer a finding: what they did to the figure."""
    if not added:
        return None
    fell, n = sum(t.broken for t in added), metrics.robust_accuracy.n
    names = "; ".join(repr(parse_trial(t.spec)) for t in added if t.broken) or "none of them"
    text = (
        f"{len(added)} stronger trials answered the findings and broke {fell} more rows "
        f"({fell / max(n, 1):.1%}): {names}. The figure is the worst case after them."
    )
    passes = sum(t.costs.forwards + t.costs.backwards for t in added)
    return Finding(
        check="followed", severity="info", text=text, value=fell / max(n, 1), passes=passes
    )


def _still_falling(
    facts: Facts, trials: Sequence[TrialInfo], added: Sequence[TrialInfo], metrics: Metrics
) -> Finding | None:
    own = [t for t in trials if t.eps == facts.threat.eps]
    if facts.protocol.name in ("quick", "custom") or added or not own:
        return None
    last, n = own[-1], metrics.robust_accuracy.n
    if last.broken < 3 or last.broken <= 0.02 * n:
        return None
    text = (
        f"The last trial of the protocol still broke {last.broken} rows ({last.broken / n:.1%}): "
        f"more effort may break more. Go on with --protocol thorough."
    )
    source = "arXiv:1902.06705, section 5: more effort must not change the figure"
    return Finding(
        check="still_falling",
        severity="amber",
        text=text,
        value=last.broken / n,
        threshold=0.02,
        source=source,
    )


def _failed(table: pa.Table, metrics: Metrics) -> Finding | None:
    if not (n := metrics.counts["failed"]):
        return None
    text = (
        f"{n} rows failed: the model gave non-finite scores or gradients, or its evidence did not "
        f"hold. They do not count as robust."
    )
    return Finding(check="failed", severity="red", text=text, value=n, threshold=0)


def _unstable(table: pa.Table, metrics: Metrics) -> Finding | None:
    if not (n := metrics.counts["unstable"]):
        return None
    share, severity = n / table.num_rows, "info"
    if share > 0.01:
        severity = "red"
    text = f"{n} rows change their label with batch size or repeat. They do not count as robust."
    return Finding(
        check="unstable",
        severity=severity,
        text=text,
        value=share,
        threshold=0.01,
    )


def _skipped(table: pa.Table, metrics: Metrics) -> Finding | None:
    if not (n := metrics.counts["skipped"]):
        return None
    if n == table.num_rows:
        text = (
            "No row was attacked: time ran out, or their class is the goal. There is no figure; "
            "give more time."
        )
        return Finding(check="skipped", severity="red", text=text, value=n, threshold=0)
    text = (
        f"{n} rows were not attacked (time ran out, or their class is the goal); the figures are "
        "of the others."
    )
    return Finding(check="skipped", severity="info", text=text, value=n, threshold=0)


def _unfinished(table: pa.Table, metrics: Metrics) -> Finding | None:
    status = table.column("status").to_numpy(zero_copy_only=False)
    n = int(((status == "robust") & ~table.column("finished").to_numpy(zero_copy_only=False)).sum())
    if not n:
        return None
    text = (
        f"Time ran out before the protocol ended on {n} rows called robust: the rest of it may "
        "break some."
    )
    return Finding(check="unfinished", severity="amber", text=text, value=n, threshold=0)


def _zero_gradients(table: pa.Table, answered: bool) -> Finding | None:
    status = table.column("status").to_numpy(zero_copy_only=False)
    backwards, zero = (
        table.column("backwards").to_numpy(),
        table.column("zero_gradients").to_numpy(),
    )
    blind = (status == "robust") & (backwards > 0) & (zero * 2 > backwards)
    attacked = int(((status == "robust") | (status == "broken")).sum())
    if (share := float(blind.sum()) / max(attacked, 1)) == 0:
        return None
    text = (
        f"On {int(blind.sum())} rows called robust most gradients were exactly zero: the attacks "
        "saw nothing there, "
        "so nothing speaks for the rows' robustness. Typical of thresholds, quantisers and "
        "saturated units."
    )
    severity = "amber"
    if answered:
        text += " Trials that need no such gradient went over these rows too."
    elif share > 0.01:
        severity = "red"
    ids = table.column("id").to_numpy()[blind][:16].tolist()
    return Finding(
        check="zero_gradients", severity=severity, text=text, value=share, threshold=0.01, ids=ids
    )


def _effort(facts: Facts) -> Finding | None:
    known = {"quick": " (by 0 to 5 points in Linf, as measured)", "custom": ""}
    if (measured := known.get(facts.protocol.name)) is None:
        return None
    text = (
        f"The attacks were those of the {facts.protocol.name} protocol: a first look, which "
        f"stronger ones may lower{measured}. Defend the figure with --protocol standard."
    )
    return Finding(check="effort", severity="amber", text=text)


def _access(facts: Facts) -> Finding | None:
    given, left = facts.model.access, "gradient attacks"
    if given == "gradients":
        return None
    if given == "labels":
        left += " and those on scores"
    text = (
        f"The target gives {given} alone, so {left} were left out: the figure is what an adversary "
        "with such access "
        "reaches by queries, and one who has the model may reach more. Give a model with "
        "gradients, or a surrogate."
    )
    return Finding(check="access", severity="amber", text=text)


def _budget(table: pa.Table, budget: int | None) -> Finding | None:
    if budget is None:
        return None
    status = table.column("status").to_numpy(zero_copy_only=False)
    cut = int(np.sum((status == "robust") & (table.column("forwards").to_numpy() >= budget)))
    if not cut:
        return None
    text = (
        f"{cut} rows called robust had spent their budget of {budget} passes before the protocol "
        "ended."
    )
    return Finding(check="budget", severity="amber", text=text, value=cut, threshold=0)

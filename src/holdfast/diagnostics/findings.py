"""Findings: what bears on whether the figure can be trusted; each a pure function of the run's
table.

The verdict follows: `unreliable` with a red finding, `upper-bound` with an amber one, else
`trusted`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from holdfast.attacks import parse_trial
from holdfast.diagnostics.knowledge import knowledge
from holdfast.errors import listed
from holdfast.runs.manifest import CONTRADICTION, Facts, Finding, Metrics, TrialInfo, Verdict
from holdfast.runs.metrics import column_of


def conclude(
    facts: Facts, table: pa.Table, metrics: Metrics, trials: Sequence[TrialInfo]
) -> Verdict:
    """The verdict on a run: the findings noted before the attacks, and those that table and trials
    show."""
    added = [t for t in trials if t.eps == facts.threat.eps][len(facts.protocol.trials) :]
    of_attacks = [
        *_zero_gradients(table, bool(added)),
        *_trials(facts, trials, added, metrics),
        *_limits(facts, table),
    ]
    # then no stronger attack can lower the figure
    proved = metrics.counts["certified"] > 0 and not metrics.counts["robust"]
    findings = [
        *facts.initial_findings,
        *_contradictions(table),
        *_statuses(table, metrics, schema=facts.threat.table is not None),
        *(f for f in of_attacks if f.severity == "info" or not proved),
        *knowledge(facts, table),
    ]
    worst = {s: [f for f in findings if f.severity == s] for s in ("red", "amber")}
    if worst["red"]:
        return Verdict(status="unreliable", findings=findings, reason=_reason(worst["red"]))
    if worst["amber"]:
        return Verdict(status="upper-bound", findings=findings, reason=_reason(worst["amber"]))
    reason = "No check that ran found a sign that the attacks failed."
    if proved:
        reason = "Every input that was not broken is proved: no attack can lower the figure."
    return Verdict(status="trusted", findings=findings, reason=reason)


def _reason(worst: Sequence[Finding]) -> str:
    """The worst findings in one sentence."""
    first, *more = worst
    said = first.text.split(". ")[0].rstrip(".")
    if more:
        said += f" (and: {', '.join(dict.fromkeys(f.check for f in more))})"
    return f"{said}."


def _contradictions(table: pa.Table) -> Iterator[Finding]:
    """Of rows with a proof and with a legal example that breaks them: one of both is wrong."""
    if "certified_by" not in table.column_names:
        return
    status, size, radius = (column_of(table, n) for n in ("status", "size", "certified_radius"))
    proved = ~table.column("certified_by").is_null().to_numpy()
    both = (proved & (status == "broken")) | (size.astype(float) <= radius.astype(float))
    if both.any():
        ids = table.column("id").to_numpy()[both].tolist()
        text = (
            f"Rows {listed(ids, 5)} were proved to be robust, and are broken by stored examples: "
            "the proofs, the judge or the model's arithmetic is wrong, and so may be every other "
            "proof of this run."
        )
        found = {"value": len(ids), "threshold": 0, "ids": ids[:16]}
        yield Finding(check=CONTRADICTION, severity="red", text=text, **found)


def _statuses(table: pa.Table, metrics: Metrics, *, schema: bool) -> Iterator[Finding]:
    """Of rows without a status that holds, or whose attack did not end."""
    if n := metrics.counts["failed"]:
        text = (
            f"{n} rows failed: the model gave non-finite scores or gradients, or its evidence did "
            "not hold. They do not count as robust."
        )
        yield Finding(check="failed", severity="red", text=text, value=n, threshold=0)
    if n := metrics.counts["unstable"]:
        share, severity = n / table.num_rows, "info"
        if share > 0.01:
            severity = "red"
        text = (
            f"{n} rows change their label with batch size or repeat. They do not count as robust."
        )
        yield Finding(check="unstable", severity=severity, text=text, value=share, threshold=0.01)
    empty = _empty(table)
    if n := int(empty.sum()):
        severity, text = (
            "info",
            f"{n} of {table.num_rows} images hold nothing that could be lost, no ",
        )
        text += "object or no pixel; they were not attacked, and robust accuracy is of the others."
        if n == table.num_rows:
            severity, text = "red", "No image holds anything that could be lost: nothing was asked."
        ids = table.column("id").to_numpy()[empty][:100].tolist()
        yield Finding(check="nothing_to_lose", severity=severity, text=text, value=n, ids=ids)
    if n := metrics.counts["skipped"] - n:
        severity, text = "red", "No row was attacked: time ran out, or their class is the goal."
        text += " There is no figure; give more time."
        if n < table.num_rows:
            severity, text = "info", f"{n} rows were not attacked"
            why = "they break the schema, " if schema else ""
            why += "time ran out, or their class is the goal"
            text += f" ({why}); the figures are of the others."
        yield Finding(check="skipped", severity=severity, text=text, value=n, threshold=0)
    finished = table.column("finished").to_numpy(zero_copy_only=False)
    if n := int((_robust(table) & ~finished).sum()):
        text = (
            f"Time ran out before the protocol ended on {n} rows called robust: the rest of it may "
            "break some."
        )
        yield Finding(check="unfinished", severity="amber", text=text, value=n, threshold=0)


def _empty(table: pa.Table) -> np.ndarray:
    """Which rows have nothing to lose: [n] bool."""
    if "nothing_to_lose" not in table.column_names:
        return np.zeros(table.num_rows, dtype=bool)
    return table.column("nothing_to_lose").to_numpy(zero_copy_only=False)


def _robust(table: pa.Table) -> np.ndarray:
    return column_of(table, "status") == "robust"


def _zero_gradients(table: pa.Table, answered: bool) -> Iterator[Finding]:
    robust = _robust(table)
    backwards, zero = (table.column(n).to_numpy() for n in ("backwards", "zero_gradients"))
    blind = robust & (backwards > 0) & (zero * 2 > backwards)
    if not blind.any():
        return
    broken = column_of(table, "status") == "broken"
    share, severity = float(blind.sum()) / int((robust | broken).sum()), "amber"
    text = (
        f"On {int(blind.sum())} rows called robust most gradients were exactly zero: the attacks "
        "saw nothing there, so nothing speaks for the rows' robustness. Typical of thresholds, "
        "quantisers and saturated units."
    )
    if answered:
        text += " Trials that need no such gradient went over these rows too."
    elif share > 0.01:
        severity = "red"
    yield Finding(
        check="zero_gradients",
        severity=severity,
        text=text,
        value=share,
        threshold=0.01,
        ids=table.column("id").to_numpy()[blind][:16].tolist(),
    )


def _trials(
    facts: Facts, trials: Sequence[TrialInfo], added: Sequence[TrialInfo], metrics: Metrics
) -> Iterator[Finding]:
    """What the trials that answer a finding did to the figure; or whether it was still falling."""
    n = metrics.robust_accuracy.n
    if added:
        broken = sum(t.broken for t in added)
        names = "; ".join(repr(parse_trial(t.spec)) for t in added if t.broken) or "none of them"
        yield Finding(
            check="followed",
            severity="info",
            text=(
                f"{len(added)} stronger trials answered the findings and broke {broken} more rows "
                f"({broken / max(n, 1):.1%}): {names}. The figure is the worst case after them."
            ),
            value=broken / max(n, 1),
            passes=sum(t.costs.forwards + t.costs.backwards for t in added),
        )
    own = [t for t in trials if t.eps == facts.threat.eps]
    if added or not own or facts.protocol.name in ("quick", "custom"):
        return
    broken = own[-1].broken
    if broken >= 3 and broken > 0.02 * n:
        yield Finding(
            check="still_falling",
            severity="amber",
            text=(
                f"The last trial of the protocol still broke {broken} rows ({broken / n:.1%}): "
                "more effort may break more. Go on with --protocol thorough."
            ),
            value=broken / n,
            threshold=0.02,
            source="arXiv:1902.06705, section 5: more effort must not change the figure",
        )


def _limits(facts: Facts, table: pa.Table) -> Iterator[Finding]:
    """Of what the attacks were not given: effort, access or passes."""
    if facts.protocol.name == "none":
        text = "No attack was run: nothing says how much of what is not proved could be broken."
        yield Finding(check="no_attacks", severity="amber", text=text)
        return
    if facts.protocol.name in ("quick", "custom"):
        text = (
            f"The attacks were those of the {facts.protocol.name} protocol: stronger attacks may "
            "find a lower figure. Measure with --protocol standard."
        )
        yield Finding(check="effort", severity="amber", text=text)
    lacking = {"scores": "gradient attacks", "labels": "gradient attacks and those on scores"}
    if left := lacking.get(facts.model.access):
        text = (
            f"The target gives {facts.model.access} alone, so {left} were left out: the figure is "
            "what an adversary with such access reaches by queries, and one who has the model may "
            "reach more. Give a model that has gradients, or a surrogate. Trees have none: under "
            "linf and a schema treeexact reads their leaves, and --certify proves rows."
        )
        yield Finding(check="access", severity="amber", text=text)
    budget = np.inf if facts.max_queries is None else facts.max_queries
    if cut := int((_robust(table) & (table.column("forwards").to_numpy() >= budget)).sum()):
        text = (
            f"{cut} rows called robust had spent their budget of {budget} passes before the "
            "protocol ended."
        )
        yield Finding(check="budget", severity="amber", text=text, value=cut, threshold=0)
